"""Read a plan file: a YAML file of experiments and grids of experiments."""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator

from ..analysis.documents import read_document
from ..analysis.models import MODEL_KEYS
from ..analysis.points import is_points_text
from ..choices import INPUT_SIZE
from ..data.cub import is_cub
from ..data.textlines import shown, unprintable
from ..errors import InputError
from ..models import FAMILIES, read_checkpoint
from ..models.resolve import resolve_description
from ..short import Short
from ..training.config import MOST_NAME_BYTES
from .settings import STRICT, PathText, Settings

_SHORT = {"input_size": "r", "epochs": "e", "aug_mode": "aug", "batch_size": "b"}
_MOST_EXPERIMENTS = 10_000
_HOLDS = "a plan must hold keys such as 'defaults', 'experiments' and 'grid'"
_SHORT |= {"localization_method": "", "schedule": "", "weight_path": ""}


@dataclass(frozen=True)
class Experiment:
    """An experiment; its name is used for its files and for its row in the CSV."""

    name: str
    settings: Settings


@dataclass(frozen=True, repr=False)
class Plan(Short):
    """The contents of a plan file: where results go, and the experiments.

    Attributes:
        path: the YAML file.
        output_dir: folder for ``<name>.json``, ``erf_<name>.npy`` and ``<name>.error.txt``.
        csv: the file of points, see `cba_fast.analysis.points`.
        experiments: first those listed one by one, then those of the grids, whose last axis varies
            fastest.
    """

    path: Path
    output_dir: Path
    csv: Path
    experiments: tuple[Experiment, ...]


class _Document(BaseModel):
    model_config = STRICT

    output_dir: PathText = Path("erf_wsol")
    csv: PathText = Path("erf_wsol_points.csv")
    defaults: dict[str, Any] = {}
    experiments: list[dict[str, Any]] = []
    grid: dict[str, Any] | list[dict[str, Any]] = []

    @field_validator("defaults", "experiments", "grid")
    @classmethod
    def _named(cls, value: dict | list) -> dict | list:
        """Let `weights`, as the commands call it, stand for weight_path."""
        if isinstance(value, list):
            return [cls._named(entry) for entry in value]
        if {"weights", "weight_path"} <= value.keys():
            raise ValueError("weights and weight_path are two names of one setting")
        return {"weight_path" if k == "weights" else k: v for k, v in value.items()}


def load_experiments(path: Path) -> Plan:
    """Read a plan file, whose format docs/experiments.md describes, and check all of it.

    Raises:
        InputError: the file is not YAML, a key is given twice or unknown, a value has a wrong type,
            keys cannot be combined, or a name is used twice or cannot be a file name. The message
            has one line per problem, with file, experiment and key.
    """
    problems: list[str] = []
    document = _validated(_Document, _read(path), "", problems, {})
    found: list[tuple[str, Experiment]] = []
    if document is not None:
        # The defaults need no family, so any one serves to check the rest of them.
        known = {"model_family": "convnext", **document.defaults}
        _validated(Settings, known, "defaults", problems, {})
        for where, own, varied, prefix in _entries(document, problems):
            settings = _settings(own, document.defaults, where, problems)
            if settings is None:
                continue
            given = own.get("name")
            name = _slug(settings, varied, prefix) if given is None else given
            found.append((where, Experiment(name, settings)))
        if not found and not problems:
            problems.append("no experiment: give 'experiments' or 'grid'")
        problems += _name_problems(found)
    if problems:
        raise InputError("\n".join(f"{path}: {line}" for line in dict.fromkeys(problems)))
    return Plan(path, document.output_dir, document.csv, tuple(e for _, e in found))


def _entries(
    document: _Document, problems: list[str]
) -> Iterator[tuple[str, dict, list[str], str]]:
    """Yield for each experiment: its label in messages, its settings, and how to name it.

    The name is made of a prefix (the last item) and of some settings (the third item lists them).
    """
    for n, entry in enumerate(document.experiments, 1):
        label = f"experiment {n}" + (f" ({entry['name']})" if entry.get("name") else "")
        yield label, entry, [k for k in entry if k != "name"], ""
    grids = document.grid if isinstance(document.grid, list) else [document.grid]
    for n, grid in enumerate(grids, 1):
        label = f"grid {n}"
        constant = {k: v for k, v in grid.items() if not isinstance(v, list)}
        prefix = constant.pop("name", "")
        axes = {k: v for k, v in grid.items() if isinstance(v, list)}
        problems += [f"{label}: {k}: the list is empty" for k, v in axes.items() if not v]
        if not isinstance(prefix, str) or "name" in axes:
            problems.append(f"{label}: name: must be text, the beginning of each name")
            continue
        if (count := math.prod(map(len, axes.values()))) > _MOST_EXPERIMENTS:
            problems.append(f"{label}: stands for {count} experiments, more than 10000")
            continue
        for values in itertools.product(*axes.values()):
            yield label, constant | dict(zip(axes, values)), list(axes), prefix


def _settings(own: dict, defaults: dict, where: str, problems: list[str]) -> Settings | None:
    """Return an experiment's own settings and the defaults that have a meaning for it."""
    own = {k: v for k, v in own.items() if k != "name"}
    recorded = _recorded(defaults | own, where, problems)
    if recorded is None:
        return None
    merged = recorded | defaults | own
    settings = _validated(Settings, merged, where, problems, defaults.keys() - own.keys())
    if settings is None:
        return None
    unused = settings.unused()
    problems += [f"{where}: {k}: {unused[k]}" for k in own if k in unused and own[k] is not None]
    kept = {k: v for k, v in merged.items() if k not in unused}
    settings = Settings.model_validate(kept)
    root = settings.data_root
    if "test_dataset" not in kept and settings.weight_path is None and is_cub(root):
        # A CUB folder that is trained on has test images, too. A folder of `datasets/` comes first.
        root = root.absolute() if (Path("datasets") / root).is_dir() else root
        settings = settings.model_copy(update={"test_dataset": str(root)})
    problems += [f"{where}: {key}: {reason}" for key, reason in settings.conflicts()]
    return settings


def _recorded(values: dict, where: str, problems: list[str]) -> dict | None:
    """Return what the checkpoint at `weight_path` and the model's name say, as settings.

    None, and a problem more, if that cannot be.
    """
    path = values.get("weight_path")
    kinds = {"family": str, "model": str, "factory": str, "num_classes": int, "preprocess": str}
    keys = {"family": "model_family", "factory": "model_factory"}
    asked: dict[str, Any] = {k: values.get(keys.get(k, k)) for k in kinds}
    asked = {k: v for k, v in asked.items() if isinstance(v, kinds[k])}
    # `check_inputs` reports a missing file.
    given = path if isinstance(path, str | Path) and Path(path).is_file() else None
    if given is None and not asked.keys() & {"model", "factory"}:
        return {}
    try:
        checkpoint = None if given is None else read_checkpoint(given, mapped=True)
        found = resolve_description(checkpoint, default_input_size=INPUT_SIZE, **asked).description
    except InputError as e:
        if given is None and "family" in asked:
            return {}  # `Settings.conflicts` says so
        problems.append(f"{where}: {'model' if given is None else 'weight_path'}: {e}")
        return None
    said = checkpoint.description if checkpoint else None
    names = ("model", "output_stride", "input_size", "alpha", "beta") if said else ()
    recorded = {name: getattr(said, name) for name in names}
    recorded |= {"preprocess": said.preprocessing} if said else {}
    if found.family not in FAMILIES or found.preprocessing == "model":
        recorded["input_size"] = found.input_size
    return {"model_family": found.family} | {k: v for k, v in recorded.items() if v is not None}


def _validated(kind: type[BaseModel], values: dict, where: str, problems: list[str], skip):
    """Return `values` as a `kind`; if they are not valid, return None and add to `problems`.

    Problems of the keys in `skip` are not added, because they are reported elsewhere.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        for error in e.errors(include_url=False):
            key = str(error["loc"][0]) if error["loc"] else ""
            if key not in skip:
                parts = [where, key, _reason(kind, key, error)]
                problems.append(": ".join(p for p in parts if p))
    return None


def _reason(kind: type[BaseModel], key: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "missing":
        return "must be given"
    if error["type"] != "extra_forbidden":
        text = error["msg"].removeprefix("Value error, ")
        return f"{text[0].lower()}{text[1:]}, got {shown(error['input'])}"
    close = difflib.get_close_matches(key, kind.model_fields, 1)
    return "unknown key" + (f"; did you mean {close[0]}?" if close else "")


def _name_problems(found: list[tuple[str, Experiment]]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for where, experiment in found:
        name = experiment.name
        if not isinstance(name, str):
            yield f"{where}: name: must be text, got {shown(name)}"
        elif not name:
            yield f"{where}: name: is empty"
        elif what := unprintable(name):
            yield f"{where}: name: {shown(name)} holds {what}"
        elif not re.fullmatch(r"[^\s./\\][^/\\]*", name) or name != name.strip():
            yield f"{where}: name: {shown(name)} cannot be part of a file name"
        elif name[0] in "=+-@":
            yield f"{where}: name: {shown(name)}: in a CSV a spreadsheet would run it as a formula"
        elif (length := len(name.encode())) > MOST_NAME_BYTES:
            yield (
                f"{where}: name: {shown(name)} has {length} bytes; files are named after it, which"
                f" leaves {MOST_NAME_BYTES}"
            )
        elif name in seen:
            yield f"{where}: name: {name!r} is also the name of {seen[name]}; give another name"
        else:
            seen[name] = where


def _slug(settings: Settings, keys: list[str], prefix: str) -> str:
    """Return a readable name: prefix, model or family, and the values of `keys`."""
    parts = [prefix] if prefix else []
    parts.append(_text(settings.model if "model" in keys else settings.model_family))
    for key in Settings.model_fields:
        if key in keys and key not in ("model", "model_family"):
            parts.append(_SHORT.get(key, key) + _text(getattr(settings, key)))
    return "_".join(parts)


def _text(value: object) -> str:
    if isinstance(value, float):
        value = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, Path):
        value = value.stem
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value)).lower().lstrip(".")


def _read(path: Path) -> dict:
    content = read_document(path)
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and first.keys() >= set(MODEL_KEYS):
        raise InputError(f"{path}: a list of models, which analysis-erf-vs-wsol takes; {_HOLDS}")
    if is_points_text(content):
        raise InputError(f"{path}: a CSV of points, which plot-erf-vs-wsol takes; {_HOLDS}")
    if not isinstance(content, dict):
        raise InputError(f"{path}: {_HOLDS}")
    return content
