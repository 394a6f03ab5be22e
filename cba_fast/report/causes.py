"""Why a predicted box does not fit: the causes of failures in the literature of localization."""

from dataclasses import dataclass

import numpy as np

PART_INSIDE = 0.5  # share of the predicted box that lies within the object
MORE_COVERED = 0.7  # share of the object that lies within the predicted box
MANY_COVERED = 0.3  # the same, of each of several objects

HIT = "localized"
MANY, PART, MORE, ELSEWHERE = "several objects", "part only", "too large", "wrong place"
# In the order in which they are tried: the first that applies is the cause.
DEFINITIONS = {
    HIT: "The IoU of the predicted box and a true box reaches the IoU threshold.",
    MANY: f"The box covers more than {MANY_COVERED:.0%} of each of two or more true boxes.",
    PART: f"More than {PART_INSIDE:.0%} of the box lies within a true box: it is too small.",
    MORE: f"The box covers more than {MORE_COVERED:.0%} of a true box: it holds background, too.",
    ELSEWHERE: "None of these: the box lies beside the object, or the map has no box.",
}
SOURCE = (
    'The kinds of errors follow Gao et al. 2021, "TS-CAM: Token Semantic Coupled Attention Map"; '
    "the limits are this package's. The first that applies, in this order, is the cause; shares "
    "are of areas, with both corners of a box included."
)


@dataclass(frozen=True)
class Judged:
    """How well a predicted box fits its image's true boxes.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the map.
        iou: the best IoU with a true box.
        cause: a key of `DEFINITIONS`.
    """

    box: tuple[int, int, int, int]
    iou: float
    cause: str


def judge(box: np.ndarray, truth: np.ndarray, iou_threshold: float) -> Judged:
    """Compare a predicted box (4,) with the true boxes (G, 4), as MaxBoxAcc does.

    Args:
        box, truth: x0, y0, x1, y1, integers in pixels of the map; both corners belong to a box.
        iou_threshold: the IoU from which the box counts as right.
    """
    both = np.vstack([box[None], truth]).astype(np.float64)
    areas = (both[:, 2:] - both[:, :2] + 1).prod(axis=1)
    low, high = np.maximum(both[0, :2], both[1:, :2]), np.minimum(both[0, 2:], both[1:, 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=1)
    iou = float((shared / (areas[0] + areas[1:] - shared)).max())
    covered, inside = shared / areas[1:], shared.max() / areas[0]
    if iou >= iou_threshold:
        cause = HIT
    elif np.count_nonzero(covered > MANY_COVERED) > 1:
        cause = MANY
    elif inside > PART_INSIDE:
        cause = PART
    elif covered.max() > MORE_COVERED:
        cause = MORE
    else:
        cause = ELSEWHERE
    x0, y0, x1, y1 = (int(v) for v in box)
    return Judged((x0, y0, x1, y1), iou, cause)
