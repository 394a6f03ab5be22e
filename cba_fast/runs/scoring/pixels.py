"""The command ``pixel-eval``: score stored maps against masks by PxAP."""

from collections.abc import Callable
from pathlib import Path

from ...choices import READERS
from ...data.masks import OFFICIAL_SIZE, load_masks
from ...threads import prefetch
from ...wsol import MapReading, PixelEvaluator, PixelResult, find_maps, open_maps, read_maps
from ...wsol.map_reading import ambiguous_lines
from ..settings import PixelConfig


def score_pixels(
    np_root: Path,
    config: PixelConfig,
    progress: Callable | None = None,
    num_workers: int = READERS,
) -> tuple[PixelResult, list[str]]:
    """Score stored maps against masks.

    Args:
        np_root: a folder with ``<class>/<stem>.npy`` or ``<image_id>.npy``. Maps must have 224x224
            pixels, or the `eval_size` of `config`, to which the masks are then resized.
        config: ground truth and protocol.
        progress: called with an iterable and its length, returns an iterable.
        num_workers: number of threads that read maps, and of those that read masks.

    Returns:
        The result, and lines to print at the end.

    Raises:
        ScoreMapError: a map is not valid, `np_root` is a store (whose bytes are no scores) or no
            folder.
        ImageError: a mask cannot be read.
        InputError: bad metadata, no image has a map, or two images share one.
    """
    size = config.eval_size or OFFICIAL_SIZE
    source = open_maps(np_root)
    masks = load_masks(
        config.metadata_root,
        config.mask_root,
        dataset_name=config.dataset_name,
        split=config.split,
        size=size,
    )
    evaluator = PixelEvaluator(masks, cam_curve_interval=config.cam_curve_interval)
    found = find_maps(source, masks.image_ids)
    reading = MapReading(
        size, config.resize_maps, as_bytes=False, workers=num_workers, clip=config.clip
    )

    # Masks are files as well, so they are also read ahead, in the order of the maps.
    read_masks = prefetch(masks.read, found, num_workers)
    for ids, maps in read_maps(source, found, reading, progress):
        evaluator.update(maps, ids, [next(read_masks) for _ in ids])
    result = evaluator.compute(missing_as_miss=config.missing_as_miss)
    return result, ambiguous_lines(source)
