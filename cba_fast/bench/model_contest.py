"""A contest of ways to run a whole network: PyTorch's, and the inference form of cba_fast."""

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence

import timm
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import cba_fast.models  # noqa: F401  (registers the study's models with timm)

from ..models import inference_form, merge
from ..models.anatomy.parts import logits_of
from ..models.factory import model_from_factory
from ..models.timm_networks import timm_configuration, timm_family
from ..nn import DepthwiseConv2d, accelerate
from ..nn.depthwise import why_not_covered
from ..runs.compiled import compile_frozen
from ..shapes import pair
from .contest import Contest
from .dwconv_contest import Case, fft_forward, fft_grad_weight, fft_grad_x, relative_error

DEFAULT, CHANNELS_LAST, MERGED = "default", "channels_last", "channels_last_merged"
COMPILED = "channels_last_compiled"
OURS = "ours"
OURS_COMPILED = "ours_compiled"
# A form with a larger relative L2 error is wrong. Rounding through up to a hundred layers of random
# weights makes 1e-6 to 1e-5 in features (1e-2 in bfloat16). A lost branch or norm changes them by
# more than half. `layer_errors` shows kernels that are slightly off.
WRONG = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
# In gradients of a training step it can grow more: to 0.007 (contiguous) and 0.04 (channels_last)
# in RepLKNet-31B by PyTorch's own layers, whose batch norms see few values in the last stage. Where
# PyTorch's default form is off, others may be off by so many times as much, and never by the most.
TIMES_DEFAULT, MOST = 10, 1e-1


def create(name: str, seed: int = 0, factory: str | None = None) -> nn.Module:
    """Return a model with random weights in which every layer has an effect.

    Args:
        name: a name of timm's.
        seed: of the weights.
        factory: instead of a name, the function that makes the model, see
            `cba_fast.models.factory.model_from_factory`.

    Raises:
        InputError: timm knows no such model, or the function fails.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not factory:
            timm_configuration(name)  # names of similar models and weights are in its error
            timm_family(name)
        model = model_from_factory(factory) if factory else timm.create_model(name)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5)
                if isinstance(module, nn.BatchNorm2d):
                    if module.running_mean is not None:
                        module.running_mean.uniform_(-0.3, 0.3)
                    if module.running_var is not None:
                        module.running_var.uniform_(0.5, 2)
                # A layer scale starts at 1e-6, which would hide what its block computes.
                if getattr(module, "gamma", None) is not None:
                    module.gamma.uniform_(0.05, 0.3)
    return model.eval().requires_grad_(False)


def depthwise_cases(model: nn.Module, input_size: int, batch: int = 1) -> Counter[Case]:
    """Return the depthwise convolutions that our op covers in a model, and how many of each.

    Args:
        model: any model that takes images (N,3,S,S); it is left as it is.
        input_size: S.
        batch: N.
    """
    found: Counter[Case] = Counter()

    def note(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        n, c, h, w = args[0].shape
        kh, kw = module.kernel_size
        found[Case(c, h, w, kh, kw, n)] += 1

    shapes_only = copy.deepcopy(model).to("meta")
    for module in _covered(shapes_only).values():
        module.register_forward_pre_hook(note)
    shapes_only(torch.empty(batch, 3, input_size, input_size, device="meta"))
    return found


class ModelContest:
    """A contest of ways to run one network on one batch of images.

    Ways with wrong results are not timed.

    Args:
        functions: the ways, from `inference` or `training`; each returns a list of tensors.
        seconds: the time for each way.
        exact: the true tensors, such as from `exact_gradients`; None takes those of the first way.

    Attributes:
        contest: the contest of the ways.
        errors: the largest relative L2 error of a tensor, by way.
    """

    def __init__(
        self,
        functions: dict[str, Callable[[], list[Tensor]]],
        seconds: float = 5.0,
        exact: Sequence[Tensor] | None = None,
    ):
        self.contest = Contest(functions, seconds, most=20)
        results = self.contest.results
        truth = [y.double() for y in next(iter(results.values()))] if exact is None else exact
        self.errors = {name: _largest_error(tensors, truth) for name, tensors in results.items()}
        results.clear()
        for name in self.wrong():
            self.contest.leave_out(name)

    def wrong(self) -> dict[str, float]:
        """Return the errors of the ways with wrong results."""
        first = next(iter(self.errors.values()))  # of the default form; 0 if it is the truth
        grown = min(MOST, TIMES_DEFAULT * first)
        bounds = {n: max(WRONG[_dtype(n)], grown) for n in self.errors}
        return {n: e for n, e in self.errors.items() if not e <= bounds[n]}

    def record(self) -> dict:
        """Return the errors and the milliseconds as JSON values."""
        return {
            "errors": {n: float(f"{e:.3g}") for n, e in self.errors.items()},
            "first_call_s": {n: round(s, 2) for n, s in self.contest.first.items()},
            "timings": {n: t.in_ms() for n, t in self.contest.timings().items()},
        }


def inference(
    model: nn.Module,
    input_size: int,
    batch: int = 1,
    bfloat16: bool = False,
    compiled: bool = True,
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return functions that compute the features of random images, each a list of one tensor.

    ``default`` uses `torch.nn.Conv2d` and contiguous tensors, ``channels_last`` the same in that
    format. ``channels_last_merged`` also merges branches and folds norms, where
    `cba_fast.models.merge` knows the model. ``channels_last_compiled`` is ``channels_last`` by
    `torch.compile` with weights as constants (``freezing``), which compiles in the first call.
    ``ours`` is `cba_fast.models.inference_form`, ``ours_compiled`` the same by `torch.compile`.
    With `bfloat16` the last four also run under autocast, as ``..._bf16``.

    Args:
        model: a model from `create`.
        input_size: the side of the images.
        batch: the number of images.
        bfloat16: whether to add the forms in bfloat16.
        compiled: whether to add the compiled forms, which take minutes and need a C++ compiler.
    """
    x = _images(input_size, batch)
    _forget_compiled()
    forms = _forms(model, bfloat16, compiled)
    return {name: _features(form, x, name) for name, form in forms.items()}


def training(
    model: nn.Module, input_size: int, batch: int = 4, compiled: bool = False
) -> dict[str, Callable[[], list[Tensor]]]:
    """Return functions that do a training step and return the gradients of the depthwise kernels.

    A step is the forward pass, cross-entropy and backward pass, without an optimizer. ``default``
    and ``channels_last`` use `torch.nn.Conv2d`, ``ours`` uses `DepthwiseConv2d` in channels_last;
    ``channels_last_compiled`` and ``ours_compiled`` are these two by `torch.compile`.

    Args:
        model: a model from `create`.
        input_size, batch: as in `inference`.
        compiled: whether to add the last two, which take minutes to compile.
    """
    theirs = (DEFAULT, CHANNELS_LAST, *[COMPILED] * compiled)
    forms = {name: plain(model) for name in theirs}
    forms |= {name: _accelerated(model) for name in (OURS, *[OURS_COMPILED] * compiled)}
    x = _images(input_size, batch)
    _forget_compiled()
    return {name: _step(form.requires_grad_().train(), x, name) for name, form in forms.items()}


def exact_gradients(model: nn.Module, input_size: int, batch: int = 4) -> list[Tensor]:
    """Return what a step of `training` returns, computed in float64.

    The convolutions that our op covers are computed by torch.fft, which shares no code with the
    candidates; PyTorch's convolution would take minutes in float64.

    Args:
        model, input_size, batch: as in `training`.
    """
    form = plain(model).double()
    for module in _covered(form).values():
        module.__class__ = _FftConv2d
    x = _images(input_size, batch).double()
    return _step(form.requires_grad_().train(), x, DEFAULT)()


def layer_errors(model: nn.Module, input_size: int, batch: int = 4) -> dict[str, float]:
    """Return the errors of our convolutions in a training step, by layer and direction.

    Each layer's output, input gradient and weight gradient are compared with float64 results for
    the same tensors. The relative L2 errors have the bound `dwconv_contest.WRONG`, as in the
    benchmark of the op. Gradients of the whole network tell less, because rounding errors grow a
    hundredfold in it.

    Args:
        model, input_size, batch: as in `training`.
    """
    form = _accelerated(model).requires_grad_().train()
    witnesses = {name: _Witness(layer) for name, layer in _covered(form).items()}
    _step(form, _images(input_size, batch), OURS)()
    return {
        f"{name} {direction}": error
        for name, witness in witnesses.items()
        for direction, error in witness.errors().items()
    }


class _Witness:
    """Compares what a layer computes in a training step with float64 results."""

    def __init__(self, layer: nn.Conv2d):
        self._layer = layer
        self._errors: dict[str, float] = {}
        layer.register_forward_hook(self._forward)
        layer.register_full_backward_hook(self._backward)

    @torch.no_grad()
    def _forward(self, layer: nn.Conv2d, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        self._x = inputs[0].detach()
        exact = fft_forward(self._x.double(), layer.weight.double())
        if layer.bias is not None:
            exact += layer.bias.double()[:, None, None]
        self._errors["forward"] = relative_error(y, exact)

    @torch.no_grad()
    def _backward(self, layer: nn.Module, grad_x, grad_y) -> None:
        grad = grad_y[0].double()
        exact = fft_grad_x(grad, self._layer.weight.double())
        self._errors["grad_x"] = relative_error(grad_x[0], exact)
        self._grad_weight = fft_grad_weight(grad, self._x.double(), pair(self._layer.kernel_size))

    def errors(self) -> dict[str, float]:
        """Return the error of each direction, after the step."""
        grad = self._layer.weight.grad
        error = math.nan if grad is None else relative_error(grad, self._grad_weight)
        return self._errors | {"grad_weight": error}


def _largest_error(tensors: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    errors = [relative_error(y, t) for y, t in zip(tensors, truth, strict=True)]
    return torch.tensor(errors, dtype=torch.float64).max().item()  # NaN if one of them is


def _accelerated(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    accelerate(model)
    return model


def _covered(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the layers by name whose convolution our op computes or could compute."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not why_not_covered(module)
    }


class _FftConv2d(nn.Conv2d):
    """A depthwise convolution that is computed by `fft_forward`."""

    def forward(self, x: Tensor) -> Tensor:
        y = fft_forward(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]


def _forget_compiled() -> None:
    # PyTorch compiles eight forms of one function and then runs further ones uncompiled; those of
    # an earlier contest count.
    torch.compiler.reset()


def _images(input_size: int, batch: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, input_size, input_size, generator=g)


def _step(model: nn.Module, x: Tensor, name: str) -> Callable[[], list[Tensor]]:
    if name != DEFAULT:
        x = x.to(memory_format=torch.channels_last)
        model.to(memory_format=torch.channels_last)
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    labels = torch.arange(len(x))
    network = torch.compile(model) if name in (COMPILED, OURS_COMPILED) else model

    def run() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits_of(model, network(x)), labels).backward()
        return [w.grad for w in kernels if w.grad is not None]

    return run


def _forms(model: nn.Module, bfloat16: bool, compiled: bool) -> dict[str, nn.Module]:
    channels_last = torch.channels_last
    forms = {
        DEFAULT: plain(model),
        CHANNELS_LAST: plain(model).to(memory_format=channels_last),
    }
    with contextlib.suppress(TypeError):  # `merge` does not know the model
        forms[MERGED] = plain(merge(model)).to(memory_format=channels_last)
    if compiled:
        forms[COMPILED] = forms[CHANNELS_LAST]
    forms[OURS] = inference_form(model)
    if compiled:
        forms[OURS_COMPILED] = forms[OURS]
    if bfloat16:
        forms |= {f"{n}_bf16": forms[n] for n in (MERGED, COMPILED) if n in forms}
        forms[f"{OURS}_bf16"] = inference_form(model, dtype=torch.bfloat16)
        if compiled:
            forms[f"{OURS_COMPILED}_bf16"] = forms[f"{OURS}_bf16"]
    return forms


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of the model with PyTorch's depthwise convolutions."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]  # a base of its class
    return model


def _dtype(name: str) -> torch.dtype:
    return torch.bfloat16 if name.endswith("_bf16") else torch.float32


def _features(form: nn.Module, x: Tensor, name: str) -> Callable[[], list[Tensor]]:
    """Return a function that computes the features of `x`, or a model's output if it has none."""
    x = x if name == DEFAULT else x.to(memory_format=torch.channels_last)
    function = getattr(form, "forward_features", form)
    if name.startswith((COMPILED, OURS_COMPILED)):
        function = compile_frozen(function)

    def run() -> list[Tensor]:
        half = torch.autocast("cpu", torch.bfloat16, enabled=_dtype(name) == torch.bfloat16)
        with torch.inference_mode(), half:
            return [y for y in tree_leaves(function(x)) if isinstance(y, Tensor)]

    return run
