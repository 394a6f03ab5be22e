"""Measurements of whole networks for `gpu_run.py`: features, receptive fields, an evaluation.

As in `gpu_measure`, each function yields records of JSON values, and results are checked first.
"""

from collections.abc import Callable, Iterator

import torch
from gpu_measure import CL
from torch import Tensor, nn

from cba_fast.bench.device_timing import timed
from cba_fast.bench.dwconv_contest import relative_error


def network(device: str, seconds: float = 2.0) -> Iterator[dict]:
    """Compare ways to compute RepLKNet-31B's features in bfloat16, for 64 images of 384 pixels."""
    from cba_fast.bench.model_contest import create

    name, size, batch = _network_of(device)
    model = create(name)
    yield _features(name, size, batch, model, _forms(model, device), device, seconds)


def compiled_network(device: str, seconds: float = 2.0) -> Iterator[dict]:
    """Compare the same features with those of compiled networks, with CUDA graphs on a GPU."""
    from cba_fast.bench.model_contest import create
    from cba_fast.runs.compiled import compiled_form

    name, size, batch = _network_of(device)
    model, backend = create(name), "inductor" if device == "cuda" else "eager"
    forms = _forms(model, device)
    for chosen in ("channels_last_merged", "ours_channels_last"):
        some = {chosen: forms[chosen]}
        some[f"{chosen}_compiled"] = compiled_form(forms[chosen], batch, backend)
        yield _features(name, size, batch, model, some, device, seconds)


def _network_of(device: str) -> tuple[str, int, int]:
    return ("replknet_31b", 384, 64) if device == "cuda" else ("replknet_nano", 64, 1)


def _features(
    name: str,
    size: int,
    batch: int,
    model: nn.Module,
    forms: dict[str, nn.Module],
    device: str,
    seconds: float,
) -> dict:
    x = torch.randn(batch, 3, size, size, device=device)
    x_cl = x.to(memory_format=CL)

    def features(form: str) -> Tensor:
        images = x_cl if "channels_last" in form else x
        with torch.no_grad(), torch.autocast(device, torch.bfloat16):
            return forms[form].forward_features(images)

    truth = _float32_features(model, x)
    errors = {form: relative_error(features(form), truth) for form in forms}
    right: dict[str, Callable] = {n: (lambda n=n: features(n)) for n in forms if errors[n] < 1e-1}
    timings = timed(right, device, seconds, queued=False)
    return {
        "model": name,
        "input_size": size,
        "batch": batch,
        "errors": errors,
        "timings": timings,
        "images_per_s": {n: round(1e3 * batch / t["median_ms"], 1) for n, t in timings.items()},
    }


def _float32_features(model: nn.Module, x: Tensor) -> Tensor:
    """Return the features as float64, computed by PyTorch's convolutions in float32 or TF32."""
    from cba_fast.bench.model_contest import plain

    form = plain(model).to(x.device)
    with torch.no_grad():
        return torch.cat([form.forward_features(part) for part in x.split(16)]).double()


def _forms(model: nn.Module, device: str) -> dict[str, nn.Module]:
    """Return forms of the model: with PyTorch's convolutions, plain and merged, and ours."""
    from cba_fast.bench.model_contest import plain
    from cba_fast.models import inference_form, merge

    half = {"device": device, "dtype": torch.bfloat16}
    return {
        "nchw": plain(model).to(device),
        "channels_last": plain(model).to(device, memory_format=CL),
        "channels_last_merged": plain(merge(model)).to(device, memory_format=CL),
        "ours": inference_form(model, channels_last=False, **half),
        "ours_channels_last": inference_form(model, **half),
    }


def receptive_field(device: str) -> Iterator[dict]:
    """Compare the study's way to ERF sizes, an image at a time, with ours, for RepLKNet-31B."""
    import numpy as np

    from cba_fast.bench.model_contest import create, plain
    from cba_fast.erf import erf_sizes
    from cba_fast.models import inference_form

    real = device == "cuda"
    name, size, count = ("replknet_31b", 384, 8) if real else ("replknet_nano", 64, 2)
    model = create(name)
    study, ours = plain(model).to(device).requires_grad_(), inference_form(model, device=device)
    images = torch.randn(count, 3, size, size, device=device)

    def the_studys_way() -> np.ndarray:
        sizes = []
        for image in images:
            x = image[None].clone().requires_grad_()
            study(x).softmax(1).max().backward()
            grad = x.grad[0].abs().mean(0).flatten().cpu().double().numpy()
            total = np.cumsum(np.sort(grad)[::-1])
            sizes.append(1 + np.searchsorted(total, 0.2 * total[-1]))
        return np.array(sizes)

    functions = {
        "study": the_studys_way,
        "ours": lambda: erf_sizes(ours, images, batch_size=8, backend="cuda" if real else None),
    }
    sizes = {n: f() for n, f in functions.items()}
    # The gradients differ by rounding, because PyTorch's convolutions use TF32 and another order.
    off = float(np.abs(sizes["ours"] / sizes["study"] - 1).max())
    yield {
        "model": name,
        "input_size": size,
        "images": count,
        "largest_relative_difference": off,
        "timings": timed(functions, device, 2.0, queued=False) if off < 0.05 else {},
    }


def evaluation(device: str) -> Iterator[dict]:
    """Measure images per second of `evaluate`, of decoding alone, and of all but decoding.

    The images are JPEGs of 500x375; images and weights are random.
    """
    import os
    import tempfile
    from pathlib import Path

    from cba_fast.runs.settings import BoxConfig, DataConfig, MapConfig, ModelConfig, RunConfig

    real = device == "cuda"
    name, size, batch = _network_of(device)
    count, workers = (5794, min(16, os.cpu_count() or 1)) if real else (6, 0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, count)
        run = RunConfig(batch_size=batch, num_workers=workers, device=device, precision="bf16")
        yield {
            "model": name,
            "input_size": size,
            "batch": batch,
            "workers": workers,
            "images": count,
            "images_per_s": images_per_second(
                ModelConfig("replknet", name=name, num_classes=10),
                DataConfig(str(root / "images"), input_size=size),
                run,
                MapConfig(map_size=size),
                BoxConfig(metadata_root=root / "meta", cam_curve_interval=0.001),
            ),
        }


def write_images(root, count: int) -> None:
    """Write JPEG images of 500x375 with as much detail as photographs, and boxes for them."""
    import os

    import cv2
    import numpy as np
    from data_factory import metadata_folder
    from PIL import Image

    random = np.random.default_rng(0)
    ids = [f"{i % 10}/{i:05}.jpg" for i in range(count)]
    for i, image_id in enumerate(ids):
        path = root / "images" / image_id
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < 32:
            coarse = cv2.resize(random.integers(0, 256, (40, 50, 3)).astype(np.uint8), (500, 375))
            noise = random.normal(0, 8, coarse.shape)
            Image.fromarray(np.clip(coarse + noise, 0, 255).astype(np.uint8)).save(path)
        else:
            os.link(root / "images" / ids[i % 32], path)
    boxes = {image_id: [(100, 80, 350, 300)] for image_id in ids}
    labels = {image_id: int(image_id.split("/")[0]) for image_id in ids}
    metadata_folder(root / "meta", boxes, dict.fromkeys(ids, (500, 375)), labels)


def images_per_second(model_config, data, run, maps, box_config) -> dict[str, float]:
    """Return the images per second of ``decoding``, ``without_decoding`` and ``evaluate``.

    The times do not include loading the model and computing its first batches.
    """
    import time
    from dataclasses import replace

    from cba_fast.data import ImageDataset
    from cba_fast.data.reading import Report, cut, normalize_bytes, read_batches, resize_to_bytes
    from cba_fast.runs.evaluate import choose_loop, evaluate, match_images
    from cba_fast.runs.inference import load_model, open_images
    from cba_fast.runs.runtime import Runtime
    from cba_fast.runs.scoring.boxes import make_evaluator, open_boxes
    from cba_fast.wsol.localize import localize_on_device

    boxes = open_boxes(box_config)
    records, ids, _ = match_images(open_images(data).records, boxes)
    dataset = ImageDataset(records, data.input_size, resize_to_bytes(data.input_size))
    batches = cut(range(len(records)), run.batch_size)
    runtime = Runtime.of(run)
    model = load_model(model_config, runtime)
    first: list[Tensor] = []

    def decode() -> None:
        for batch in read_batches(dataset, batches, Report(), num_workers=run.num_workers):
            first[:] = first or [batch.images]

    def score(some) -> None:
        evaluator = make_evaluator(boxes, replace(box_config, contours="both"))
        images = first[0].to(runtime.device, memory_format=runtime.memory_format)

        def sent():
            for indices in some:
                with runtime.autocast():
                    x = normalize_bytes(images[: len(indices)])
                    found = localize_on_device(model, x, method=maps.method, map_size=maps.map_size)
                yield indices, found.send(True)

        def sweep(item) -> None:
            evaluator.update(item[1]().u, [ids[i] for i in item[0]])

        choose_loop(runtime)(sent(), sweep)

    def seconds(function: Callable, *arguments) -> float:
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start

    took = {"decoding": seconds(decode)}
    score([batches[0], batches[-1]] * 2)  # loads libraries and kernels and allocates memory
    took["without_decoding"] = seconds(score, batches)
    begun = []

    def noting(found, count):  # notes when the model has been loaded
        begun.append(time.perf_counter())
        yield from found

    evaluate(model_config, data, run, maps, box_config, num_samples=0, progress=noting)
    took["evaluate"] = time.perf_counter() - begun[0]
    return {name: round(len(records) / s, 1) for name, s in took.items()}
