"""``pixel-eval``: score stored maps against masks (PxAP)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data.masks import OFFICIAL_SIZE, load_masks
from ..shapes import Size
from ..wsol import MapReading, PixelEvaluator, PixelResult, find_maps, open_maps, read_maps
from ..wsol.map_reading import ambiguous_lines, prefetch


@dataclass(frozen=True)
class PixelConfig:
    """Which masks, and the protocol of the score."""

    mask_root: Path
    metadata_root: Path
    dataset_name: str | None = None
    split: str | None = None
    cam_curve_interval: float = 0.01
    eval_size: Size = None
    resize_maps: bool = False
    missing_as_miss: bool = False
    clip: float = 0.0


def score_pixels(
    np_root: Path,
    config: PixelConfig,
    progress: Callable | None = None,
    num_workers: int = 2,
) -> tuple[PixelResult, list[str]]:
    """Score stored maps against masks.

    Args:
        np_root: a folder with ``<class>/<stem>.npy`` or ``<image_id>.npy``; maps of 224x224 pixels,
            or of the `eval_size` asked for, to which the masks are resized then.
        config: ground truth and protocol.
        progress: called with an iterable and its length, returns an iterable.
        num_workers: threads that read maps and masks.

    Returns:
        The result, and notes on what was noticed.

    Raises:
        ScoreMapError: a map that is not valid, a store (it holds no scores), or no folder.
        ImageError: a mask that cannot be read.
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

    # The masks are files, too: they are read ahead in the order of the maps.
    read_masks = prefetch(masks.read, found, num_workers)
    for ids, maps in read_maps(source, found, reading, progress):
        evaluator.update(maps, ids, [next(read_masks) for _ in ids])
    result = evaluator.compute(missing_as_miss=config.missing_as_miss)
    return result, ambiguous_lines(source)
