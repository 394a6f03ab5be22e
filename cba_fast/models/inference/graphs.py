"""The operations of other people's modules, as `torch.fx` finds them, for `structure`."""

import inspect
import operator
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...nn.depthwise import true_padding
from ...nn.swap import computes_as

_NOTHING = (nn.Identity, nn.modules.dropout._DropoutNd)  # in evaluation mode
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


class Graph:
    """The operations of one module, its layers as single nodes, and their names in the model."""

    def __init__(self, root: nn.Module, prefix: str = ""):
        self._root, self._prefix = root, prefix
        self.graph = trace(root)
        self.nodes = self.graph.nodes
        self.calls = Counter(n.target for n in self.nodes if n.op == "call_module")

    def module(self, node: fx.Node | None) -> nn.Module | None:
        """Return the module that a node calls, or None."""
        if node is None or node.op != "call_module":
            return None
        return self._root.get_submodule(str(node.target))

    def name(self, node: fx.Node) -> str:
        """Return the name in the model of the module that a node calls."""
        return f"{self._prefix}.{node.target}" if self._prefix else str(node.target)

    def adding_modules(self) -> set[str]:
        """Return the names in the model of the modules whose own code adds tensors."""
        stacks = [n.meta.get("nn_module_stack", {}) for n in self.nodes if is_addition(n)]
        # A module that is called again has "@1" after its name.
        inner = [list(stack)[-1].partition("@")[0] if stack else "" for stack in stacks]
        return {".".join(filter(None, (self._prefix, name))) for name in inner}

    def describe(self, node: fx.Node | None) -> str:
        """Return words for what a node computes."""
        if node is None or node.op in ("placeholder", "get_attr"):
            return "an input of the module"
        if node.op == "call_module":
            return f"a {type(self.module(node)).__qualname__}"
        return f"the operation {getattr(node.target, '__name__', node.target)}"

    def source(self, node: fx.Node) -> tuple[fx.Node | None, bool]:
        """Return the node whose values another gets, and whether their last axis became axis 1."""
        permuted = False
        found = input_of(node)
        while found is not None and len(found.users) == 1:
            if _moves_channels_first(found) and not permuted:
                permuted = True
            elif not self._does_nothing(found):
                break
            found = input_of(found)
        return found, permuted

    def through_nothing(self, node: fx.Node | None, shared: bool = False) -> fx.Node | None:
        """Return the node that gives a node its values, past identities.

        Args:
            node: where to begin.
            shared: whether to pass identities of which there are several users.
        """
        while node is not None and self._does_nothing(node):
            if not shared and len(node.users) != 1:
                break
            node = input_of(node)
        return node

    def _does_nothing(self, node: fx.Node) -> bool:
        return (_adds(node) and 0 in node.args) or isinstance(self.module(node), _NOTHING)

    def leaves(self, node: fx.Node) -> Iterator[fx.Node | None]:
        """Yield the nodes that a tree of additions sums; None for what comes from no node."""
        for term in map(self.through_nothing, node.all_input_nodes):
            if term is not None and is_addition(term) and len(term.users) == 1:
                yield from self.leaves(term)
            else:
                yield term

    def conv1x1_after(self, node: fx.Node) -> fx.Node | None:
        """Return the 1x1 convolution without padding that alone uses a result, or None."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            module = self.module(node)
            if isinstance(module, nn.Conv2d):
                padding = true_padding(module)
                pads = padding not in ("same", "valid") and any(padding)
                plain = computes_as(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1)
                return node if plain and not pads else None
            if not self._does_nothing(node):
                return None
        return None


class _Tracer(fx.Tracer):
    """Keeps every convolution, linear layer and batch norm as one node, subclasses included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, _ConvNd | nn.Linear | _BatchNorm)
        return known or super().is_leaf_module(m, module_qualified_name)


def trace(module: nn.Module) -> fx.Graph:
    """Return the graph of a module, with the defaults for arguments that have one."""
    arguments = inspect.signature(module.forward).parameters.values()
    named = {p.name: p.default for p in arguments if p.default is not inspect.Parameter.empty}
    return _Tracer().trace(module, concrete_args=named or None)


def input_of(node: fx.Node) -> fx.Node | None:
    """Return the first node that an operation reads."""
    return next((a for a in node.args if isinstance(a, fx.Node)), None)


def _moves_channels_first(node: fx.Node) -> bool:
    if node.target not in ("permute", torch.permute):
        return False
    order = node.args[1] if len(node.args) == 2 else node.args[1:]
    return isinstance(order, list | tuple) and tuple(order) == (0, 3, 1, 2)


def _adds(node: fx.Node) -> bool:
    called = node.op in ("call_function", "call_method")
    return called and node.target in _ADDITIONS and not node.kwargs


def is_addition(node: fx.Node) -> bool:
    """Say whether a node adds the results of two others."""
    return _adds(node) and len(node.all_input_nodes) == len(node.args) == 2
