"""Top-1 and top-5 accuracy and localization, which asks for the right class and the right box."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import InputError
from .box_result import BoxResult
from .evaluator import BoxEvaluator


def correct_classes(
    image_ids: Sequence[str],
    predictions: Mapping[str, Sequence[int]],
    labels: Mapping[str, int] | None,
) -> dict[str, np.ndarray]:
    """Return for each image whether its class is predicted correctly.

    Args:
        image_ids: ids of N images.
        predictions: the predicted classes of each image, best first.
        labels: the true class of each image; None raises the error that there are none.

    Returns:
        ``{"top1": (N,) bool, "top5": (N,) bool}``. There is no "top5" if an image has fewer than
        five predictions, unless it has one for each class.

    Raises:
        InputError: there are no labels, or an image (which is named) has no prediction.

    Example:
        >>> from cba_fast.wsol import correct_classes
        >>> predictions = {"a.jpg": [1, 0], "b.jpg": [0, 1]}
        >>> correct_classes(["a.jpg", "b.jpg"], predictions, {"a.jpg": 1, "b.jpg": 1})
        {'top1': array([ True, False]), 'top5': array([ True,  True])}
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
    """Return top-1 and top-5 accuracy and localization in percent.

    Args:
        evaluator: the evaluated images, with the contour mode "largest".
        result: from `BoxEvaluator.compute`.
        correct: from :func:`correct_classes` for ``evaluator.table.index``.

    Returns:
        ``top1`` and ``top5``: share of images whose class is right. ``top1_localization`` and
        ``top5_localization``: share of images whose class and box are right, at the optimal
        threshold of MaxBoxAcc (IoU 0.5, largest contour). The top-5 values are None if `correct`
        has no "top5".

    Raises:
        InputError: the contour mode "largest" was not run.

    Example:
        >>> import numpy as np
        >>> from cba_fast.data import load_boxes, map_name, read_predictions
        >>> from cba_fast.wsol import BoxEvaluator, classification_scores, correct_classes
        >>> boxes = load_boxes(cub_root="CUB_200_2011")
        >>> evaluator = BoxEvaluator(boxes)
        >>> maps = [np.load(f"maps/{map_name(i)}") for i in boxes.image_ids]
        >>> evaluator.update(maps, boxes.image_ids)
        >>> predictions = read_predictions("predictions.csv")
        >>> correct = correct_classes(evaluator.table.index, predictions, boxes.labels)
        >>> scores = classification_scores(evaluator, evaluator.compute(), correct)
        >>> print(f"{scores['top1']:.1f} {scores['top1_localization']:.1f}")
        83.3 83.3
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
