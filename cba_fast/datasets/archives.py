"""Extract CUB_200_2011 from a .tgz, .tar or .zip file without trusting the file."""

import bz2
import contextlib
import functools
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol

from .. import files
from ..data import cub
from ..data.image_sets import IMAGE_EXTENSIONS
from ..data.textlines import check_relative, shown
from ..errors import InputError

MOST_OF_ONE = 64 << 20  # most bytes of one image or list; CUB's largest files have 0.5 MB
SLACK = 256 << 20  # an archive may unpack to four times its size and this many bytes more
_OPENERS: dict[bytes, Callable[[BinaryIO], "_Stream"]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
# What the readers of these formats raise on damage; an encrypted zip raises RuntimeError.
_DAMAGE = (
    *(EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
    *(NotImplementedError, RuntimeError, ValueError),
)


def extract(archive: Path, folder: Path, report: Callable[[int, int], None]) -> None:
    """Write the lists and images of CUB_200_2011 below ``<folder>/CUB_200_2011``.

    Everything else in the archive is skipped. Owners, modes and times are not taken over, and no
    link is made that a later member could write through.

    Args:
        archive: the file; its first bytes tell its format.
        folder: where to write.
        report: called with the bytes of the archive that were read so far, and its size.

    Raises:
        InputError: the archive is damaged (checksums included), has a member that leads outside of
            `folder`, a symbolic link or a special file, or unpacks to far more than its own size.
    """
    total = archive.stat().st_size
    with open(archive, "rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        read = _zip_members if start.startswith(b"PK") else _tar_members
        room = 4 * total + SLACK
        for member in read(archive, raw, start, room):
            name = _checked_name(archive, member)
            needed = _is_needed(name)
            size = member.size
            if needed and member.goal is not None and (folder / member.goal).is_file():
                size = (folder / member.goal).stat().st_size  # a link becomes a copy
            room -= size
            if room < 0 or (needed and size > MOST_OF_ONE):
                raise _too_large(archive, member.name)
            if needed:
                _write(archive, member, folder, folder / name)
                report(raw.tell(), total)


@dataclass(frozen=True)
class _Member:
    """A member of an archive.

    `kind` is "file", "folder", or the name of what is refused; `goal` is the member that a hard
    link points to, else None; `open` opens the bytes.
    """

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes] | None]
    goal: str | None = None


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _StrictInfo(tarfile.TarInfo):
    """A tar header that raises where it is damaged; tarfile alone would end the archive there."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictInfo":
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as e:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(e)) from e


class _Bounded:
    """The decompressed bytes of a tar file; more than `room` of them, or damage: `InputError`."""

    def __init__(self, archive: Path, file: "_Stream", room: int):
        self.archive, self.file, self.room = archive, file, room

    def read(self, size: int) -> bytes:
        with _telling(self.archive):
            data = self.file.read(size)
        self.room -= len(data)
        if self.room < 0:
            raise _too_large(self.archive, "what it holds")
        return data


def _tar_members(archive: Path, raw: BinaryIO, start: bytes, room: int) -> Iterator[_Member]:
    opener = next((f for magic, f in _OPENERS.items() if start.startswith(magic)), None)
    stream = _Bounded(archive, opener(raw) if opener else raw, room)
    kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.DIRTYPE: "folder"}
    with _telling(archive):
        # The file is read as a stream: one pass over the 1.1 GB of gzip, whose checksum comes last.
        # It is decompressed here because tarfile's own decompression of streams checks nothing.
        with tarfile.open(  # type: ignore[call-overload]  # a stream needs nothing but `read`
            fileobj=stream, mode="r|", tarinfo=_StrictInfo, bufsize=1 << 20
        ) as tar:
            for member in tar:
                kind = "file" if member.isreg() or member.islnk() else kinds.get(member.type)
                yield _Member(
                    *(member.name, member.size, kind or "special file"),
                    functools.partial(tar.extractfile, member),
                    member.linkname if member.islnk() else None,
                )
        while stream.read(1 << 20):
            pass


def _zip_members(archive: Path, raw: BinaryIO, start: bytes, room: int) -> Iterator[_Member]:
    with _telling(archive):
        file = zipfile.ZipFile(raw)
    for info in file.infolist():
        mode = info.external_attr >> 16
        kind = "folder" if info.is_dir() else "file"
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
        yield _Member(
            *(info.orig_filename, info.file_size, kind), functools.partial(file.open, info)
        )


@contextlib.contextmanager
def _telling(archive: Path) -> Iterator[None]:
    """Turn what a reader raises on damage into an `InputError` that names the archive."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as e:
        reason = str(e) or type(e).__name__
        raise InputError(f"{archive} is not a whole archive: {reason}") from e


def _too_large(archive: Path, name: str) -> InputError:
    return InputError(
        f"{archive}: refused, {shown(name)} unpacks to more bytes than CUB_200_2011 can need"
    )


def _checked_name(archive: Path, member: _Member) -> PurePosixPath:
    for name in filter(None, (member.name.rstrip("/"), member.goal)):
        while name.startswith("./"):
            name = name[2:]
        if name not in ("", "."):
            check_relative(name, f"{archive}: refused", "the member")
    if member.kind not in ("file", "folder"):
        raise InputError(f"{archive}: refused, the member {member.name!r} is a {member.kind}")
    return PurePosixPath(member.name)


def _is_needed(name: PurePosixPath) -> bool:
    """Tell whether a member is one of CUB's lists, an image, or the folder of the images."""
    top, *parts = name.parts or ("",)
    if top != cub.FOLDER or not parts or any(part.startswith(".") for part in parts):
        return False
    if parts[0] == "images":
        return len(parts) == 1 or name.suffix.lower() in IMAGE_EXTENSIONS
    return len(parts) == 1 and parts[0] in cub.TEXT_FILES


def _write(archive: Path, member: _Member, folder: Path, target: Path) -> None:
    if member.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.goal is None:
            with files.naming(target), open(target, "xb") as f:
                _copy(archive, member, f)
        elif (folder / member.goal).is_file():
            shutil.copyfile(folder / member.goal, target)
        else:
            raise InputError(
                f"{archive}: the link {member.name!r} points to {member.goal!r}, which is no list"
                " or image of CUB_200_2011 before it: unpack the archive and give its folder"
            )
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as e:
        raise InputError(f"{archive}: refused, it holds {member.name!r} twice") from e


def _copy(archive: Path, member: _Member, out: BinaryIO) -> None:
    with _telling(archive):
        source = member.open()
        if source is None:
            raise tarfile.ReadError(f"{member.name!r} is no file")
    with source:
        while True:
            with _telling(archive):  # around reading alone: a full disk is no damaged archive
                data = source.read(1 << 20)
            if not data:
                break
            out.write(data)
    if out.tell() != member.size:
        raise InputError(f"{archive} is not a whole archive: {member.name!r} is cut")
