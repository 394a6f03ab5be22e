"""Write small mask data sets as OpenImages has them, and score them as the official code does."""

from pathlib import Path

import cv2
import numpy as np
from data_factory import write_file


def mask_dataset(root: Path, n: int, seed: int = 0, size=(40, 30)) -> tuple[Path, Path, list[str]]:
    """Write metadata and masks of `n` images; return their folders and the ids.

    Images have one to three objects; every other one has an ignore mask, which overlaps objects.
    """
    rng = np.random.default_rng(seed)
    meta, masks = root / "meta", root / "masks"
    ids = [f"c/{i:03d}.jpg" for i in range(n)]
    lines = []
    for k, image_id in enumerate(ids):
        for obj in range(1 + k % 3):
            ignore = f"ignore/{k}.png" if k % 2 == 0 and obj == 0 else ""
            lines.append(f"{image_id},objects/{k}_{obj}.png,{ignore}")
            write_mask(masks / "objects" / f"{k}_{obj}.png", box_mask(rng, size, 3 * (obj + 1)))
        if k % 2 == 0:
            write_mask(masks / "ignore" / f"{k}.png", box_mask(rng, size, 10))
    write_file(meta / "image_ids.txt", "\n".join(ids))
    write_file(meta / "class_labels.txt", "\n".join(f"{i},0" for i in ids))
    write_file(meta / "localization.txt", "\n".join(lines))
    return meta, masks, ids


def box_mask(rng, size, extent: int) -> np.ndarray:
    """Return a mask (H, W) uint8 with a box of 1s and 255s: every value above 0 is set."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    x, y = rng.integers(0, width - extent), rng.integers(0, height - extent)
    mask[y : y + extent, x : x + extent] = rng.choice([1, 255], (extent, extent))
    return mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask as PNG."""
    write_file(path, cv2.imencode(".png", mask)[1].tobytes())


def official_pxap(maps, image_ids, meta: Path, mask_root: Path, interval: float, size: int = 224):
    """Score as MaskEvaluator does: NumPy histograms over the scores of true and false pixels."""
    paths, ignores = {}, {}
    for line in (meta / "localization.txt").read_text().splitlines():
        image_id, mask, ignore = line.split(",")
        paths.setdefault(image_id, []).append(mask)
        ignores.setdefault(image_id, ignore)
    edges = np.append(np.arange(0, 1, interval), [1.0, 2.0, 3.0])
    hist = {True: np.zeros(len(edges) - 1), False: np.zeros(len(edges) - 1)}

    def load(path):
        grey = np.float32(cv2.imread(str(mask_root / path), cv2.IMREAD_GRAYSCALE))
        return cv2.resize(grey, (size, size), interpolation=cv2.INTER_NEAREST) > 0.5

    for m, image_id in zip(maps, image_ids):
        m = np.asarray(m, np.float64)
        truth = np.stack([load(p) for p in paths[image_id]]).any(axis=0)
        ignored = np.zeros_like(truth)
        if ignores[image_id]:
            ignored = load(ignores[image_id]) & ~truth
        hist[True] += np.histogram(m[truth & ~ignored], bins=edges)[0]
        hist[False] += np.histogram(m[~truth & ~ignored], bins=edges)[0]
    tp, fp = hist[True][::-1].cumsum(), hist[False][::-1].cumsum()
    fn = hist[True].sum() - tp
    with np.errstate(invalid="ignore"):
        precision, recall = tp / (tp + fp), tp / (tp + fn)
    return (precision[1:] * np.diff(recall))[(tp + fp != 0)[1:]].sum() * 100
