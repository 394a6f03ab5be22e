"""Lay out CUB_200_2011, given as an archive or a folder, as the study's commands expect it."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import locks
from ..choices import CUB_FOLDER
from ..data import cub
from ..data.boxes import load_boxes
from ..data.textlines import counted, some
from ..errors import InputError
from ..files import atomic_path, remove_leftovers
from ..short import Short
from . import archives

log = logging.getLogger("cba_fast")

SPLIT_FOLDER = "images_splitted"
_EXTRACTING = ".tmp-extracting"

# progress(what, done, total); `what` decides whether bytes or files are counted.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, repr=False)
class Prepared(Short):
    """The folders and counts that `prepare_cub` has made.

    Attributes:
        cub_root: the CUB_200_2011 folder below the output.
        split_root: the folder with ``train/<class>/<image>`` and ``test/<class>/<image>``.
        counts: number of images of each split.
        classes: number of classes.
    """

    cub_root: Path
    split_root: Path
    counts: dict[str, int]
    classes: int


@locks.released()
def prepare_cub(
    source: str | os.PathLike,
    output: str | os.PathLike = CUB_FOLDER,
    *,
    copy: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Make ``<output>/CUB_200_2011`` and its ``images_splitted/{train,test}``.

    A run that is killed can be started again: an archive is extracted to a temporary name and
    renamed when it is complete, and files that are in place already are kept. Nothing but the
    temporary folder is deleted or overwritten.

    Args:
        source: CUB_200_2011.tgz (or .tar, .zip), the extracted folder, or the folder that holds it.
            Only the lists and the images of an archive are unpacked.
        output: the data set's folder.
        copy: copy the images. Otherwise they are hard links, or copies where the file system has
            no hard links or the source lies on another one.
        progress: called as ``progress(what, done, total)``.

    Raises:
        InputError: the source is no archive or folder of CUB; the archive is damaged, incomplete or
            far larger than CUB, or has members that lead outside, links or devices; the lists are
            inconsistent or name paths that lead outside; or another file is where one is to go.
    """
    source, output = Path(source), Path(output)
    report = progress or (lambda what, done, total: None)
    target = output / cub.FOLDER
    locks.hold(target)
    if source.is_file():
        if not target.exists():
            _extract(source, output, report)
    elif source.is_dir():
        root = cub.find_root(source)
        if not (target.exists() and root.samefile(target)):
            _import_folder(root, target, copy, report)
    else:
        raise InputError(f"no file or folder {source}")
    if not cub.is_cub(target):
        raise InputError(f"{target} is in the way: it is not a CUB_200_2011 folder (no images.txt)")
    done = split_images(target, copy=copy, progress=progress)
    load_boxes(cub_root=target, split="all", allow_beyond=True)  # logs its warnings
    return done


def split_images(
    root: str | os.PathLike, *, copy: bool = False, progress: Progress | None = None
) -> Prepared:
    """Make ``images_splitted/{train,test}/<class>/<image>`` in a CUB_200_2011 folder of any name.

    Args:
        root: the folder with ``images.txt`` and ``images``.
        copy, progress: as in :func:`prepare_cub`.

    Raises:
        InputError: an image is missing, the lists are inconsistent, another file is where one is
            to go, or a folder of the split holds other images.
    """
    root = Path(root)
    report = progress or (lambda what, done, total: None)
    index = cub.read_index(root)
    _check_complete(root, index, f"; remove {root} and run again to start afresh")
    split_root = root / SPLIT_FOLDER
    counts = {}
    for split in ("train", "test"):
        names = [index.names[i] for i in index.ids(split)]
        for done, name in enumerate(names):
            _place(root / "images" / name, split_root / split / name, copy)
            report(f"{split} images", done + 1, len(names))
        remove_leftovers(split_root / split / name for name in names)
        _refuse_strangers(split_root / split, set(names))
        counts[split] = len(names)
    return Prepared(root, split_root, counts, len(index.class_names))


def _check_complete(root: Path, index: cub.CubIndex, hint: str = "") -> None:
    absent = [n for n in index.names.values() if not (root / "images" / n).is_file()]
    if absent:
        raise InputError(
            f"{root / 'images'} lacks {len(absent)} of {len(index.names)} images "
            f"({some(absent)}){hint}"
        )


def _import_folder(root: Path, target: Path, copy: bool, report: Progress) -> None:
    """Place the lists and images of `root` below `target`; ``images.txt`` comes last."""
    index = cub.read_index(root)
    names = list(index.names.values())
    real = (root / "images").resolve()
    led = [n for n in names if not (root / "images" / n).resolve().is_relative_to(real)]
    if led:
        count = counted(len(led), "image")
        log.warning("%s: links lead %s out of %s: %s", root, count, real, some(led))
    for done, name in enumerate(names):
        if not (root / "images" / name).is_file():
            raise InputError(f"{root} lacks the image images/{name} that images.txt lists")
        _place(root / "images" / name, target / "images" / name, copy)
        report("images", done + 1, len(names))
    for name in sorted(cub.TEXT_FILES, key=lambda n: n == "images.txt"):
        # Lists are always copied: editing one later must not change the source's.
        _place(root / name, target / name, copy=True)
    remove_leftovers(target / name for name in [*cub.TEXT_FILES, *(f"images/{n}" for n in names)])


def _place(source: Path, target: Path, copy: bool) -> None:
    if os.path.lexists(target):
        same = target.is_file() and (
            target.samefile(source) or target.stat().st_size == source.stat().st_size
        )
        if not same:
            raise InputError(f"{target} is in the way: it differs from {source}")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)  # Linux would hard-link a symbolic link itself
            return
    with atomic_path(target, durable=False) as tmp:
        shutil.copyfile(source, tmp)


def _refuse_strangers(folder: Path, names: set[str]) -> None:
    """Make sure that `folder` holds no images but `names`, because training reads all of them."""
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    strangers = sorted(n for n in found - names if not n.rsplit("/", 1)[-1].startswith(".tmp-"))
    if strangers:
        raise InputError(
            f"{folder} holds {len(strangers)} file(s) that are not of this split: "
            f"{some(strangers)}; move them away and run again"
        )


def _extract(archive: Path, output: Path, report: Progress) -> None:
    """Extract the CUB_200_2011 folder of `archive` to ``<output>/CUB_200_2011`` in one step."""
    work = output / _EXTRACTING
    if work.exists():
        shutil.rmtree(work)  # what a killed run has left
    work.mkdir(parents=True)
    try:
        archives.extract(archive, work, lambda done, total: report("extract", done, total))
        if not cub.is_cub(work / cub.FOLDER):
            raise InputError(
                f"{archive} does not hold {cub.FOLDER}/images.txt and {cub.FOLDER}/images/"
            )
        try:
            _check_complete(work / cub.FOLDER, cub.read_index(work / cub.FOLDER))
        except InputError as e:
            raise InputError(f"{archive}: {str(e).replace(str(work) + os.sep, '')}") from e
        os.rename(work / cub.FOLDER, output / cub.FOLDER)
    finally:
        shutil.rmtree(work, ignore_errors=True)
