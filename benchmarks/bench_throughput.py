"""Images per second of whole commands against the study's scripts, and of reading images.

    python benchmarks/bench_throughput.py maps --images DIR         # generate-heatmap
    python benchmarks/bench_throughput.py evaluate --images DIR     # against both scripts
    python benchmarks/bench_throughput.py loader --images DIR       # loader against decoder
    python benchmarks/bench_throughput.py decoders --images DIR     # JPEG decoders

The study's way, written anew from the definitions: one image after the other is opened with Pillow
and transformed, goes through the model with PyTorch's own convolutions in NCHW, its CAM is computed
in NumPy, and overlay and map are written; the second script reads each map and takes boxes at every
threshold with OpenCV. Both ways use one model with random weights; loading it is not timed. Results
are compared first. Then the ways take turns. `--record` adds a line to ``benchmarks/results/``.
"""

import argparse
import itertools
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from cba_fast.bench.model_contest import create, plain
from cba_fast.bench.records import add_record, device_slug, machine
from cba_fast.data import ImageDataset, load_boxes, open_image_set, read_image, study_transform
from cba_fast.data.reading import Report, cut, read_batches, resize_to_bytes
from cba_fast.process import keep_freed_memory
from cba_fast.reference.box_sweep import best_box_iou, box_iou, boxes_at
from cba_fast.runs import evaluate as evaluating
from cba_fast.runs import generate as generating
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.scoring.boxes import score_folder
from cba_fast.runs.settings import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig
from cba_fast.stages import profiled

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from data_factory import metadata_folder, write_image

RESULTS = Path(__file__).parent / "results"
BIGGER = 0.02  # the largest share of pixels that may differ by more than 2 of 255 levels
CLASSES = 20


def study_maps(model: nn.Module, records, size: int, out: Path) -> None:
    """Write maps and overlays as the study's first script does."""
    transform = study_transform(size)
    weight = model.get_classifier().weight.detach().numpy()
    for number, record in enumerate(records):
        image = Image.open(record.path).convert("RGB")
        with torch.no_grad():
            features = model.forward_features(transform(image)[None])
            logits = model.forward_head(features)
        target = int(logits.argmax())
        weighted = weight[target][:, None, None] * features[0].numpy()
        small = np.maximum(weighted.mean(axis=0), 0)
        small = cv2.resize(small / small.max(), (size, size))
        u = np.uint8(255 * small).astype(np.float64)
        score_map = (u - u.min()) / (u.max() - u.min())
        picture = cv2.cvtColor(np.array(Image.open(record.path).convert("RGB")), cv2.COLOR_RGB2BGR)
        heat = cv2.resize(score_map, (picture.shape[1], picture.shape[0]))
        mixed = 0.8 * cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET) + picture
        overlay = np.uint8(255 * mixed / mixed.max())
        cv2.imwrite(str(out / f"heatmap_{number:07d}.png"), overlay)
        path = out / "np" / Path(record.image_id).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, score_map)


def study_scores(records, root: Path, boxes, thresholds: np.ndarray) -> np.ndarray:
    """Return how many images count at each threshold, as the study's second script finds it."""
    correct = np.zeros(len(thresholds), np.int64)
    for record in records:
        score_map = np.load(root / Path(record.image_id).with_suffix(".npy"))
        u = np.uint8(255 * score_map)
        truth = boxes.scaled(record.image_id, u.shape[::-1])
        offsets = np.array([0, len(truth)])
        correct += best_box_iou(u[None], truth, offsets, thresholds, "largest")[0] >= 0.5
    return correct


class Job:
    """One model, some images with boxes, and both ways to make and score their maps."""

    def __init__(self, args, folder: Path):
        self.size, self.folder = args.input_size, folder
        images = open_image_set(args.images)
        self.records = images.records[: args.count]
        for record in self.records:  # in a folder that holds no others
            copy = folder / "images" / record.image_id
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path, copy)
        self.records = open_image_set(folder / "images").records
        sizes = {r.image_id: Image.open(r.path).size for r in self.records}
        # Boxes of the whole image, which the maps of random weights reach at low thresholds.
        whole = {i: [(0, 0, w - 1, h - 1)] for i, (w, h) in sizes.items()}
        labels = {r.image_id: r.label for r in self.records}
        metadata_folder(folder / "meta", whole, sizes, labels)
        self.boxes = BoxConfig(metadata_root=folder / "meta", cam_curve_interval=args.interval)
        self.run = RunConfig(args.batch_size, args.workers, "cpu", args.precision)
        self.data = DataConfig(str(folder / "images"), input_size=args.input_size)
        self.model_config = ModelConfig(name=args.model)
        model = create(args.model)
        self.theirs = plain(model)
        self.ours = Runtime.of(self.run).form_of(model)

    def study(self, scored: bool) -> np.ndarray | None:
        """Run the study's scripts: the first one alone, or both."""
        shutil.rmtree(self.folder / "study", ignore_errors=True)
        (self.folder / "study").mkdir()
        study_maps(self.theirs, self.records, self.size, self.folder / "study")
        if not scored:
            return None
        boxes = load_boxes(metadata_root=self.folder / "meta")
        thresholds = np.arange(0, 1, self.boxes.cam_curve_interval)
        return study_scores(self.records, self.folder / "study" / "np", boxes, thresholds)

    def command(self, scored: bool):
        """Run `generate-heatmap`, or `evaluate`, without loading the model."""
        for name in ("ours", "np_ours"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        given = (self.model_config, self.data, self.run, MapConfig())
        with ExitStack() as stack:
            for module in (generating, evaluating):
                loaded = mock.patch.object(module, "load_model", return_value=self.ours)
                stack.enter_context(loaded)
            if scored:
                return evaluating.evaluate(*given, self.boxes, num_samples=0)
            return generating.generate_heatmaps(*given, self.folder / "ours")

    def check(self) -> dict:
        """Compare the maps, the overlays and the scores of both ways.

        Raises:
            SystemExit: they differ by more than rounding.
        """
        counts = self.study(scored=True)
        self.command(scored=False)
        bigger, ious = [], []
        for record in self.records:
            name = Path(record.image_id).with_suffix(".npy")
            pair = [np.load(self.folder / where / name) for where in ("study/np", "np_ours")]
            bigger.append(float((abs(pair[0] - pair[1]) > 2 / 255).mean()))
            boxes = [boxes_at(np.uint8(255 * m), 0.5, "largest") for m in pair]
            ious.append(float(box_iou(*boxes)[0, 0]))
        for number, record in enumerate(self.records):
            name = f"heatmap_{number:07d}.png"
            score_map = np.load(self.folder / "np_ours" / Path(record.image_id).with_suffix(".npy"))
            pixels = np.asarray(read_image(record.path)[0])
            drawn = generating.encoded_overlay(pixels, score_map)
            if (self.folder / "ours" / name).read_bytes() != drawn:
                raise SystemExit(f"{name} is not the overlay of its map")
        # The same maps must have the same scores; the maps of one's own may round otherwise.
        same = score_folder(self.folder / "study" / "np", self.boxes).result
        if same.modes["largest"].num_correct[same.iou_thresholds.index(0.5)] != counts.tolist():
            raise SystemExit("the scores of the study's maps differ")
        result = self.command(scored=True).result
        mine = np.array(result.modes["largest"].num_correct[result.iou_thresholds.index(0.5)])
        found = {
            "pixels_off_by_more_than_2": {
                "mean": round(statistics.mean(bigger), 4),
                "most": round(max(bigger), 4),
            },
            "iou_of_boxes_at_threshold_0.5": {
                "median": round(statistics.median(ious), 4),
                "least": round(min(ious), 4),
                "equal": ious.count(1.0),
            },
            "right_at_best_threshold": {"study": int(counts.max()), "ours": int(mine.max())},
        }
        if self.run.precision == "fp32" and max(bigger) > BIGGER:
            raise SystemExit(f"the maps differ: {found}")
        return found


def turns(ways: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way; they take turns, in changing order."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    orders = itertools.cycle(itertools.permutations(ways))
    for _, order in zip(range(rounds), orders):
        for name in order:
            start = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def commands(args, folder: Path, scored: bool) -> dict:
    """Time a command against the study's scripts."""
    job = Job(args, folder)
    found = job.check()
    ways = {"study": lambda: job.study(scored), "ours": lambda: job.command(scored)}
    seconds = turns(ways, args.rounds)
    with profiled() as profile:
        job.command(scored)
    for line in profile.lines():
        print(line)
    count = len(job.records)
    return {
        "images": count,
        "images_per_s": {name: round(count / s, 3) for name, s in seconds.items()},
        "times_as_fast": round(seconds["study"] / seconds["ours"], 2),
        "checked": found,
        "profile": profile.to_json(),
    }


def decode_some(paths, size: int | None) -> None:
    """Decode images, and resize them if `size` is given, and keep nothing."""
    torch.set_num_threads(1)
    resize = resize_to_bytes(size) if size else None
    for path in paths:
        image = read_image(path)[0]
        if resize:
            resize(image)


def loader(args, folder: Path) -> dict:
    """Compare the loader with as many processes that decode, or decode and resize, and no more."""
    images = itertools.cycle(open_image_set(args.images).records)
    records = list(itertools.islice(images, args.count))
    dataset = ImageDataset(records, args.input_size, resize_to_bytes(args.input_size))
    kept = ImageDataset(records, args.input_size, resize_to_bytes(args.input_size), keep=True)
    batches = cut(range(len(records)), args.batch_size)
    context = multiprocessing.get_context("fork")

    def load(source, threads: bool) -> None:
        how = {"num_workers": args.workers, "threads": threads}
        for _ in read_batches(source, batches, Report(), **how):
            pass

    def decode(size: int | None) -> None:
        paths = [r.path for r in records]
        some = [paths[k :: args.workers] for k in range(args.workers)]
        workers = [context.Process(target=decode_some, args=(mine, size)) for mine in some]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    seconds = turns(
        {
            "decode": lambda: decode(None),
            "decode and resize": lambda: decode(args.input_size),
            "loader": lambda: load(dataset, threads=True),
            "loader that keeps pixels": lambda: load(kept, threads=True),
            "loader of processes": lambda: load(dataset, threads=False),
            "loader of processes that keeps pixels": lambda: load(kept, threads=False),
        },
        args.rounds,
    )
    rates = {name: round(len(records) / s, 1) for name, s in seconds.items()}
    share = seconds["decode and resize"] / seconds["loader"]
    return {"images": len(records), "images_per_s": rates, "share_of_decoder": round(share, 3)}


def jpeg_decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """Return functions from the bytes of a JPEG file to RGB pixels, of the libraries found."""
    from io import BytesIO

    from torchvision.io import ImageReadMode, decode_jpeg

    def torchvision(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()

    found = {
        "Pillow": lambda data: np.asarray(Image.open(BytesIO(data)).convert("RGB")),
        "torchvision": torchvision,
        "OpenCV": lambda data: cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        ),
    }
    try:
        import simplejpeg

        found["simplejpeg"] = lambda data: simplejpeg.decode_jpeg(data, "RGB")
    except ImportError:
        pass
    try:
        from turbojpeg import TJPF_RGB, TurboJPEG

        turbo = TurboJPEG()
        found["PyTurboJPEG"] = lambda data: turbo.decode(data, TJPF_RGB)
    except (ImportError, RuntimeError):
        pass
    return found


def decoders(args, folder: Path) -> dict:
    """Compare JPEG decoders: pixels with Pillow's, and milliseconds per image on one thread."""
    paths = [r.path for r in open_image_set(args.images).records][: args.count]
    files = [data for data in map(Path.read_bytes, paths) if data.startswith(b"\xff\xd8")]
    found, off = jpeg_decoders(), {}
    for name, decode in found.items():
        differences = [
            abs(decode(data).astype(int) - found["Pillow"](data).astype(int)).max()
            for data in files
        ]
        off[name] = int(max(differences))
    seconds = turns(
        {name: lambda d=decode: [d(data) for data in files] for name, decode in found.items()},
        args.rounds,
    )
    return {
        "images": len(files),
        "ms_per_image": {name: round(1e3 * s / len(files), 3) for name, s in seconds.items()},
        "largest_difference_from_pillow": off,
        "times_as_fast_as_pillow": {
            name: round(seconds["Pillow"] / s, 2) for name, s in seconds.items()
        },
    }


WHAT = {
    "maps": lambda args, folder: commands(args, folder, scored=False),
    "evaluate": lambda args, folder: commands(args, folder, scored=True),
    "loader": loader,
    "decoders": decoders,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--images", help="A folder of class folders; default: noise of 500x375.")
    parser.add_argument("--count", type=int, default=20, help="Number of images.")
    parser.add_argument("--model", default="replknet_31b", help="A model with a linear head.")
    parser.add_argument("--input_size", type=int, default=384)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--interval", type=float, default=0.001, help="Between thresholds.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="Add the result to results/.")
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do; the study's way gains from it, too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.images is None:
            args.images = str(folder / "noise")
            for i in range(args.count):
                path = folder / "noise" / f"{i % CLASSES:03}" / f"{i}.jpg"
                write_image(path, (500, 375), i)
        found = WHAT[args.what](args, folder)
    keys = ("model", "input_size", "precision", "batch_size", "workers", "interval")
    used = {k: getattr(args, k) for k in keys}
    names = {"maps": "generate-heatmap", "evaluate": "evaluate"}
    case = f"{args.what} {args.model} {args.input_size}" if args.what in names else args.what
    record = {"bench": "throughput", "case": case, "direction": names.get(args.what, "reading")}
    record |= {"dtype": args.precision, **used, **found}
    for key, value in record.items():
        print(f"{key:24}: {value}")
    if args.record:
        path = RESULTS / f"throughput_{device_slug()}.jsonl"
        add_record(path, {**record, "machine": machine()})


if __name__ == "__main__":
    main()
