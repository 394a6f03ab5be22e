"""The form in which a model computes fastest."""

import copy
from collections.abc import Iterable

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ...kernels import native
from ...nn import accelerate, conv1x1_is_faster, linears_as_convs
from ...nn.modes import checked_module
from ..families.classifier import Classifier
from ..families.slak import SLaK
from .folding import fold, merge_report
from .fused import fuse_blocks
from .merging import merge


def inference_form(
    model: nn.Module,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    example: Tensor | tuple | None = None,
    keep: Iterable[str] = (),
) -> nn.Module:
    """Return a copy of a model for evaluation, rearranged for speed; its outputs are the same.

    - `merge`, for the models that it knows; where the compiled FFT convolution runs, SLaK's strips
      become one square kernel, too (see `one_kernel_is_faster`);
    - `fold`, for all others: norms are folded and parallel branches merged where the structure of
      the code shows them, and the result is checked against the model on random images;
    - matching depthwise convolutions become `cba_fast.nn.DepthwiseConv2d` (`accelerate`);
    - on a CPU, linear layers over maps (ConvNeXt's and SLaK's) become 1x1 convolutions, where this
      processor computes these faster in float32 (`conv1x1_is_faster`, measured once per process);
    - on a CPU, 1x1 convolutions and linear layers add biases, activate and add residuals while they
      store, on weights that oneDNN has in its own order (`cba_fast.nn.fused`): no elementwise pass
      is left but the ReLU after RepLKNet's large kernels. These have no derivative, so that calls
      with gradients run the layers one by one, as do calls of which hooks want to see more, and
      contiguous images;
    - weights in channels_last, which all of these prefer;
    - in a half type, the weights of convolutions and linear layers are stored rounded, as autocast
      would round them in every pass (on two cores a tenth of the pass). The classifier's stay, for
      CAM reads them.

    Args:
        model: any model, in any mode; left as it is. Of a compiled one the plain one is taken.
        device: where the copy goes; None leaves it there.
        dtype: float32, or bfloat16 or float16 for use under ``torch.autocast`` of that type alone.
        channels_last: False keeps contiguous weights, for contiguous images.
        example: an input, or a tuple of inputs, for the check of `fold`, where random images of
            64 to 224 pixels will not do.
        keep: the names of layers whose own outputs are looked at, which `fold` leaves alone. So it
            does with layers that have hooks.

    Returns:
        A new module with the same interface, in evaluation mode, whose parameters do not require
        gradients. Outputs differ by rounding. ``fold_report`` (a `FoldReport`) prints which norms
        and branches are gone and which were left, and why.

    Raises:
        ValueError: another dtype.

    Example:
        >>> import timm, torch
        >>> from cba_fast.models import inference_form
        >>> model = timm.create_model("test_resnet", num_classes=10).eval()
        >>> fast = inference_form(model)
        >>> x = torch.randn(1, 3, 64, 64)
        >>> torch.allclose(fast(x.to(memory_format=torch.channels_last)), model(x), atol=1e-4)
        True
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    model = checked_module(getattr(model, "_orig_mod", model))
    on_cpu = torch.device(device or next(model.parameters(), torch.empty(0)).device).type == "cpu"
    form = _fewer_layers(model, on_cpu, example, keep).to(device)
    if on_cpu and dtype == torch.float32 and _is_float32(form) and conv1x1_is_faster():
        linears_as_convs(form)
    if on_cpu and isinstance(model, Classifier | ConvNeXt):
        fuse_blocks(form)
    if channels_last:
        form = form.to(memory_format=torch.channels_last)
    if dtype != torch.float32:
        _store_rounded(form, dtype)
    return form


def _fewer_layers(model: nn.Module, on_cpu: bool, example, keep: Iterable[str]) -> nn.Module:
    """Return an accelerated copy with merged branches and folded norms, and its report."""
    if isinstance(model, Classifier | ConvNeXt):
        form = merge(model, strips=not (on_cpu and one_kernel_is_faster(model)))
        accelerate(form)
        report = merge_report(model, form)
    else:
        form = copy.deepcopy(model).eval().requires_grad_(False)
        accelerate(form)
        square = on_cpu and native.unavailable() is None
        form, report = fold(form, strips=not square, example=example, keep=keep)
    form.fold_report = report
    return form


def one_kernel_is_faster(model: nn.Module) -> bool:
    """Say whether one square kernel is faster on CPUs than the two strips of this model.

    A transform costs the same for every kernel. On two threads with AVX2, in milliseconds, at the
    stages of SLaK-T at 384 pixels: one 51x51 kernel 6.1, the strips 51x5 and 5x51 and their sum
    10.5; further 2.7 against 4.0, 3.2 against 3.8, 1.0 against 1.3. Strips of width 1, slak_flex's,
    stay: 5.6 against 7, but 2.8 against 3.0, 2.8 against 1.9, 0.9 against 1.0. Without the compiled
    convolution a 51x51 kernel would cost five times the strips.
    """
    return isinstance(model, SLaK) and native.unavailable() is None


def _is_float32(model: nn.Module) -> bool:
    return all(p.dtype == torch.float32 for p in model.parameters())


def _store_rounded(model: nn.Module, dtype: torch.dtype) -> None:
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module is not classifier:
            module.to(dtype)
