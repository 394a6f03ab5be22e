"""Top-1 and top-5 accuracy and localization: the class and the box are right."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InputError
from .box_result import BoxResult
from .evaluator import BoxEvaluator


def correct_classes(
    image_ids: Sequence[str],
    predictions: Mapping[str, Sequence[int]],
    labels: Mapping[str, int] | None,
) -> dict[str, np.ndarray]:
    """Return whose class is predicted right.

    Args:
        image_ids: N images.
        predictions: the predicted classes of each image, best first.
        labels: the true class of each image.

    Returns:
        ``{"top1": (N,) bool, "top5": (N,) bool}``; without "top5" where an image has fewer than
        five predictions and fewer than there are classes.

    Raises:
        InputError: no labels, an image without a prediction (it is named), or an empty one.
    """
    if labels is None:
        raise InputError("the ground truth has no class labels (class_labels.txt)")
    for image_id in image_ids:
        if not len(predictions.get(image_id, ())):
            raise InputError(f"image {image_id!r} has a score map but no prediction")
    ranked = [list(predictions[i])[:5] for i in image_ids]
    truth = [labels[i] for i in image_ids]
    right = {"top1": np.array([t == r[0] for t, r in zip(truth, ranked, strict=True)], bool)}
    if all(len(r) >= min(5, max(labels.values()) + 1) for r in ranked):
        right["top5"] = np.array([t in r for t, r in zip(truth, ranked, strict=True)], bool)
    return right


def classification_scores(
    evaluator: BoxEvaluator, result: BoxResult, correct: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    """Return accuracies and localization in percent.

    Args:
        evaluator: the evaluated images, with the contour mode "largest".
        result: from `BoxEvaluator.compute`.
        correct: from :func:`correct_classes` for ``evaluator.table.index``.

    Returns:
        ``top1`` and ``top5``: share of images whose class is right; ``top1_localization`` and
        ``top5_localization``: and whose box is, at the optimal threshold of MaxBoxAcc (IoU 0.5,
        largest contour). Those of top-5 are None where `correct` has none.

    Raises:
        InputError: the contour mode "largest" was not run.
    """
    if "largest" not in result.modes:
        raise InputError("top-1 localization needs the contour mode 'largest'")
    at_half = result.iou_thresholds.index(0.5)
    threshold = result.modes["largest"].optimal_threshold[at_half]
    localized = evaluator.hits("largest", 0.5, threshold)
    scores: dict[str, float | None] = {}
    for name in ("top1", "top5"):
        right = correct.get(name)
        for key, mask in ((name, True), (f"{name}_localization", localized)):
            count = None if right is None else int(np.count_nonzero(right & mask))
            scores[key] = None if count is None else 100.0 * count / result.num_images
    return scores
