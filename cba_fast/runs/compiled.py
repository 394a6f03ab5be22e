"""A model whose feature maps come from compiled code."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..errors import InputError, first_line


def compiled_form(
    model: nn.Module, batch_size: int, backend: str | Callable = "inductor"
) -> nn.Module:
    """Return a second form of `model` whose ``forward_features`` is compiled by `torch.compile`.

    On a GPU its kernels are recorded and replayed as one CUDA graph (``reduce-overhead``). On a CPU
    the weights are taken as constants (``freezing``), so that the compiler brings them into the
    order of its convolutions once and lets these add biases, activate and add residuals, as
    `inference_form` does without a compiler. One batch shape is compiled, at the first call; a
    smaller batch is filled up with zeros and the result cut. ``forward_head`` is not compiled:
    `cba_fast.wsol.methods.gather` watches it by hooks, each of which would need another
    compilation, and pooling and one linear layer would gain nothing.

    Args:
        model: a model in evaluation mode, with ``forward_features`` and ``forward_head``. It is
            left as it is; the new form shares its modules.
        batch_size: the largest number of images in a batch.
        backend: the backend of `torch.compile`.

    Returns:
        A module with the interface of `model`. Its outputs differ by rounding, as compiled code
        fuses operations.

    Raises:
        InputError: the model lacks one of these methods.
    """
    form = hiding_form(model)
    vars(form)["forward_features"] = _FixedBatch(model, batch_size, backend)
    return form


def hiding_form(model: nn.Module) -> nn.Module:
    """Return a form of `model` that shows no layer inside, as a compiled one, but is not compiled.

    Raises:
        InputError: the model lacks ``forward_features`` or ``forward_head``.
    """
    for name in ("forward_features", "forward_head"):
        if not hasattr(model, name):
            raise InputError(
                f"`compile` compiles forward_features, and {type(model).__name__} has no {name}, as"
                " timm's networks have: leave it out"
            )
    form = copy.copy(model)
    vars(form)["hides_layers"] = True  # hooks do not see what runs inside of compiled code
    return form


def compile_frozen(
    function: Callable[[Tensor], Tensor], backend: str | Callable = "inductor"
) -> Callable[[Tensor], Tensor]:
    """Return `function` compiled for one shape, with weights as constants where no gradient is on.

    Args:
        function: of one tensor, such as a model.
        backend: of `torch.compile`.
    """
    from torch._inductor import config  # takes a second to import

    compiled = torch.compile(function, backend=backend, dynamic=False)

    def run(x: Tensor) -> Tensor:
        # Tracing, in the first call, looks at this setting, too: `options` would come too late.
        with config.patch(freezing=True):
            return compiled(x)

    return run


class _FixedBatch:
    """``model.forward_features``, compiled for one number of images."""

    def __init__(self, model: nn.Module, batch_size: int, backend: str | Callable):
        device = next(model.parameters()).device
        self._graphs = device.type == "cuda"
        self._batch_size = batch_size
        function = model.forward_features
        if self._graphs:
            self._compiled = torch.compile(
                function, backend=backend, dynamic=False, mode="reduce-overhead"
            )
        else:
            self._compiled = compile_frozen(function, backend)

    def __call__(self, x: Tensor, **options) -> Tensor:
        if any(options.values()):  # timm's ViT passes attn_mask=None and is_causal=False
            raise InputError(f"`compile` takes images alone, got {', '.join(options)}")
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
        missing = self._batch_size - len(x)
        if missing < 0:
            raise ValueError(f"compiled for {self._batch_size} images in a batch, got {len(x)}")
        full = pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else x
        try:
            features = self._compiled(full)
        except torch._dynamo.exc.TorchDynamoException as e:
            reason = f"the model cannot be compiled here (`compile`): {first_line(e)}"
            raise InputError(reason) from e
        # The features are copied because the next replay of the graph overwrites them.
        return features[: len(x)].clone()
