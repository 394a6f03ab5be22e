"""Whole networks: PyTorch's ways to run one against its inference form here."""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

import cba_fast.models  # noqa: F401  (registers the study's models with timm)
from cba_fast.errors import InputError
from cba_fast.models import inference_form, merge
from cba_fast.nn import DepthwiseConv2d, accelerate
from cba_fast.nn.depthwise import why_not_covered

from .contest import Contest
from .dwconv_contest import Case, relative_error

DEFAULT, CHANNELS_LAST, MERGED = "default", "channels_last", "channels_last_merged"
OURS = "ours"
# Relative L2 errors of the features against the default form's in float32, above which a form is
# wrong: rounding through up to a hundred layers of random weights (measured: 1e-6 to 1e-5, and 1e-2
# in bfloat16). A branch or a norm that is lost changes them by more than half.
WRONG = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


def create(name: str, seed: int = 0) -> nn.Module:
    """Return a model of timm's or ours with random weights that leave no layer without effect.

    Raises:
        InputError: timm knows no such model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = timm.create_model(name)
        except RuntimeError as e:
            raise InputError(f"model {name!r}: {e}") from e
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.3, 0.3)
                    module.running_var.uniform_(0.5, 2)
                # A layer scale starts at 1e-6, which would hide what its block computes.
                if getattr(module, "gamma", None) is not None:
                    module.gamma.uniform_(0.05, 0.3)
    return model.eval().requires_grad_(False)


def depthwise_cases(model: nn.Module, input_size: int, batch: int = 1) -> Counter[Case]:
    """Return the depthwise convolutions that our op covers in a model, and how many of each.

    Args:
        model: any model of images (N,3,S,S); it is left as it is.
        input_size: S.
        batch: N.
    """
    found: Counter[Case] = Counter()

    def note(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        n, c, h, w = args[0].shape
        found[Case(c, h, w, *module.kernel_size, batch=n)] += 1

    shapes_only = copy.deepcopy(model).to("meta")
    for module in shapes_only.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not why_not_covered(module):
            module.register_forward_pre_hook(note)
    shapes_only(torch.empty(batch, 3, input_size, input_size, device="meta"))
    return found


class ModelContest:
    """Ways to run one network that take turns on one batch of images.

    What they return is compared with the first one's; those that differ are not timed.

    Args:
        functions: from `inference` or `training`.
        seconds: time of each.
    """

    def __init__(self, functions: dict[str, Callable[[], Tensor]], seconds: float = 5.0):
        self.contest = Contest(functions, seconds, most=20)
        results = list(self.contest.results.values())
        truth = results[0].double()
        self.errors = {n: relative_error(y, truth) for n, y in self.contest.results.items()}
        self.contest.results.clear()
        for name in self.wrong():
            self.contest.leave_out(name)

    def wrong(self) -> dict[str, float]:
        """Return the errors of the ways whose results are wrong."""
        return {n: e for n, e in self.errors.items() if not e <= WRONG[_dtype(n)]}

    def record(self) -> dict:
        """Return the errors and the milliseconds as JSON values."""
        return {
            "errors": {n: float(f"{e:.3g}") for n, e in self.errors.items()},
            "timings": {n: t.in_ms() for n, t in self.contest.timings().items()},
        }


def inference(
    model: nn.Module, input_size: int, batch: int = 1, bfloat16: bool = False
) -> dict[str, Callable[[], Tensor]]:
    """Return functions that give the features of random images.

    ``default``: as PyTorch runs it, with `torch.nn.Conv2d` and contiguous tensors;
    ``channels_last``; ``channels_last_merged``: also with merged branches and folded norms, where
    `cba_fast.models.merge` knows the model; ``ours``: `cba_fast.models.inference_form`. With
    `bfloat16` the last two also as ``..._bf16``, under autocast.

    Args:
        model: from `create`.
        input_size: side of the images.
        batch: number of images.
        bfloat16: whether the forms in bfloat16 are wanted too.
    """
    x = _images(input_size, batch)
    return {name: _features(form, x, name) for name, form in _forms(model, bfloat16).items()}


def training(model: nn.Module, input_size: int, batch: int = 4) -> dict[str, Callable[[], Tensor]]:
    """Return functions that do one training step and give the gradients of the depthwise kernels.

    A step is the forward pass, cross-entropy and backward pass, without an optimizer; ``default``
    and ``channels_last`` with `torch.nn.Conv2d`, ``ours`` with `DepthwiseConv2d` in channels_last.

    Args:
        model: from `create`.
        input_size, batch: as in `inference`.
    """
    ours = copy.deepcopy(model)
    accelerate(ours)
    forms = {DEFAULT: _plain(model), CHANNELS_LAST: _plain(model), OURS: ours}
    x = _images(input_size, batch)
    return {name: _step(form.requires_grad_().train(), x, name) for name, form in forms.items()}


def _images(input_size: int, batch: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, input_size, input_size, generator=g)


def _step(model: nn.Module, x: Tensor, name: str) -> Callable[[], Tensor]:
    if name != DEFAULT:
        x = x.to(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    labels = torch.arange(len(x))

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), labels).backward()
        return torch.cat([w.grad.flatten() for w in kernels])

    return run


def _forms(model: nn.Module, bfloat16: bool) -> dict[str, nn.Module]:
    channels_last = torch.channels_last
    forms = {
        DEFAULT: _plain(model),
        CHANNELS_LAST: _plain(model).to(memory_format=channels_last),
    }
    with contextlib.suppress(TypeError):  # a model that `merge` does not know
        forms[MERGED] = _plain(merge(model)).to(memory_format=channels_last)
    forms[OURS] = inference_form(model)
    if bfloat16:
        if MERGED in forms:
            forms[f"{MERGED}_bf16"] = forms[MERGED]
        forms[f"{OURS}_bf16"] = inference_form(model, dtype=torch.bfloat16)
    return forms


def _plain(model: nn.Module) -> nn.Module:
    """Return a copy whose depthwise convolutions are PyTorch's."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d
    return model


def _dtype(name: str) -> torch.dtype:
    return torch.bfloat16 if name.endswith("_bf16") else torch.float32


def _features(form: nn.Module, x: Tensor, name: str) -> Callable[[], Tensor]:
    """Return a function that gives the features of `x`, or the output of a model without."""
    x = x if name == DEFAULT else x.to(memory_format=torch.channels_last)
    function = getattr(form, "forward_features", form)

    def run() -> Tensor:
        half = torch.autocast("cpu", torch.bfloat16, enabled=_dtype(name) == torch.bfloat16)
        with torch.inference_mode(), half:
            return function(x)

    return run
