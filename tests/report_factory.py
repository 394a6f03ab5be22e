"""Images, boxes and score maps of two runs, for the tests of reports."""

from pathlib import Path

import numpy as np
from data_factory import metadata_folder, write_image

EVIL = '<img src="http:x" onerror=alert(1)>&"'.replace("/", "")
CLASSES = ("001.Auk", EVIL, "003.Owl")


def report_data(root: Path, count: int = 12, side: int = 32) -> Path:
    """Write ``images/``, ``meta/`` and the maps ``sharp/`` and ``<wide>/`` below `root`.

    The maps of the second run are wider than the objects, some maps lie beside them, and the last
    image has two objects.
    """
    rng = np.random.default_rng(3)
    boxes, sizes, labels = {}, {}, {}
    y, x = np.mgrid[:side, :side] / side
    for n in range(count):
        image_id = f"{CLASSES[n % 3]}/img_{n}.jpg"
        labels[image_id] = n % 3
        sizes[image_id] = size = (60 + n, 48)
        cx, cy, half = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.25)
        corners = np.array([cx - half, cy - half, cx + half, cy + half]) * [*size, *size]
        boxes[image_id] = [tuple(corners.clip(0).astype(int).tolist())]
        if n == count - 1:
            boxes[image_id].append((0, 0, 8, 8))
        shift = 0.4 if n % 4 == 3 else 0.0
        for run, spread in (("sharp", 0.7), ("<wide>", 1.7)):
            d = (x - cx - shift) ** 2 + (y - cy) ** 2
            m = np.exp(-d / (2 * (half * spread * rng.uniform(0.6, 1.4)) ** 2))
            path = root / run / f"{image_id}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, (m / m.max()).astype(np.float32))
        write_image(root / "images" / image_id, size, n)
    metadata_folder(root / "meta", boxes, sizes, labels)
    return root
