"""Images and their annotations: folders, CUB_200_2011, wsolevaluation metadata.

Public names are imported from here, each when it is first used, so that listing images and reading
boxes does not import torch.
"""

from ..lazy import exports

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
__getattr__, __dir__ = exports(__name__, _WHERE)
