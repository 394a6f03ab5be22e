"""Read, check and write checkpoint files without running any code that they may hold."""

import argparse
import json
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, first_line
from ..files import atomic_path, write_bytes
from ..short import Short
from .description import KEY, ModelDescription
from .families.layouts import detect_layout, in_known_names

# Names under which training scripts store a state dict; the first that a file has is taken. First
# come the names of the study and the official scripts, then those of PyTorch's tutorials, then
# those of averaged weights.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "model_ema", "state_dict_ema", "ema")
# Prefixes that DataParallel, torch.compile and Lightning's usual attributes put before the keys.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def load_state_dict_file(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint file onto the CPU; see `read_checkpoint`.

    Returns:
        The tensors by key, in the file's order and dtypes.

    Raises:
        CheckpointError: as `read_checkpoint`.

    Example:
        >>> from torch import nn
        >>> from cba_fast.models import load_state_dict_file, save_state_dict_file
        >>> save_state_dict_file(nn.Linear(4, 2).state_dict(), "head.pth")
        >>> {key: tuple(value.shape) for key, value in load_state_dict_file("head.pth").items()}
        {'weight': (2, 4), 'bias': (2,)}
    """
    return _read(path, False)[0].state


@dataclass(frozen=True, repr=False)
class Checkpoint(Short):
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        state: the tensors by key, in the file's order and dtypes.
        description: what the file says about its model; None if another program wrote the file.
        taken: which part of the file this is, in words; "" for the whole file.
        stored: the state dict with the keys of the file.
        wrapper: the part of `taken` that speaks of the wrapper.
    """

    path: Path
    state: dict[str, Tensor]
    description: ModelDescription | None = None
    taken: str = ""
    stored: dict[str, Tensor] = field(default_factory=dict)
    wrapper: str = ""

    def variants(self) -> Iterator["Checkpoint"]:
        """Yield this checkpoint with each state dict that the keys of the file may stand for.

        First come the file's own keys, then those without the prefixes that all have, then those
        that alone have a prefix.
        """
        for state, left_out in variants(self.stored):
            yield replace(self, state=state, taken=_joined(self.wrapper, left_out))


def read_checkpoint(path: str | os.PathLike, *, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint file onto the CPU: its state dict, and what it says about its model.

    A name that ends in ``.safetensors`` is read as such, any other by
    ``torch.load(weights_only=True)``, which runs no code; an ``argparse.Namespace`` beside the
    weights is accepted. Wrappers (``{"model": ...}``, ``{"state_dict": ...}``, nested too) and the
    prefixes ``module.``, ``_orig_mod.``, ``model.`` and ``net.`` are taken off. Keys of
    facebookresearch/ConvNeXt get timm's names, and keys of early SLaK files their later names.

    Args:
        path: the file.
        mapped: map the file into memory, where its format allows it, instead of reading it. This is
            for callers that only look at the shapes.

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint, it needs unpickling, it
            holds something else than dense tensors, or a description of wrong types; the message
            names the file.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from cba_fast.models import read_checkpoint
        >>> torch.save({"model": nn.Linear(4, 2).state_dict(), "epoch": 3}, "run.pth")
        >>> found = read_checkpoint("run.pth")
        >>> sorted(found.state), found.description
        (['bias', 'weight'], None)
    """
    found, said = _read(path, mapped)
    if said is None:
        return found
    return replace(found, description=ModelDescription.from_json(said, path))


def _read(path: str | os.PathLike, mapped: bool) -> tuple[Checkpoint, object]:
    """Return what the file holds, and apart from it its description (or None), unread."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.suffix == ".safetensors":
        value, said = _read_safetensors(path)
    else:
        value, said = _read_torch(path, mapped), None
    stored, wrapper = _unwrap(value, path)
    metadata = getattr(stored, "_metadata", None)
    if said is None and isinstance(metadata, dict):
        said = metadata.get(KEY)
    _check_tensors(stored, path)
    state, left_out = _of_a_family(stored)
    taken = _joined(wrapper, left_out)
    return Checkpoint(path, in_known_names(state), None, taken, stored, wrapper), said


def described(state: dict[str, Tensor], description: ModelDescription) -> dict[str, Tensor]:
    """Return a copy of `state` with a description in its metadata.

    ``load_state_dict`` of any module ignores that description.
    """
    state, metadata = OrderedDict(state), getattr(state, "_metadata", {})
    state._metadata = OrderedDict(metadata, **{KEY: description.as_json()})  # type: ignore[attr-defined]
    return state


def save_state_dict_file(
    state: dict[str, Tensor],
    path: str | os.PathLike,
    description: ModelDescription | None = None,
) -> None:
    """Write a state dict to a file, whole or not at all.

    Args:
        state: the tensors by key.
        path: the file; a name that ends in ``.safetensors`` gets that format, any other that of
            ``torch.save``.
        description: stored with the weights, where other programs ignore it.

    Raises:
        OSError: the file cannot be written; what was there before stays.

    Example:
        >>> from cba_fast.models import build_model, read_checkpoint, save_state_dict_file
        >>> model = build_model("slak", model="slak_nano", num_classes=10)
        >>> save_state_dict_file(model.state_dict(), "slak.safetensors", model.description)
        >>> read_checkpoint("slak.safetensors").description.num_classes
        10
    """
    # Tensors are cloned because a view would be saved with its whole storage.
    state = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()
    }
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import save

        said = {KEY: json.dumps(description.as_json())} if description else None
        write_bytes(path, save(state, said))
    else:
        save_pickled(described(state, description) if description else state, path)


def save_pickled(value: object, path: str | os.PathLike) -> None:
    """Write a value with ``torch.save``, whole or not at all; a full disk is an `OSError`."""
    with atomic_path(path) as tmp, open(tmp, "wb") as f:
        try:
            torch.save(value, f)
        except RuntimeError as e:  # PyTorch fails once more when it closes its writer
            if isinstance(e.__context__, OSError):
                raise e.__context__ from None
            raise


def load_strict(
    model: nn.Module, state: dict[str, Tensor], source: str | os.PathLike, name: str
) -> None:
    """Load `state` into `model`, which may be on the meta device; keys and shapes must be equal.

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


def _read_safetensors(path: Path) -> tuple[object, object]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as f:
            said = (f.metadata() or {}).get(KEY)
        # Cloned, because they are views of the mapped file, at any alignment.
        state = {k: v.clone() for k, v in load_file(path).items()}
    except SafetensorError as e:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({e})") from e
    try:
        return state, None if said is None else json.loads(said)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(
            f"{path}: its description {str(said)[:80]!r} is not JSON ({e})"
        ) from e


def _read_torch(path: Path, mapped: bool) -> object:
    is_zip = zipfile.is_zipfile(path)
    try:
        if is_zip:
            check_archive(path, sums=not mapped)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            # PyTorch warns that another pickle protocol may fail; a failure is reported below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(
                path,
                map_location="cpu",
                weights_only=True,
                mmap=True if mapped and is_zip else None,
            )
    except (OSError, CheckpointError):
        raise
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"{path}: {_why_unreadable(path, e)}") from e


def check_archive(path: Path, *, sums: bool = True) -> None:
    """Refuse a file of ``torch.save`` that is damaged or would unpack to more than its own size.

    Args:
        path: the file, a zip archive.
        sums: read it all and compare its checksums, which PyTorch leaves alone; 3 GB/s.

    Raises:
        CheckpointError: its entries are larger than itself: PyTorch's are never compressed.
        zipfile.BadZipFile: an entry has another checksum than was recorded.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
        if unpacked > size:
            raise CheckpointError(
                f"{path}: {size} bytes that would unpack to {unpacked}; PyTorch's checkpoints are "
                "not compressed"
            )
        for entry in entries if sums else ():
            if entry.CRC:  # else written without, by ``torch.serialization.set_crc32_options``
                with archive.open(entry) as f:
                    while f.read(1 << 20):
                        pass


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
    detail = first_line(error)
    if not is_pickle:  # PyTorch's message would advise to unpickle the file, whatever it is
        detail = f"it begins with {start!r}"
    return f"damaged, or not a checkpoint ({detail})"


def _unwrap(value: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the innermost state dict, and in words under which keys it lies."""
    taken, seen = [], set()
    while isinstance(value, dict):
        found = [k for k in _WRAPPERS if isinstance(value.get(k), dict)]
        # Some scripts keep settings under these names, so entries with weights are preferred.
        found = [k for k in found if _holds_weights(value[k])] or found
        if not found:
            break
        if id(value) in seen:
            raise CheckpointError(f"{path}: its {found[0]!r} contains itself")
        seen.add(id(value))
        others = f", not {' or '.join(map(repr, found[1:]))}" if len(found) > 1 else ""
        taken.append(f"its {found[0]!r}{others}")
        value = value[found[0]]
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not a state dict")
    if not value:
        raise CheckpointError(f"{path}: the state dict is empty")
    return value, _joined(*taken)


def _holds_weights(value: dict) -> bool:
    return any(isinstance(v, Tensor) for v in value.values()) or any(
        isinstance(value.get(k), dict) for k in _WRAPPERS
    )


def _check_tensors(state: dict, path: Path) -> None:
    """Refuse entries that are no tensors, and tensors whose numbers are not all in the file."""
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: not a state dict: its key {key!r} is no text")
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: not a state dict: entry {key!r} is a {kind}, no tensor")
        if unusable := _unusable_kind(tensor):
            raise CheckpointError(f"{path}: entry {key!r} is {unusable}; dense tensors are needed")


def _unusable_kind(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a sparse tensor ({tensor.layout})"
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype})"
    if tensor.is_meta:
        return "a meta tensor, which has a shape and no numbers"
    have, want = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if want > have:
        return f"an expanded tensor: its shape {tuple(tensor.shape)} takes {want} bytes of {have}"
    return None


def variants(state: dict[str, Tensor]) -> list[tuple[dict[str, Tensor], str]]:
    """Return the state dicts that the keys of a file may stand for; see `Checkpoint.variants`.

    Beside each stands in words which keys it leaves out.
    """
    found = [(each, "") for each in _peeled(state)]
    bare = found[-1][0]
    for prefix in _PREFIXES:
        # A LightningModule's state dict may hold losses or averaged weights besides its network.
        inner = {k[len(prefix) :]: v for k, v in bare.items() if k.startswith(prefix)}
        if 0 < len(inner) < len(bare):
            count = len(bare) - len(inner)
            left_out = f"its {prefix!r}, not the {count} other key{'s' * (count > 1)}"
            found += [(each, left_out) for each in _peeled(inner)]
    return found


def _of_a_family(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the variant that has the keys of one of the study's families, else all keys."""
    parts = {left_out: found for found, left_out in variants(state)}  # without all prefixes
    known = (p for p in parts if p and detect_layout(parts[p]) is not None)
    taken = next(known, "")
    return parts[taken], taken


def _peeled(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return `state` without 0, 1, ... of the prefixes that all of its keys have."""
    found = [state]
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k[len(prefix) :]: v for k, v in state.items()}
        found.append(state)
    return found


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)
