"""Registers ops with PyTorch: schema, kernel, fake, autograd, autocast and FLOPs in one call."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

NAMESPACE = "cba_fast"
AUTO = "auto"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

# Without the second tag Inductor may give an op a tensor of another stride order than its fake saw,
# and then reject the strides of the result.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_AUTOCAST |= torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


def register(
    schema: str,
    kernel: Callable,
    fake: Callable,
    *,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    autocast: bool = False,
    flops: Callable[..., int] | None = None,
) -> None:
    """Define the op ``cba_fast::<schema>`` with all that PyTorch needs to know about it.

    Does nothing if the op exists already, so that a module may be imported again.

    Args:
        schema: the op's name and signature.
        kernel: the implementation for CPU and CUDA tensors.
        fake: the shape, dtype and strides of what `kernel` returns, without computing it.
        backward, setup_context: as in `torch.library.register_autograd`; without them the op is not
            differentiable.
        autocast: whether floating arguments other than float64 are cast to the autocast dtype of
            their device, as PyTorch does for convolutions. The kernel itself always runs outside
            of autocast.
        flops: the count for `torch.utils.flop_counter`; takes the arguments, with shapes in place
            of tensors.
    """
    name = schema[: schema.index("(")]
    if hasattr(getattr(torch.ops, NAMESPACE), name):
        return
    qualified = f"{NAMESPACE}::{name}"
    LIBRARY.define(schema, tags=_TAGS)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    for device in ("cpu", "cuda"):
        LIBRARY.impl(name, kernel, device.upper())
        LIBRARY.impl(name, _outside_autocast(op, device, autocast), f"Autocast{device.upper()}")
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=LIBRARY
        )
    if flops is not None:
        register_flop_formula(getattr(getattr(torch.ops, NAMESPACE), name))(flops)


def check_tensors(**arguments: object) -> None:
    """Raise a `TypeError` that names the first argument that is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_differentiable(op: str, **arguments: Tensor) -> None:
    """Refuse arguments that are no tensors or carry a tangent, which the op would drop.

    The autograd of an op registered from Python has no forward mode: it returns zeros silently.

    Raises:
        TypeError: an argument is no tensor.
        NotImplementedError: an argument carries a tangent.
    """
    check_tensors(**arguments)
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(t).tangent is not None for t in arguments.values()):
        raise NotImplementedError(f"{op} has no derivative in forward mode")


def backend_argument(backend: str | None) -> str:
    """Return the registered op's ``str backend`` for the `backend` of a public function.

    Raises:
        TypeError: `backend` is neither None nor a string.
    """
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend must be None or a string, got {type(backend).__name__}")
    return AUTO if backend is None else backend


def requested(backend: str) -> str | None:
    """Undo `backend_argument`: return the name for `BackendTable.resolve`, or None."""
    return None if backend == AUTO else backend


def _outside_autocast(op, device: str, cast: bool) -> Callable:
    # `torch.library.register_autocast` fixes one dtype forever; this reads the one in force.
    def run(*args):
        if cast:
            dtype = torch.get_autocast_dtype(device)
            args = tuple(_cast(a, device, dtype) for a in args)
        # `register_autocast` leaves autocast in the same way. `torch.autocast(device,
        # enabled=False)` takes longer than the convolution of a small map.
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*args)

    return run


def _cast(value, device: str, dtype: torch.dtype):
    eligible = (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == device
    )
    return value.to(dtype) if eligible else value
