"""Find the images of a data set: class folders, a CUB_200_2011 folder or official metadata."""

import contextlib
import logging
import os
from pathlib import Path

from ..choices import CUB_FOLDER
from ..errors import InputError
from . import cub, metadata
from .records import ImageRecord, ImageSet, make_record
from .textlines import counted, some

log = logging.getLogger("cba_fast")
# The extensions that torchvision's ImageFolder takes, in lower case.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Names of folders that hold a split's class folders. Read as classes, they would give maps of all
# splits and labels without meaning.
_SPLITS = frozenset(("train", "test", "val"))
# Folders that commands make where they are not told another, and the command.
_MADE_BY = {"cba_fast_demo": "demo", "synth": "synth-cub", Path(CUB_FOLDER).name: "prepare-cub"}


def resolve_test_dataset(name: str | os.PathLike) -> Path:
    """Return the folder that ``--test_dataset`` means.

    Args:
        name: a folder below ``datasets/`` of the working directory (as in the study), else any
            folder.

    Raises:
        InputError: neither is a folder; the message names both places.

    Example:
        >>> from cba_fast.data import resolve_test_dataset
        >>> resolve_test_dataset("CUB_200_2011").as_posix()
        'CUB_200_2011'
    """
    tried = list(dict.fromkeys([Path("datasets") / name, Path(name)]))
    for path in tried:
        if path.is_dir():
            return path
    maker = next((_MADE_BY[part] for part in Path(name).parts if part in _MADE_BY), None)
    hint = f"; `cba-fast {maker}` makes it" if maker else ""
    raise InputError(f"no data set {str(name)!r}: neither of {some(tried)} is a folder{hint}")


def open_image_set(
    root: str | os.PathLike,
    *,
    split: str | None = None,
    metadata_root: str | os.PathLike | None = None,
    dataset_name: str | None = None,
    follow_links: bool = False,
) -> ImageSet:
    """List the images of a data set without opening them.

    With `metadata_root` the ids come from wsolevaluation's metadata and the images lie at
    ``root/<id>``. Otherwise, if `root` is a CUB_200_2011 folder (or holds one of this name), its
    lists are read. Any other `root` is read as class folders.

    Args:
        root: the folder of the images.
        split: "train", "test" or "all" for CUB, the name of a folder for metadata. None means
            "test", or the split whose folder `metadata_root` itself is. Class folders have none.
        metadata_root: the folder with the four text files, or the official root above
            ``<dataset_name>/<split>``.
        dataset_name: folder below an official metadata root, such as "CUB" or "ILSVRC".
        follow_links: take images that links lead to from outside of the data folder. The folder
            itself, and the folder ``images`` of CUB_200_2011, may be links in any case.

    Raises:
        InputError: a folder or file is missing, a class folder is empty, the folders are splits, a
            line is malformed, ids are duplicate or missing in one of the files, `metadata_root` is
            the folder of another split or data set, not one image of the set exists, or a link
            leads out of the data folder.

    Example:
        >>> from cba_fast.data import open_image_set
        >>> images = open_image_set("CUB_200_2011", split="test")
        >>> len(images), images.kind
        (6, 'cub')
        >>> images.records[0].image_id, images.records[0].label
        ('001.Violet_spotted_head_Bird/Violet_spotted_head_Bird_0004.jpg', 0)
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no folder {root}")
    if metadata_root is not None:
        image_set = metadata.image_set(root, metadata_root, dataset_name, split)
    elif cub.is_cub(root) or cub.is_cub(root / cub.FOLDER):
        image_set = cub.image_set(cub.find_root(root), split)
    else:
        image_set = _image_folder(root)
    if not follow_links:
        _refuse_links_outside(image_set)
    if image_set.kind != "imagefolder" and not any(r.path.exists() for r in image_set.records):
        example = image_set.records[0]
        raise InputError(
            f"none of the {len(image_set)} images of the set is below {image_set.root} "
            f"(for example, there is no {example.path})"
        )
    return image_set


def _image_folder(root: Path) -> ImageSet:
    """List class folders in the order of torchvision's ImageFolder, without hidden files.

    torchvision takes hidden files and folders too, which turns ``.ipynb_checkpoints`` into a class
    and the ``._x.jpg`` companions of macOS archives into unreadable images. Links to folders are
    followed, with a warning that names them.
    """
    # A link to itself is no folder for os.path.isdir, and an error for the entry's own is_dir.
    classes = sorted(e.name for e in os.scandir(root) if os.path.isdir(e) and e.name[0] != ".")
    if not classes:
        raise InputError(
            f"{root} has no class folders: images are expected at {root}/<class>/<image>"
        )
    if _SPLITS.issuperset(classes) and all(_has_folders(root / name) for name in classes):
        raise InputError(
            f"{root} holds {', '.join(classes)}: splits, not classes; give one of them, such as "
            f"{root / classes[0]}"
        )
    records: list[ImageRecord] = []
    empty: list[str] = []
    links: list[str] = []
    for label, name in enumerate(classes):
        paths = _images_below(root / name, links)
        if not paths:
            empty.append(name)
        for path in paths:
            image_id = path.relative_to(root).as_posix()
            records.append(make_record(image_id, root, label, str(root)))
    if empty:
        raise InputError(
            f"{root}: no images in the class folder(s) {some(empty, 10)} "
            f"(extensions looked for: {' '.join(IMAGE_EXTENSIONS)}); remove the folder or fill it"
        )
    if links:
        log.warning(
            "%s: %s followed; images come from there: %s",
            *(root, counted(len(links), "link") + " to folders", some(links)),
        )
    return ImageSet(root, "imagefolder", tuple(records), tuple(classes), str(root))


def _has_folders(folder: Path) -> bool:
    return any(os.path.isdir(e) for e in os.scandir(folder))


def _refuse_links_outside(images: ImageSet) -> None:
    """Refuse a folder or an image of the set that is a link out of the data folder.

    A data set that comes as an archive could otherwise bring any file of this machine into the
    results. Each folder is listed once, which takes a thousandth of the time of reading images.
    """
    names: dict[Path, set[str]] = {}
    for record in images.records:
        below, _, name = record.image_id.rpartition("/")
        names.setdefault(record.root / below, set()).add(name)
    inside = {os.path.realpath(record.root) for record in images.records[:1]}
    inside.add(os.path.realpath(images.root))
    for folder, wanted in names.items():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            links = [
                Path(e.path) for e in os.scandir(folder) if e.is_symlink() and e.name in wanted
            ]
            for path in (folder, *links):
                goal = os.path.realpath(path)
                if not any(Path(goal).is_relative_to(root) for root in inside):
                    raise InputError(
                        f"{path} leads out of the data folder {images.root}, to {goal}; allow "
                        "that with `follow_links`"
                    )


def _images_below(folder: Path, links: list[str]) -> list[Path]:
    """Return the images below a class folder, and add the links to folders there to `links`.

    Each folder is read once, under its own name rather than a link's where both lead to it: links
    that point at each other's folder would otherwise be followed for ever.
    """

    def stop(error: OSError):
        raise error  # os.walk would leave an unreadable folder out silently

    found, seen = [], set()
    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if os.path.islink(parent):
            links.append(f"{parent} -> {os.path.realpath(parent)}")
        folders[:] = (name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
        kept = (n for n in sorted(names) if n.lower().endswith(IMAGE_EXTENSIONS) and n[0] != ".")
        found.append((parent, [Path(parent, name) for name in kept]))
    # ImageFolder sorts the walked folders by their full path, then the files in each.
    return [path for _, paths in sorted(found) for path in paths]
