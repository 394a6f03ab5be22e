"""Read image files: truncated JPEGs as far as they go, everything else whole or not at all."""

import io
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError

_EOI = b"\xff\xd9"  # JPEG's end-of-image marker
# The modes in which Pillow opens 16-bit grey files ("I" before Pillow 11 for PNG).
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | os.PathLike) -> tuple[Image.Image, bool]:
    """Read an image as RGB.

    The EXIF orientation is ignored, as in the study. Alpha is dropped, palettes, grey and CMYK are
    converted by Pillow; 16-bit grey keeps its high byte, as Pillow does for 16-bit colour (its own
    conversion clips at 255 and leaves a white image).

    A JPEG that ends early is decoded as far as it goes; what lacks is grey, or the coarser scans
    of a progressive file. The end is supplied by this reader for this file only, instead of
    through Pillow's global ``LOAD_TRUNCATED_IMAGES``, so that nothing changes for other code of the
    process and threads do not matter.

    Returns:
        The image in mode "RGB", and whether the file was truncated.

    Raises:
        ImageError: the file is missing or not an image, its header is cut, it is truncated in
            another format than JPEG, or it has more pixels than Pillow's limit against
            decompression bombs; the message names the file.
    """
    path = Path(path)
    try:
        with open(path, "rb") as f:
            try:
                return _decode(f)
            except _CutInTables:
                pass
        # Cut inside the tables between two scans of a progressive file: what came before is fine.
        data = path.read_bytes()
        return _decode(io.BytesIO(data[: max(data.rfind(b"\xff\xc4"), data.rfind(b"\xff\xda"))]))
    except Exception as e:
        # Pillow's readers raise many types on broken files: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, EOFError, DecompressionBombError, ...
        raise ImageError(f"cannot read image {path}: {_reason(e)}") from e


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return (width, height) from an image's header without decoding it.

    Raises:
        ImageError: the file is missing or its header cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as e:
        raise ImageError(f"cannot read image {path}: {_reason(e)}") from e


class _CutInTables(Exception):
    """A JPEG that cannot be finished by an end-of-image marker where it ends."""


def _decode(file) -> tuple[Image.Image, bool]:
    with Image.open(file) as image:
        supplied = [] if image.format in ("JPEG", "MPO") else None
        if supplied is not None:
            image.load_read = _finishing_reader(image, supplied)
        try:
            image.load()
        except OSError as e:
            if supplied:
                raise _CutInTables from e
            raise
        return _to_rgb(image), bool(supplied)


def _finishing_reader(image: Image.Image, supplied: list[bool]):
    """Return a replacement of Pillow's hook `load_read` that adds one end-of-image marker.

    `supplied` gets an entry when the marker was needed, that is, when the file ended early.
    """

    def load_read(count: int) -> bytes:
        data = image.fp.read(count)
        if data or supplied:
            return data
        supplied.append(True)
        return _EOI

    return load_read


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY16 or (image.mode == "I" and image.format == "PNG"):
        return image.point(lambda v: v / 256).convert("L").convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # same pixels, without Pillow's warning
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not an image file, or its header is cut"
    if isinstance(error, _CutInTables):
        return "the file is truncated before its first scan"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
