"""Finds by structure, in anyone's model, norms to fold and parallel convolutions to merge."""

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from timm.layers import BatchNormAct2d
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ...errors import short_error
from ...nn import DepthwiseConv2d, fold_bn_before_conv1x1
from ...nn.fuse import fold_norm_after
from ...nn.fused import is_watched
from ...nn.swap import computes_as
from ...short import Short
from .branches import Branches, merged, unit_conv
from .graphs import Graph, input_of, is_addition

# Modules with more convolutions are no sum of branches, and need not be traced for one.
MOST_BRANCHES = 32

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)
_LAYERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, DepthwiseConv2d)
_LAYERS += (nn.Linear,)
_LAYERS += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, repr=False)
class Step(Short):
    """A rewrite of a model that changes its outputs by rounding alone.

    Attributes:
        kind: "after", a norm is folded into the layer before it; "before", into the 1x1 convolution
            after it; "sum", the parallel convolutions of a module become fewer.
        target: the name of the norm or of the module.
        layers: the names of the layers that it is folded into or that are summed.
    """

    kind: str
    target: str
    layers: tuple[str, ...]

    def apply(self, model: nn.Module, strips: bool) -> None:
        """Change `model` in place; see `cba_fast.models.inference.branches.merged` for `strips`."""
        target = model.get_submodule(self.target)
        if self.kind == "sum":
            found = _Sum.of(target)
            assert found is not None  # a step is made for what was found
            rest = found.replaced(strips)
        else:
            layer = model.get_submodule(self.layers[0])
            if self.kind == "after":
                fold_norm_after(layer, target)
            else:
                assert isinstance(layer, nn.Conv2d)  # as `conv1x1_after` finds them
                new = fold_bn_before_conv1x1(target, layer)
                layer.weight, layer.bias = new.weight, new.bias
            rest = nn.Identity()
            if isinstance(target, BatchNormAct2d):
                rest = nn.Sequential()
                rest.add_module("drop", target.drop)
                rest.add_module("act", target.act)
        parent, _, name = self.target.rpartition(".")
        setattr(model.get_submodule(parent), name, rest.eval())


class Search:
    """Looks through a model for steps.

    Args:
        model: in evaluation mode.
        keep: the names of modules that no step may touch, with the reasons.

    Attributes:
        left: why each batch norm was left; filled by `norms`.
    """

    def __init__(self, model: nn.Module, keep: dict[str, str]):
        self._keep = keep
        self._modules = dict(model.named_modules())
        paths = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
        self._shared = {n for n, m in self._modules.items() if paths[id(m)] > 1}
        self.left: dict[str, str] = {}
        self._graphs = list(self._traced("", model))

    def norms(self) -> Iterator[Step]:
        """Yield a step for each batch norm that can be folded into a layer next to it."""
        taken: set[str] = set()
        for graph in self._graphs:
            for node in graph.nodes:
                if isinstance(graph.module(node), _BatchNorm):
                    step = self._step_of(graph, node)
                    if isinstance(step, str):
                        self.left[graph.name(node)] = step
                    elif not taken & {step.target, *step.layers}:
                        # A second norm of the same layer waits for the next search.
                        taken |= {step.target, *step.layers}
                        yield step

    def _traced(self, name: str, module: nn.Module) -> Iterator[Graph]:
        """Yield the graphs of the largest modules with norms or convolutions that can be traced."""
        inside = dict(module.named_modules(prefix=name))
        norms = [n for n, m in inside.items() if isinstance(m, _BatchNorm)]
        convs = any(isinstance(m, _ConvNd) for m in inside.values())
        if isinstance(module, _BatchNorm | _ConvNd) or not (norms or convs):
            return
        self.left |= dict.fromkeys(norms, "no module that torch.fx traces calls it")
        try:
            graph = Graph(module, name)
        except Exception as e:  # the code is someone else's and may raise anything
            why = f"torch.fx cannot trace {type(module).__qualname__}: {short_error(e)}"
            self.left |= dict.fromkeys(norms, why)
            for child, inner in module.named_children():
                yield from self._traced(f"{name}.{child}" if name else child, inner)
        else:
            yield graph

    def _step_of(self, graph: Graph, node: fx.Node) -> Step | str:
        """Return the step that folds the norm of a node, or the reason why there is none."""
        norm, name = graph.module(node), graph.name(node)
        if norm is None or not any(computes_as(norm, base) for base in _BATCH_NORMS):
            return f"its type is {type(norm).__qualname__}, which may compute something else"
        if norm.running_mean is None or norm.running_var is None:
            return "it has no running statistics"
        if why := self._untouchable(graph, node):
            return why
        source, permuted = graph.source(node)
        layer = graph.module(source)
        why = f"it follows {graph.describe(graph.through_nothing(source, shared=True))}"
        if source is not None and _is_layer(layer, norm, permuted):
            if len(source.users) == 1:
                after = Step("after", name, (graph.name(source),))
                return self._untouchable(graph, source) or after
            why = f"the result of {graph.name(source)} is used elsewhere, too"
        conv = graph.conv1x1_after(node)
        if conv is None or not _only_norms(norm):
            return why
        return self._untouchable(graph, conv) or Step("before", name, (graph.name(conv),))

    def _untouchable(self, graph: Graph, node: fx.Node) -> str | None:
        name = graph.name(node)
        if graph.calls[node.target] > 1:
            return f"{name} is called several times"
        return self._to_be_kept(name)

    def _to_be_kept(self, name: str) -> str | None:
        if name in self._keep:
            return self._keep[name]
        if name in self._shared:
            return f"{name} stands in several places"
        return f"a hook watches {name}" if is_watched(self._modules[name]) else None

    def sums(self, strips: bool) -> Iterator[Step]:
        """Yield a step for each module that sums parallel convolutions of one input."""
        seen: set[str] = set()
        owners = {name for graph in self._graphs for name in graph.adding_modules()}
        for name, module in reversed(self._modules.items()):
            if not name or name not in owners:
                continue
            inside = [n for n, _ in module.named_modules(prefix=name) if n in self._modules]
            convs = sum(isinstance(self._modules[n], nn.Conv2d) for n in inside)
            if not 1 <= convs <= MOST_BRANCHES or seen & set(inside):
                continue
            found = None if any(map(self._to_be_kept, inside)) else _Sum.of(module)
            if found is not None and len(merged(found.convs, strips)) < len(found.convs):
                seen.add(name)  # the modules around it contain the same sum
                yield Step("sum", name, tuple(f"{name}.{n}" for n in found.names))


class _Sum:
    """A sum of convolutions and norms of one input, and of that itself, in a module's graph.

    Attributes:
        convs: the convolutions; norms and the input stand as 1x1 convolutions.
        names: the names in the module of what is summed.
    """

    def __init__(self, module, graph: Graph, root: fx.Node, source: fx.Node, names, convs):
        self._module, self._graph, self._root, self._source = module, graph, root, source
        self.names, self.convs = names, convs

    @classmethod
    def of(cls, module: nn.Module) -> "_Sum | None":
        """Return the first sum in a module whose ``forward`` has one argument, or None."""
        try:
            if len(inspect.signature(module.forward).parameters) != 1:
                return None
            graph = Graph(module)
        except Exception:  # the code is someone else's and may raise anything
            return None
        for node in reversed(graph.nodes):
            if is_addition(node) and not any(map(is_addition, node.users)):
                found = cls._at(module, graph, node)
                if found is not None:
                    return found
        return None

    @classmethod
    def _at(cls, module: nn.Module, graph: Graph, root: fx.Node) -> "_Sum | None":
        leaves = list(graph.leaves(root))
        called = [n for n in leaves if n is not None and graph.module(n) is not None]
        like = next((m for m in map(graph.module, called) if isinstance(m, nn.Conv2d)), None)
        if like is None or any(len(n.users) > 1 or graph.calls[n.target] > 1 for n in called):
            return None
        sources = {graph.through_nothing(input_of(leaf), shared=True) for leaf in called}
        # The input itself may be summed, too.
        rest = {graph.through_nothing(leaf, shared=True) for leaf in leaves if leaf not in called}
        source, *others = sources
        if others or source is None or rest - sources:
            return None
        modules = [graph.module(leaf) for leaf in leaves]
        convs = [unit_conv(m, like) if m is None or _only_norms(m) else m for m in modules]
        known = [m for m in convs if m is not None and _is_conv2d(m)]
        if len(known) < len(convs):
            return None
        return cls(module, graph, root, source, [leaf.target for leaf in called], known)

    def replaced(self, strips: bool) -> nn.Module:
        """Return a module that computes what the sum's module does, with fewer convolutions."""
        fewer = merged(self.convs, strips)
        new = fewer[0] if len(fewer) == 1 else Branches(fewer)
        graph = self._graph.graph
        if graph.output_node().args[0] is self._root and self._source.op == "placeholder":
            return new  # the module does nothing else
        rest = fx.GraphModule(self._module, graph, type(self._module).__name__)
        name = "merged_branches"
        while hasattr(rest, name):
            name += "_"
        rest.add_module(name, new)
        with rest.graph.inserting_before(self._root):
            node = rest.graph.call_module(name, (self._source,))
        self._root.replace_all_uses_with(node)
        rest.graph.eliminate_dead_code()
        rest.delete_all_unused_submodules()
        rest.recompile()
        return rest


def _is_conv2d(module: nn.Module) -> bool:
    return computes_as(module, nn.Conv2d) or computes_as(module, DepthwiseConv2d)


def _only_norms(module: nn.Module) -> bool:
    """Say whether a module is a batch norm over maps, without an activation of its own."""
    if isinstance(module, BatchNormAct2d):
        return all(isinstance(m, nn.Identity) for m in (module.drop, module.act))
    return any(computes_as(module, base) for base in (nn.BatchNorm2d, nn.SyncBatchNorm))


def _is_layer(layer: nn.Module | None, norm: nn.Module, permuted: bool) -> bool:
    """Say whether a norm after a layer can be folded into it."""
    bases = (nn.Linear,) if permuted else _LAYERS
    if layer is None or not any(computes_as(layer, base) for base in bases):
        return False
    if isinstance(layer, _ConvTransposeNd) and layer.groups > 1:
        return False
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return norm.num_features == width
