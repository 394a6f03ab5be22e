"""What `gpu_run.py` measures of whole networks: features, receptive fields, an evaluation.

As in `gpu_measure`, each function yields JSON values, and results are checked before their time.
"""

from collections.abc import Iterator

import torch
from gpu_measure import CL, timed
from torch import Tensor

from cba_fast.study.dwconv_contest import relative_error


def network(device: str, seconds: float = 3.0) -> Iterator[dict]:
    """Compare RepLKNet-31B's features at 384, batch 64, in bfloat16: PyTorch's ways and ours."""
    from cba_fast.models import inference_form
    from cba_fast.study.model_contest import create

    real = device == "cuda"
    name, size, batch = ("replknet_31b", 384, 64) if real else ("replknet_nano", 64, 1)
    forms = network_forms(create(name), device, inference_form)
    x = torch.randn(batch, 3, size, size, device=device)
    x_cl = x.to(memory_format=CL)

    def features(form: str) -> Tensor:
        images = x_cl if "channels_last" in form else x
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return forms[form].forward_features(images)

    truth = features("nchw").double()
    errors = {form: relative_error(features(form), truth) for form in forms}
    right = {n: (lambda n=n: features(n)) for n in forms if errors[n] < 1e-1}
    timings = timed(right, device, seconds)
    yield {
        "model": name,
        "input_size": size,
        "batch": batch,
        "errors": errors,
        "timings": timings,
        "images_per_s": {n: round(1e3 * batch / t["median_ms"], 1) for n, t in timings.items()},
    }


def network_forms(model, device: str, inference_form) -> dict:
    """Return the model with PyTorch's convolutions, plain and merged, and our inference form."""
    from cba_fast.models import merge
    from cba_fast.study.model_contest import _plain

    half = {"device": device, "dtype": torch.bfloat16}
    return {
        "nchw": _plain(model).to(device),
        "channels_last": _plain(model).to(device, memory_format=CL),
        "channels_last_merged": _plain(merge(model)).to(device, memory_format=CL),
        "ours": inference_form(model, channels_last=False, **half),
        "ours_channels_last": inference_form(model, **half),
    }


def receptive_field(device: str) -> Iterator[dict]:
    """Compare ERF sizes of RepLKNet-31B at 384: the study's way, an image at a time, and ours."""
    import numpy as np

    from cba_fast.erf import erf_sizes
    from cba_fast.models import inference_form
    from cba_fast.study.model_contest import _plain, create

    real = device == "cuda"
    name, size, count = ("replknet_31b", 384, 32) if real else ("replknet_nano", 64, 2)
    model = create(name)
    study, ours = _plain(model).to(device).requires_grad_(), inference_form(model, device=device)
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
        "ours": lambda: erf_sizes(ours, images, batch_size=16),
    }
    sizes = {n: f() for n, f in functions.items()}
    # The gradients differ by rounding: TF32 in PyTorch's convolutions, other orders of sums.
    off = float(np.abs(sizes["ours"] / sizes["study"] - 1).max())
    yield {
        "model": name,
        "input_size": size,
        "images": count,
        "largest_relative_difference": off,
        "timings": timed(functions, device, 5.0) if off < 0.05 else {},
    }
