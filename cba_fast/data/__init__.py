"""Images and their annotations: folders, CUB_200_2011, wsolevaluation metadata.

Public names are imported from here, each when it is first used, so that listing images and reading
boxes does not import torch.
"""

import importlib
from typing import Any

_WHERE = {
    "ImageRecord": "records",
    "ImageSet": "records",
    "map_name": "records",
    "map_names": "records",
    "open_image_set": "image_sets",
    "resolve_test_dataset": "image_sets",
    "read_image": "images",
    "ImageDataset": "reading",
    "study_transform": "reading",
    "Report": "reading",
    "read_batches": "reading",
    "erf_map_transform": "reading",
    "Boxes": "boxes",
    "load_boxes": "boxes",
    "model_labels": "labels",
    "read_class_names": "labels",
    "Masks": "masks",
    "load_masks": "masks",
    "ScoreStore": "score_store",
    "read_predictions": "predictions",
    "write_predictions": "predictions",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
