"""The experiments of a YAML file: what it may say, how grids expand, what each is called."""

import difflib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import InputError
from ..short import Short
from .settings import STRICT, PathText, Settings

_SHORT = {"input_size": "r", "epochs": "e", "aug_mode": "aug", "batch_size": "b"}
_SHORT |= {"localization_method": "", "schedule": "", "weight_path": ""}


@dataclass(frozen=True)
class Experiment:
    """One experiment; its name is that of its files and of its row in the CSV."""

    name: str
    settings: Settings


@dataclass(frozen=True, repr=False)
class Plan(Short):
    """A file of experiments: where results go, and the experiments in the file's order.

    Attributes:
        path: the YAML file.
        output_dir: gets ``<name>.json``, ``erf_<name>.npy`` and ``<name>.error.txt``.
        csv: the file of points, see `cba_fast.analysis.points`.
        experiments: `experiments`, then the grids, the last axis varying fastest.
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


def load_experiments(path: Path) -> Plan:
    """Read a YAML file of experiments; see docs/experiments.md for its format.

    Every problem of the file is found before anything runs.

    Raises:
        InputError: not YAML, a key given twice, an unknown key, a wrong type, keys that cannot be
            combined, a name that is used twice or cannot be a file name. The message has one line
            per problem, with file, experiment and key.
    """
    problems: list[str] = []
    document = _validated(_Document, _read_yaml(path), "", problems, {})
    found: list[tuple[str, Experiment]] = []
    if document is not None:
        # A family stands in: that the defaults leave it out is no problem of theirs.
        known = {"model_family": "convnext", **document.defaults}
        _validated(Settings, known, "defaults", problems, {})
        for where, own, varied, prefix in _entries(document, problems):
            settings = _settings(own, document.defaults, where, problems)
            if settings is None:
                continue
            name = own.get("name") or _slug(settings, varied, prefix)
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
    """Yield label, keys, keys that make the default name, and its prefix of each experiment."""
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
        for values in itertools.product(*axes.values()):
            yield label, constant | dict(zip(axes, values)), list(axes), prefix


def _settings(own: dict, defaults: dict, where: str, problems: list[str]) -> Settings | None:
    """Return the settings of an experiment; defaults hold where they have a meaning."""
    own = {k: v for k, v in own.items() if k != "name"}
    merged = defaults | own
    settings = _validated(Settings, merged, where, problems, defaults.keys() - own.keys())
    if settings is None:
        return None
    unused = settings.unused()
    problems += [f"{where}: {k}: {unused[k]}" for k in own if k in unused and own[k] is not None]
    kept = {k: v for k, v in merged.items() if k not in unused}
    settings = Settings.model_validate(kept)
    problems += [f"{where}: {key}: {reason}" for key, reason in settings.conflicts()]
    return settings


def _validated(kind: type[BaseModel], values: dict, where: str, problems: list[str], skip):
    """Return a `kind` of `values`, or None; problems of the keys in `skip` are told elsewhere."""
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        for error in e.errors(include_url=False):
            key = str(error["loc"][0]) if error["loc"] else ""
            if key not in skip:
                parts = [where, key, _reason(kind, key, error)]
                problems.append(": ".join(p for p in parts if p))
    return None


def _reason(kind: type[BaseModel], key: str, error: dict) -> str:
    if error["type"] == "missing":
        return "must be given"
    if error["type"] != "extra_forbidden":
        text = error["msg"].removeprefix("Value error, ")
        return f"{text[0].lower()}{text[1:]}, got {error['input']!r}"
    close = difflib.get_close_matches(key, kind.model_fields, 1)
    return "unknown key" + (f"; did you mean {close[0]}?" if close else "")


def _name_problems(found: list[tuple[str, Experiment]]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for where, experiment in found:
        name = experiment.name
        if not isinstance(name, str):
            yield f"{where}: name: must be text, got {name!r}"
        elif not re.fullmatch(r"[^\s./\\][^/\\\n\r\t\0]*", name) or name != name.strip():
            yield f"{where}: name: {name!r} cannot be part of a file name"
        elif name in seen:
            yield f"{where}: name: {name!r} is also the name of {seen[name]}; give another name"
        else:
            seen[name] = where


def _slug(settings: Settings, keys: list[str], prefix: str) -> str:
    """Return a readable name: model or family, and the values of `keys` in a fixed order."""
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


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours: PyYAML or the validation refuses it
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8 text: {e}") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {getattr(e, 'problem', None) or e}") from e
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold keys such as 'defaults', 'experiments' and 'grid'")
    return content
