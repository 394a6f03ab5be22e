"""The command ``generate-heatmap``: make and store score maps and overlays of an image set."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from .. import files, locks, resume
from ..data import ImageRecord, ImageSet, map_names, read_image
from ..data.reading import cut
from ..data.score_store import is_store
from ..data.textlines import counted, some
from ..errors import InputError
from ..shapes import map_shape
from ..short import Short
from ..stages import stage
from ..threads import Crew
from ..wsol import Localization
from .inference import iter_localizations, load_model, open_images, report_on
from .outputs import MANIFEST, NpyFolder, OverlayFolder, StoreFolder, describe_run
from .ranks import ALONE, Ranks
from .resolve import resolve
from .runtime import Runtime
from .settings import DataConfig, MapConfig, ModelConfig, RunConfig, settings

MOST_THREADS = 8  # that draw and write


@dataclass(repr=False)
class GenerateResult(Short):
    """Where the results of a run are.

    Attributes:
        map_folder: the folder of the maps, or the store that took them.
        overlay_folder: the folder of the overlays; None without them.
        made, kept: how many maps were made now, and how many existed before.
        notes: lines on constant maps and on truncated and unreadable images.
        source: the folder that was read.
    """

    map_folder: Path
    overlay_folder: Path | None
    made: int
    kept: int
    notes: list[str]
    source: str = ""


def map_folder(heatmap_output: Path) -> Path:
    """Return the folder of the score maps: ``np_`` before the last component of the output."""
    return heatmap_output.parent / f"np_{heatmap_output.name}"


@locks.released()
def generate_heatmaps(
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    maps: MapConfig,
    heatmap_output: Path,
    *,
    overwrite: bool = False,
    overlay: bool = True,
    store: Path | None = None,
    progress: Callable | None = None,
    ranks: Ranks = ALONE,
) -> GenerateResult:
    """Make and store the maps of an image set.

    Maps are written to ``np_<output>/<folder>/<stem>.npy``, (H, W) float64 in [0, 1], or as bytes
    to `store`; with `overlay`, pictures are written to ``<output>/heatmap_%07d.png``, numbered in
    data set order.

    Args:
        model_config, data, run, maps: settings; gaps are filled by `cba_fast.runs.resolve`.
        heatmap_output: the folder of the overlays.
        overwrite: start anew and replace what an earlier run wrote. Otherwise a run with the same
            settings, weights and images is continued, and any other is refused.
        overlay: write the overlays too.
        store: the folder of a store for the maps, instead of ``np_<output>``; see
            `cba_fast.data.score_store`.
        progress: called with an iterable of batches and their number, returns an iterable.
        ranks: from `cba_fast.runs.ranks.join` where several processes share the images; each of
            them returns the result.

    Raises:
        InputError: bad settings or folders; see `open_images`.
        OtherRunError: another run wrote there; see `resume.Outputs.check`.
        BusyError: another run is writing there.
        CheckpointError: the weights cannot be loaded.
        ImageError: no image could be read, or one could not with `run.strict`.
        OSError: a file cannot be written; what was written before stays.
    """
    found = resolve(model_config, data)
    model_config, data = found.model, found.data
    images, maps = open_images(data), maps.at(data.input_size)
    names = map_names(images.records, maps.map_names)
    if maps.target == "label":
        images = replace(images, records=tuple(found.labelled(images.records, images)))
    ranks.agree(images.records, model_config.weights)
    runtime = Runtime.of(run)
    model = load_model(model_config, runtime, data.input_size, keep_layers=maps.layer is not None)
    described = _described(images, model_config, data, run, maps)
    shape = map_shape(maps.map_size)
    outputs = _open_outputs(images, names, heatmap_output, overlay, described, store, shape)
    # One process looks, because folders on other machines may be seen later there.
    overwrite = ranks.from_first(lambda: ranks.anew(overwrite, outputs.written))
    present = ranks.from_first(lambda: outputs.claim(overwrite))
    batches = cut(range(len(images)), run.batch_size)
    left = [batch for batch in batches if not all(outputs.are_in(present, i) for i in batch)]
    kept = len(images) - sum(map(len, left))
    todo = ranks.mine(left)
    report = report_on(images.records, run.strict)
    decoded: dict[int, np.ndarray] | None = {} if overlay else None
    located = iter_localizations(model, images.records, data, runtime, maps, report, todo, decoded)
    # Files of an earlier run are cleared only when the first maps have been made, so that a run
    # that fails at its start does not cost them.
    first = list(itertools.islice(located, 1))
    ranks.merged(report).check_any(kept + sum(ranks.share(len(first))))
    if ranks.leads:
        outputs.prepare(overwrite)
    ranks.share("prepared")
    results = itertools.chain(first, located)
    results = progress(results, len(todo)) if progress else results
    made, constant = _store(results, outputs, decoded, runtime)
    stored = ranks.share((made, constant))
    made, empty = sum(n for n, _ in stored), {i for _, constant in stored for i in constant}
    constant = [r.image_id for r in images.records if r.image_id in empty]
    notes = constant_lines(constant) + ranks.merged(report).lines()
    drawn = heatmap_output if overlay else None
    return GenerateResult(outputs.maps.root, drawn, made, kept, notes, images.source)


def _described(
    images: ImageSet, model: ModelConfig, data: DataConfig, run: RunConfig, maps: MapConfig
) -> dict:
    """Return the record of everything that the maps depend on; a continued run must have it too."""
    how = ("batch_size", "precision", "channels_last", "compile")
    kept = settings(model, data, maps) | {name: getattr(run, name) for name in how}
    described = describe_run(kept, model.weights, images.records)
    if maps.target == "label":  # of the ground truth, which may have changed
        labels = [record.label for record in images.records]
        described["inputs"]["labels"] = resume.values_fingerprint(labels)
    return described


@dataclass
class _Outputs:
    """The two folders of a run: `maps`, and `overlays`, which are written if `drawn`."""

    records: tuple[ImageRecord, ...]
    maps: NpyFolder | StoreFolder
    overlays: OverlayFolder
    drawn: bool

    @property
    def written(self) -> list[OverlayFolder | NpyFolder | StoreFolder]:
        return [self.maps, self.overlays] if self.drawn else [self.maps]

    def are_in(self, present: set[str], index: int) -> bool:
        return all(folder.names[index] in present for folder in self.written)

    def claim(self, overwrite: bool) -> set[str]:
        """Check and lock the folders; return the files of this run that are already there."""
        present = [folder.check(overwrite) for folder in self.written]
        for folder in self.written:
            folder.hold()
        return set().union(*present)

    def prepare(self, overwrite: bool) -> None:
        for folder in self.written:
            folder.prepare(overwrite)
        if not self.drawn and overwrite:
            self.overlays.discard()  # they belong to the maps that were just cleared


def _open_outputs(
    images: ImageSet,
    names: list[str],
    heatmap_output: Path,
    overlay: bool,
    described: dict,
    store: Path | None,
    shape: tuple[int, int],
) -> _Outputs:
    for folder in (heatmap_output.resolve(), *heatmap_output.resolve().parents):
        if is_store(folder) or (store is not None and folder == store.resolve()):
            raise InputError(f"{heatmap_output}: {folder} is a store of maps, not for overlays")
    overlays = [f"heatmap_{i:07d}.png" for i in range(len(names))]
    maps: NpyFolder | StoreFolder
    if store is None:
        maps = NpyFolder(map_folder(heatmap_output), names, described, shape)
    else:
        maps = StoreFolder(store, names, described, shape)
    drawn = OverlayFolder(heatmap_output / MANIFEST, overlays, described)
    for folder in (maps.root, drawn.root):
        if images.kind == "imagefolder" and folder.resolve().is_relative_to(images.root.resolve()):
            raise InputError(
                f"{folder} lies in the folder of the images, {images.root}, where it would be "
                "taken for a class; choose another `heatmap_output` or `store`"
            )
    return _Outputs(images.records, maps, drawn, overlay)


def _store(
    results: Iterable[tuple[list[int], Localization]],
    outputs: _Outputs,
    decoded: dict[int, np.ndarray] | None,
    run: Runtime,
) -> tuple[int, list[str]]:
    """Write maps and overlays; return their number and the ids of images with constant maps.

    Several threads draw and write. Beside a model on the CPU they would only take its cores, so
    they finish a batch before the next one begins; beside a GPU they may be a batch behind.

    Args:
        results: the maps.
        outputs: where they go.
        decoded: the pixels of images that need not be read again to draw them.
        run: the number of threads, and where the model computes.
    """
    made, constant = 0, []
    with outputs.maps.writing() as write_map, Crew(min(run.threads, MOST_THREADS)) as crew:

        def write(index: int, score_map: np.ndarray, pixels: np.ndarray | None) -> None:
            with stage("write"):
                write_map(index, score_map)
            if outputs.drawn:
                path = outputs.overlays.root / outputs.overlays.names[index]
                write_overlay(path, outputs.records[index], score_map, pixels)

        for indices, result in results:
            for index, score_map in zip(indices, result.maps, strict=True):
                crew.give(write, index, score_map, (decoded or {}).pop(index, None))
            constant += [outputs.records[i].image_id for i, c in zip(indices, result.constant) if c]
            made += len(indices)
            crew.catch_up(behind=0 if run.device.type == "cpu" else len(indices))
            # What is left of this batch has no map.
            if decoded is not None:
                for index in [i for i in decoded if i <= indices[-1]]:
                    del decoded[index]
    return made, constant


def constant_lines(image_ids: list[str]) -> list[str]:
    """Return a note on images whose map is constant and was stored as zeros, if there are any."""
    if not image_ids:
        return []
    maps = counted(len(image_ids), "constant map")
    return [f"{maps} stored as zeros: {some(image_ids, 20)}"]


def write_overlay(
    path: Path, record: ImageRecord, score_map: np.ndarray, pixels: np.ndarray | None = None
) -> None:
    """Write an image at its own size with its score map in OpenCV's JET colours over it.

    As in the study, the picture is 0.8 * colours + image, scaled so that its largest value is 255.

    Args:
        path: the PNG file.
        record: the image.
        score_map: (H, W) float64 in [0, 1], of any size.
        pixels: the image's pixels (H, W, 3) uint8; None to read its file.
    """
    if pixels is None:
        with stage("decode"):
            pixels = np.asarray(read_image(record.path)[0])
    with stage("overlay"):
        png = encoded_overlay(pixels, score_map)
    if png is None:
        raise OSError(f"{path}: the overlay could not be encoded as PNG")
    with stage("write"):
        files.write_bytes(path, png, durable=False)


def encoded_overlay(pixels: np.ndarray, score_map: np.ndarray) -> bytes | None:
    """Return the PNG file of an overlay, see `write_overlay`, or None if OpenCV cannot make it."""
    bgr = pixels[:, :, ::-1]
    resized = cv2.resize(score_map, (bgr.shape[1], bgr.shape[0]))
    colours = cv2.applyColorMap((resized * 255).astype(np.uint8), cv2.COLORMAP_JET)
    # Computed in place, because new arrays of this size cost more than the arithmetic.
    mixed = 0.8 * colours
    mixed += bgr
    largest = max(mixed.max(), 1)
    mixed *= 255
    mixed /= largest
    ok, png = cv2.imencode(".png", mixed.astype(np.uint8))
    return png.tobytes() if ok else None
