"""The accuracy of fixed boxes, which localize without looking at the image."""

from dataclasses import dataclass

import numpy as np

from ..data.boxes import Boxes


@dataclass(frozen=True)
class Baselines:
    """Shares of images, in percent, that a fixed box localizes at one IoU threshold.

    Attributes:
        full_image: the accuracy of the full image as the box.
        centred_box: the accuracy of the best centred box.
        centred_share: the share of width and height that this box covers, in (0, 1].
    """

    full_image: float
    centred_box: float
    centred_share: float


def fixed_box_baselines(boxes: Boxes, iou: float = 0.5) -> Baselines:
    """Score the full image and the best centred box against the ground truth.

    Centred boxes cover 1 %, 2 %, ... 100 % of width and height. An image counts if the largest IoU
    with one of its boxes reaches `iou`; the IoU counts pixels inclusively, at the image's own size.
    """
    shares = np.arange(1, 101) / 100  # [S]
    correct = np.zeros(len(shares))
    for image_id in boxes.image_ids:
        size = np.array(boxes.sizes[image_id], dtype=np.float64)
        margin = (size - 1) * (1 - shares[:, None]) / 2  # [S, 2]
        fixed = np.hstack([margin, size - 1 - margin])  # [S, 4]
        best = pairwise_iou(fixed, boxes.boxes[image_id].astype(np.float64)).max(axis=1)
        correct += best >= iou
    accuracy = 100 * correct / len(boxes.image_ids)
    best_share = int(accuracy.argmax())
    return Baselines(float(accuracy[-1]), float(accuracy[best_share]), float(shares[best_share]))


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inclusive IoU of boxes (A, 4) and (B, 4), x0 y0 x1 y1, as (A, B) float64."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low + 1, 0, None).prod(axis=2)
    area_a, area_b = ((c[:, 2:] - c[:, :2] + 1).prod(axis=1) for c in (a, b))
    return overlap / (area_a[:, None] + area_b[None, :] - overlap)
