"""Read, recognize, check and write checkpoints, never by unpickling code."""

import os
import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_path

# What training scripts wrap a state dict in, the first that is there being taken: the study's and
# the official scripts' names, then the PyTorch tutorials', then timm's and ConvNeXt's average.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_ema")
# What DataParallel and torch.compile put before every key.
_PREFIXES = ("module.", "_orig_mod.")


def load_state_dict_file(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint file onto the CPU.

    A name that ends in ``.safetensors`` is read as such, any other by
    ``torch.load(weights_only=True)``. Wrappers (``{"model": ...}``, ``{"state_dict": ...}``, nested
    too) and the prefixes ``module.`` and ``_orig_mod.`` are taken off.

    Args:
        path: the file.

    Returns:
        The tensors by key, in the file's order and dtypes.

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint, it needs unpickling, or it
            holds something else than tensors; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.suffix == ".safetensors":
        value = _read_safetensors(path)
    else:
        value = _read_torch(path)
    return _strip_prefixes(_unwrap(value, path))


def save_state_dict_file(state: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Write a state dict in one step (``.safetensors`` by that suffix, else ``torch.save``).

    Raises:
        OSError: the file cannot be written; what was there before stays.
    """
    # Clones, because a view would drag its whole storage into the file.
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()
    }
    with atomic_path(path) as tmp:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import save

            tmp.write_bytes(save(state))
        else:
            with open(tmp, "wb") as f:
                torch.save(state, f)


@dataclass(frozen=True)
class Layout:
    """A checkpoint layout, as its keys show it.

    Attributes:
        family: the family that it belongs to.
        name: "official", "study", "timm" or "merged".
        classifier: key of the classifier's weight (num_classes, C).
        options: constructor options that the keys imply.
    """

    family: str
    name: str
    classifier: str
    options: dict[str, object] = field(default_factory=dict)


def detect_layout(state: dict[str, Tensor]) -> Layout | None:
    """Return the layout whose tell-tale keys `state` has, or None."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state)

    if has(r"^stem\.0\.conv\.|\.prelkb_bn\."):
        merged = has(r"\.large_kernel\.lkb_reparam\.")
        options = {"merged": True} if merged else {}
        return Layout("replknet", "merged" if merged else "official", "head.weight", options)
    if has(r"^0\.downsample_layers\.|\.dwconv\.conv_"):
        square, cross = has(r"\.conv_merged\."), has(r"\.conv_merged_[hw]\.")
        options = {"merged": "square" if square else "cross"} if square or cross else {}
        return Layout("slak_flex", "merged" if options else "study", "1.fc.weight", options)
    if has(r"^downsample_layers\.") and has(r"\.large_kernel\."):
        return _slak_layout(state, has)
    if has(r"^0\.1\.\d+\.blocks\.\d+\.conv_dw\."):
        return Layout("convnext", "study", "1.fc.weight")
    if has(r"^stages\.\d+\.blocks\.\d+\.conv_dw\."):
        return Layout("convnext", "timm", "head.fc.weight")
    return None


def _slak_layout(state: dict[str, Tensor], has) -> Layout:
    strips = has(r"\.large_kernel\.LoRA[12]\.")
    merged = has(r"\.large_kernel\.(lkb_reparam|LoRA1\.conv)\.bias$")
    options = {"Decom": strips, "bn": merged or has(r"\.large_kernel\..*\.bn\.")}
    if merged:
        options["merged"] = True
    return Layout("slak", "merged" if merged else "official", "head.weight", options)


def load_strict(
    model: nn.Module, state: dict[str, Tensor], source: str | os.PathLike, name: str
) -> None:
    """Load `state` into `model` (which may be on the meta device), every key of one shape.

    The tensors become the model's own, converted to its dtypes.

    Args:
        model: the module.
        state: the tensors by key.
        source: the file that they came from, for the message.
        name: the model's name, for the message.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped keys, or integers where weights belong;
            the message lists them.
    """
    problems = mismatches(model, state)
    if problems:
        raise CheckpointError(f"{source} does not fit {name}: " + "; ".join(problems))
    own = model.state_dict()
    state = {k: v.to(own[k].dtype).contiguous() for k, v in state.items()}
    model.load_state_dict(state, strict=True, assign=True)


def mismatches(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Return what keeps `state` from loading into `model`, one phrase per kind of trouble."""
    own = model.state_dict()
    common = [k for k in own if k in state]
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in common
        if state[k].shape != own[k].shape
    ]
    dtypes = [
        f"{k} is {state[k].dtype}"
        for k in common
        if own[k].is_floating_point() and not state[k].is_floating_point()
    ]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "mis-shaped": shapes,
        "not floating-point": dtypes,
    }
    return [_listed(kind, items) for kind, items in kinds.items() if items]


def _listed(kind: str, items: list[str], shown: int = 5) -> str:
    rest = f" and {len(items) - shown} more" if len(items) > shown else ""
    keys = "key" if len(items) == 1 else "keys"
    return f"{len(items)} {kind} {keys}: {', '.join(items[:shown])}{rest}"


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # Cloned, because they are views of the mapped file, at any alignment.
        return {k: v.clone() for k, v in load_file(path).items()}
    except SafetensorError as e:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({e})") from e


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # Says that a pickle of another protocol may fail; what fails is reported below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{path}: {_why_unreadable(path, e)}") from e


def _why_unreadable(path: Path, error: Exception) -> str:
    """Say in one line why ``torch.load(weights_only=True)`` failed."""
    text = str(error)
    if "TorchScript" in text:
        return "is a TorchScript archive; save the state dict of its model instead"
    with open(path, "rb") as f:
        start = f.read(16)
    is_pickle = start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if isinstance(error, pickle.UnpicklingError) and is_pickle:
        named = re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", text)
        what = f" ({named[1]})" if named else ""
        return (
            f"holds pickled objects besides tensors{what}, and loading those could run code; "
            "save the state dict alone and use that file"
        )
    detail = text.splitlines()[0] if text else type(error).__name__
    if not is_pickle:  # PyTorch would advise to unpickle it, whatever it is
        detail = f"it begins with {start!r}"
    return f"damaged, or not a checkpoint ({detail})"


def _unwrap(value: object, path: Path) -> dict[str, Tensor]:
    while isinstance(value, dict):
        inner = next((value[k] for k in _WRAPPERS if isinstance(value.get(k), dict)), None)
        if inner is None:
            break
        value = inner
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a state dict")
    if not value:
        raise CheckpointError(f"{path}: the state dict is empty")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: not a state dict: entry {key!r} is a {kind}, no tensor")
    return value


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k[len(prefix) :]: v for k, v in state.items()}
    return state
