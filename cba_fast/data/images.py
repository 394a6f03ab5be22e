"""Read image files as RGB, truncated JPEGs as far as their data goes."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from ..files import open_regular

_EOI = b"\xff\xd9"  # JPEG's end-of-image marker
# The modes in which Pillow opens 16-bit grey files ("I" before Pillow 11 for PNG).
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap the width and the height


def read_image(path: str | os.PathLike) -> tuple[Image.Image, bool]:
    """Read an image as RGB.

    The EXIF orientation is ignored, as in the study. Alpha is dropped; palettes, grey and CMYK are
    converted by Pillow. 16-bit grey keeps its high byte, as Pillow does for 16-bit colour (its
    conversion of 16-bit grey clips at 255 and leaves a white image). 32-bit grey is read by its
    range: floats from 0 to 1 are scaled to 0 to 255, values up to 255 are taken as they are, and
    integers up to 65535 as 16-bit.

    A JPEG that ends early is decoded as far as it goes; the missing part is grey, or has the
    coarser scans of a progressive file. Pillow's global ``LOAD_TRUNCATED_IMAGES`` stays as it is,
    so that other code and other threads of the process are not affected.

    Returns:
        The image in mode "RGB", and whether the file was truncated.

    Raises:
        ImageError: the file is missing, not a regular file or not an image, its header is cut, it
            is truncated in another format than JPEG, it has more pixels than Pillow's limit against
            decompression bombs, it has 32-bit grey values of another range, or it would become one
            constant colour although its pixels differ; the message names the file.

    Example:
        >>> from cba_fast.data import open_image_set, read_image
        >>> image, truncated = read_image(open_image_set("CUB_200_2011").records[0].path)
        >>> image.mode, image.size, truncated
        ('RGB', (64, 64), False)
    """
    path = Path(path)
    try:
        with open_regular(path) as f:
            try:
                return _decode(f)
            except _CutInTables:
                pass
        # The file is cut inside the tables between two scans of a progressive JPEG: everything
        # before these tables can be decoded.
        data = path.read_bytes()
        return _decode(io.BytesIO(data[: max(data.rfind(b"\xff\xc4"), data.rfind(b"\xff\xda"))]))
    except Exception as e:
        # Pillow's readers raise many types on broken files: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, EOFError, DecompressionBombError, ...
        raise ImageError(f"cannot read image {path}: {_reason(e)}") from e


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return (width, height) from an image's header without decoding it.

    Raises:
        ImageError: the file is missing, not a regular file, or its header cannot be read.
    """
    return read_header(path)[0]


def read_header(path: str | os.PathLike) -> tuple[tuple[int, int], bool]:
    """Return the (width, height) of an image's pixels, and whether EXIF turns it by a quarter.

    Raises:
        ImageError: as :func:`read_size`.
    """
    try:
        with open_regular(path) as f, Image.open(f) as image:
            return image.size, _is_turned(image)
    except Exception as e:
        raise ImageError(f"cannot read image {path}: {_reason(e)}") from e


def _is_turned(image: Image.Image) -> bool:
    # Only JPEG is looked at: cameras write it, and Pillow would decode a whole PNG to find EXIF.
    if image.format not in ("JPEG", "MPO") or "exif" not in image.info:
        return False
    try:
        return image.getexif().get(0x0112) in _TURNED
    except Exception:  # Pillow raises many types on damaged EXIF, which then turns nothing
        return False


class _CutInTables(Exception):
    """A JPEG that cannot be finished by an end-of-image marker where it ends."""


def _decode(file) -> tuple[Image.Image, bool]:
    with Image.open(file) as image:
        supplied: list[bool] | None = [] if image.format in ("JPEG", "MPO") else None
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
    """Return a replacement for Pillow's hook `load_read` that can add an end-of-image marker.

    `supplied` gets an entry if the marker was needed, which means that the file ended early.
    """

    def load_read(count: int) -> bytes:
        data = image.fp.read(count)  # type: ignore[attr-defined]
        if data or supplied:
            return data
        supplied.append(True)
        return _EOI

    return load_read


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.convert("RGB")
    if image.mode in _GREY16 or (image.mode == "I" and image.format == "PNG"):
        rgb = image.point(lambda v: v / 256).convert("L").convert("RGB")
    elif image.mode in ("F", "I"):
        rgb = _from_grey32(np.asarray(image)).convert("RGB")
    elif image.mode == "P" and "transparency" in image.info:
        rgb = image.convert("RGBA").convert("RGB")  # same pixels, without Pillow's warning
    else:
        rgb = image.convert("RGB")
    if _is_constant(rgb) and not _is_constant(image):
        raise ValueError(
            f"its {image.mode} pixels differ, but as RGB they are all {rgb.getpixel((0, 0))}"
        )
    return rgb


def _from_grey32(values: np.ndarray) -> Image.Image:
    """Return 32-bit values (H, W), floating or integer, as 8-bit grey."""
    low, high = values.min(), values.max()
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        values = values * 255
    elif low >= 0 and 255 < high <= 65535 and values.dtype.kind != "f":
        values = values >> 8
    elif not (low >= 0 and high <= 255):  # also NaN
        raise ValueError(
            f"32-bit grey values from {low:g} to {high:g}: only 0 to 1, 0 to 255 and integers up "
            "to 65535 have a known meaning"
        )
    return Image.fromarray(values.astype(np.uint8))


def _is_constant(image: Image.Image) -> bool:
    low, high = np.reshape(image.getextrema(), (-1, 2)).T  # of each band
    return bool((low == high).all())


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not an image file, or its header is cut"
    if isinstance(error, _CutInTables):
        return "the file is truncated before its first scan"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
