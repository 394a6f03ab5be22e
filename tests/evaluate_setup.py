"""Images, boxes and arguments for the tests of ``evaluate``."""

import json

import numpy as np
from checkpoint_factory import SMALL_MODELS
from data_factory import metadata_folder, write_image

IDS = [f"{c}/{c}_{i}.v1.jpg" for c in ("auk", "jay", "owl") for i in range(3)]
SIZES = {i: (40 + n, 60 - 2 * n) for n, i in enumerate(IDS)}
BOXES = {i: [(3 + n, 5, 20 + 2 * n, 30 + n)] for n, i in enumerate(IDS)}
LABELS = {i: ("auk", "jay", "owl").index(i.split("/")[0]) for i in IDS}


def images_and_metadata(root):
    """Write images of seven of the nine ids, and metadata of all in an order that is not sorted."""
    order = [IDS[i] for i in (4, 1, 8, 0, 6, 2, 7, 3, 5)]
    for seed, image_id in enumerate(IDS[:7]):
        write_image(root / "images" / image_id, SIZES[image_id], seed)
    metadata_folder(root / "meta", {i: BOXES[i] for i in order}, SIZES, LABELS)
    return root


def model_arguments(weights):
    return [
        *("--model_family", "replknet", "--model", SMALL_MODELS["replknet"]),
        *("--fine_tuned_weight_name", weights, "--test_dataset", "images"),
        *("--input_size", 128, "--map_size", 48, "--batch_size", 3, "--num_workers", 0),
    ]


def read(path):
    return json.loads(path.read_text())


def save_maps(root, ids, side=30, official=False):
    for seed, image_id in enumerate(ids):
        m = np.random.default_rng(seed).random((side, side))
        folder, name = image_id.split("/")
        path = root / folder / (f"{name}.npy" if official else f"{name.split('.')[0]}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, m)
