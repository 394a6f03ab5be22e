"""Write small data sets for tests: class folders, a CUB_200_2011 folder, official metadata."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# (class folder, file name, width, height, x, y, w, h, is training); boxes have fractions on purpose
CUB_IMAGES = (
    ("001.Red_Finch", "Finch_0002.jpg", 40, 30, 3.0, 4.0, 20.0, 15.0, 1),
    ("001.Red_Finch", "Finch_0001.jpg", 32, 48, 0.6, 10.7, 20.7, 30.6, 0),
    ("002.Grey_Jay", "Jay_0010.jpg", 50, 50, 10.5, 10.5, 10.5, 10.5, 0),
    ("002.Grey_Jay", "Jay_0007.jpg", 24, 24, 1.0, 1.0, 22.0, 22.0, 1),
    ("003.Wren", "Wren_0001.jpg", 36, 28, 5.0, 5.0, 30.9, 22.9, 0),
)
CUB_CLASSES = ("001.Red_Finch", "002.Grey_Jay", "003.Wren")


def image_bytes(
    size=(32, 24), seed: int = 0, fmt: str = "JPEG", mode: str = "RGB", **save
) -> bytes:
    """Return a small noise image of `size` (width, height) in any Pillow format and mode."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, fmt, **save)
    return out.getvalue()


def write_file(path: Path, data: bytes | str) -> Path:
    """Write `data`, making folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_image(path: Path, size=(32, 24), seed: int = 0, **kwargs) -> Path:
    """Write a small noise image; the format follows the suffix unless `fmt` is given."""
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".tif": "TIFF"}
    kwargs.setdefault("fmt", formats.get(path.suffix.lower(), "PNG"))
    return write_file(path, image_bytes(size, seed, **kwargs))


def image_folder(root: Path, names: Sequence[str] = ("a/1.jpg", "a/2.jpg", "b/1.jpg")) -> Path:
    """Write class folders with one small image per name."""
    for seed, name in enumerate(names):
        write_image(root / name, seed=seed)
    return root


def cub_folder(root: Path, images: Sequence[tuple] = CUB_IMAGES) -> Path:
    """Write a CUB_200_2011 folder with the images and lists of `images` (see `CUB_IMAGES`)."""
    for seed, (folder, name, width, height, *_) in enumerate(images):
        write_image(root / "images" / folder / name, (width, height), seed)
    rows = list(enumerate(images, 1))
    lines = {
        "images.txt": [f"{i} {r[0]}/{r[1]}" for i, r in rows],
        "image_class_labels.txt": [f"{i} {CUB_CLASSES.index(r[0]) + 1}" for i, r in rows],
        "train_test_split.txt": [f"{i} {r[8]}" for i, r in rows],
        "bounding_boxes.txt": [f"{i} {r[4]} {r[5]} {r[6]} {r[7]}" for i, r in rows],
        "classes.txt": [f"{i} {name}" for i, name in enumerate(CUB_CLASSES, 1)],
    }
    for name, text in lines.items():
        write_file(root / name, "\n".join(text) + "\n")
    return root


def metadata_folder(
    root: Path,
    boxes: Mapping[str, Sequence[tuple[int, int, int, int]]],
    sizes: Mapping[str, tuple[int, int]],
    labels: Mapping[str, int],
) -> Path:
    """Write the four files of wsolevaluation's metadata; the ids are the keys of `boxes`."""
    rows = {
        "image_ids.txt": list(boxes),
        "class_labels.txt": [f"{i},{label}" for i, label in labels.items()],
        "image_sizes.txt": [f"{i},{w},{h}" for i, (w, h) in sizes.items()],
        "localization.txt": [
            f"{i},{x0},{y0},{x1},{y1}" for i, many in boxes.items() for x0, y0, x1, y1 in many
        ],
    }
    for name, lines in rows.items():
        write_file(root / name, "\n".join(lines) + "\n")
    return root


def cub_archive(path: Path, cub_root: Path, prefix: str = "CUB_200_2011") -> Path:
    """Pack a CUB folder as CUB_200_2011.tgz is packed: beside a file attributes.txt."""
    with tarfile.open(path, "w:gz") as tar:
        add_member(tar, "attributes.txt", b"1 has_bill_shape::curved\n")
        tar.add(cub_root, prefix)
    return path


def add_member(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    """Add a member of any name and type (`fields` are attributes of TarInfo)."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def edit_lines(path: Path, edit) -> None:
    """Replace the lines of a text file by ``edit(lines)``."""
    path.write_text("".join(f"{line}\n" for line in edit(path.read_text().splitlines())))
