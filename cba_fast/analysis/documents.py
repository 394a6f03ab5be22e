"""Read the small files that describe a study: YAML, or JSON."""

import re
from pathlib import Path

import yaml

from ..errors import InputError
from ..files import json_value, open_regular

# Such a file has a few hundred values; integers beyond 30 digits mean nothing in it.
_MOST_NODES, _MOST_DIGITS = 100_000, 30


def read_document(path: Path) -> object:
    """Return what a YAML or JSON file holds.

    Raises:
        InputError: the file is not UTF-8 text or neither of these, a key is given twice, it is
            nested too deeply, its aliases stand for more than 100,000 values, or an integer is
            longer than 30 digits. The message names the file and the line.
        OSError: the file cannot be read.
    """
    with open_regular(path) as f:
        data = f.read()
    # YAML would read most JSON, but refuses tabs. Some YAML begins like JSON.
    named = Path(path).suffix == ".json"
    if named or data.lstrip()[:1] in (b"[", b"{"):
        try:
            return json_value(path, data)
        except InputError:
            if named:
                raise
    try:
        return yaml.load(data.decode("utf-8-sig"), _Loader)
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: not UTF-8 text: {e}") from e
    except RecursionError as e:
        raise InputError(f"{path}: nested too deeply") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {getattr(e, 'problem', None) or _one_line(e)}") from e
    except ValueError as e:  # for example, a date such as 2026-13-41
        raise InputError(f"{path}: {e}") from e


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 1e-4 as a number, as YAML 1.2 does, and refuses hostile files.

    It refuses keys given twice, aliases that stand for too many values, and very long integers.
    """

    def get_single_node(self):
        node = super().get_single_node()
        self._count(node, {})
        return node

    def _count(self, node: yaml.Node | None, counts: dict[int, int]) -> int:
        """Count the nodes from `node` down, with aliases written out; refuse too many."""
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in counts:
            counts[id(node)] = _MOST_NODES  # refuses a node that contains itself
            pairs = isinstance(node, yaml.MappingNode)
            items = [n for pair in node.value for n in pair] if pairs else node.value
            counts[id(node)] = 1 + sum(self._count(item, counts) for item in items)
        if counts[id(node)] > _MOST_NODES:
            raise yaml.constructor.ConstructorError(
                None, None, f"its aliases stand for more than {_MOST_NODES} values", node.start_mark
            )
        return counts[id(node)]

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML or the validation refuses such a key
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"an integer of {len(node.value)} digits", node.start_mark
            )
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
