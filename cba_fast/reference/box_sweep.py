"""The specification of the box sweep: boxes of thresholded score maps, by OpenCV, and their IoU.

Source: Choe et al., Evaluating Weakly Supervised Object Localization Methods Right, CVPR 2020
(clovaai/wsolevaluation). The boxes and the float64 IoU equal those of its evaluator.
"""

import cv2
import numpy as np


def boxes_at(u: np.ndarray, threshold: float, contours: str) -> np.ndarray:
    """Return the boxes of the contours of one map at one threshold.

    The mask is u > int(threshold * max u). A contour with the bounding rectangle x, y, w, h has the
    box x, y, min(x + w, W - 1), min(y + h, H - 1). A mask without contour has the box 0, 0, 0, 0.

    Args:
        u: (H, W) uint8.
        threshold: in [0, 1).
        contours: ``"largest"`` for the contour of largest area (the first of equals), or ``"all"``.

    Returns:
        (K, 4) int32: x0, y0, x1, y1, inclusive; K = 1 for ``"largest"``.
    """
    height, width = u.shape
    mask = (u > int(threshold * int(u.max()))).astype(np.uint8)
    # OpenCV 3 returns (image, contours, hierarchy), later versions (contours, hierarchy).
    found = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
    if len(found) == 0:
        return np.zeros((1, 4), np.int32)
    if contours == "largest":
        found = [max(found, key=cv2.contourArea)]
    boxes = []
    for contour in found:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
    return np.asarray(boxes, np.int32)


def box_sweep(scoremaps: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the box of the largest contour of each map (N, H, W) at each threshold: (N, T, 4)."""
    boxes = [boxes_at(u, t, "largest") for u in scoremaps for t in thresholds]
    return np.asarray(boxes, np.int32).reshape(len(scoremaps), len(thresholds), 4)


def box_sweep_all(scoremaps: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all boxes (M, 4), sorted for each map and threshold, and offsets (N*T+1,) int64."""
    sets = [boxes_at(u, t, "all") for u in scoremaps for t in thresholds]
    sets = [boxes[np.lexsort(boxes.T[::-1])] for boxes in sets]
    offsets = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    return np.concatenate([np.empty((0, 4), np.int32), *sets]), offsets


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (K, 4) and (G, 4) with inclusive corners: (K, G) float64.

    IoU = I / (A + B - I) with the areas (x1 - x0 + 1) * (y1 - y0 + 1). As in the official
    evaluator it is 0 where the denominator is not positive, which boxes with x0 <= x1 and y0 <= y1
    never cause.
    """
    a, b = a.astype(np.int64)[:, None], b.astype(np.int64)[None]
    x0, y0 = np.maximum(a[..., 0], b[..., 0]), np.maximum(a[..., 1], b[..., 1])
    x1, y1 = np.minimum(a[..., 2], b[..., 2]), np.minimum(a[..., 3], b[..., 3])
    intersection = np.maximum(0, x1 - x0 + 1) * np.maximum(0, y1 - y0 + 1)
    area_a = (a[..., 2] - a[..., 0] + 1) * (a[..., 3] - a[..., 1] + 1)
    area_b = (b[..., 2] - b[..., 0] + 1) * (b[..., 3] - b[..., 1] + 1)
    union = area_a + area_b - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0.0)


def best_box_iou(
    scoremaps: np.ndarray,
    gt_boxes: np.ndarray,
    gt_offsets: np.ndarray,
    thresholds: np.ndarray,
    contours: str,
) -> np.ndarray:
    """Return each map's best IoU of an estimated and a true box at each threshold: (N, T) float64.

    The true boxes of map i are gt_boxes[gt_offsets[i] : gt_offsets[i + 1]].
    """
    iou = np.zeros((len(scoremaps), len(thresholds)))
    for i, u in enumerate(scoremaps):
        truth = gt_boxes[gt_offsets[i] : gt_offsets[i + 1]]
        for j, t in enumerate(thresholds):
            iou[i, j] = box_iou(boxes_at(u, t, contours), truth).max()
    return iou
