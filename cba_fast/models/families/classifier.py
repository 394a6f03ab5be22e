"""Base classes of the models: the interface of timm's models, and linear heads."""

from collections.abc import Sequence

from timm.layers import ClassifierHead, create_classifier
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .layers import mergeable, run_in_order


class Classifier(nn.Module):
    """Base class of the models: feature maps, pooling, and a linear head that gives logits.

    ``forward(x) == forward_head(forward_features(x))``, logits (N,num_classes). `forward_features`
    gives the map (N,num_features,h,w) that CAM weights by the rows of ``get_classifier().weight``.
    The interface is that of timm's models, intermediate features included. A subclass defines
    `stage_modules` and `keep_stages`, sets ``feature_info``, and calls `make_head`.

    Attributes:
        family: one of `cba_fast.models.FAMILIES`.
        study_softmax: whether the study's head of this family ends in a softmax, so that its ERF
            score takes the softmax twice. The modules return logits regardless.
        num_classes, num_features, head_hidden_size, feature_info, output_fmt: as in timm.
    """

    family = ""
    study_softmax = False
    output_fmt = "NCHW"
    _classifier_name = "head"
    norm: nn.Module

    def stage_modules(self) -> list[Sequence[nn.Module]]:
        """Return each stage's modules in running order; the last one's output is the stage's."""
        raise NotImplementedError

    def keep_stages(self, count: int) -> None:
        """Drop all stages but the first `count`."""
        raise NotImplementedError

    def make_head(
        self, num_features: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        """Add the pooling, the dropout and the linear layer (0 classes: none) of the head.

        Args:
            num_features: channels of the last feature map.
            num_classes: rows of the linear layer.
            global_pool: timm's name of a pooling: ``avg``, ``max``, ``avgmax``, or an empty string
                for none, with 0 classes only.
            drop_rate: rate of the dropout before the linear layer.
        """
        self.num_features, self.num_classes = num_features, num_classes
        self.global_pool, self.head = create_classifier(
            num_features, num_classes, pool_type=global_pool
        )
        self.head_hidden_size = num_features * self.global_pool.feat_mult()
        self.head_drop = nn.Dropout(drop_rate)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer (an identity if the model has 0 classes)."""
        return self.get_submodule(self._classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a freshly initialized one of `num_classes` (0: none).

        `global_pool` replaces the pooling, too: as in the constructor, or None to leave it.
        """
        parent, _, name = self._classifier_name.rpartition(".")
        holder = self.get_submodule(parent)
        kind = holder.global_pool.pool_type if global_pool is None else global_pool
        pool, linear = create_classifier(self.num_features, num_classes, pool_type=kind)
        holder.global_pool = pool
        setattr(holder, name, linear.to(next(self.parameters())).train(self.training))
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters with two dimensions or more that must not decay: none."""
        return set()

    def structural_reparam(self) -> None:
        """Merge parallel branches in place; norms outside of them stay (see `merge` for those)."""
        for module in mergeable(self):
            module.merge_branches()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the network's last feature map and the outputs of chosen stages, as timm does.

        Args:
            x: images (N,in_chans,H,W).
            indices: stages to return, counted from 0 or (negative) from the end; an integer n
                means the last n stages, None all of them.
            norm: apply the final norm to the last stage's output, where the head norms the map.
            stop_early: do not run the stages after the last one asked for.
            output_fmt: must be "NCHW".
            intermediates_only: return the list alone.

        Raises:
            ValueError: another `output_fmt`.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        stages = self.stage_modules()
        taken, last = feature_take_indices(len(stages), indices)
        found = []
        for i, modules in enumerate(stages[: last + 1] if stop_early else stages):
            x = run_in_order(modules, x)
            if i in taken:
                found.append(self.forward_norm(x) if norm and i == len(stages) - 1 else x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the modules that the outputs of the chosen stages do not need, as timm does.

        Args:
            indices: see `forward_intermediates`.
            prune_norm: drop the final norm.
            prune_head: drop pooling and classifier. Norm and head are also dropped with the last
                stage.

        Returns:
            The indices of the chosen stages.
        """
        count = len(self.stage_modules())
        taken, last = feature_take_indices(count, indices)
        self.keep_stages(last + 1)
        cut = last + 1 < count
        if (prune_norm or cut) and hasattr(self, "norm"):
            self.norm = nn.Identity()
        self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's output (N,C,h,w), before any pooling and norm."""
        for modules in self.stage_modules():
            x = run_in_order(modules, x)
        return x

    def forward_norm(self, x: Tensor) -> Tensor:
        """Return a map (N,C,h,w) or pooled features (N,C) after the norm of the head, if any."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (N,num_classes); with `pre_logits` what the linear layer gets (N,C)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class BackboneWithHead(Classifier):
    """A backbone and timm's linear head, with the state dict keys of the study.

    The study saves ``nn.Sequential(backbone, head)``, so the keys are ``0.*`` and ``1.fc.*``. Its
    head ends in a softmax, which this one leaves out. The backbone has the methods
    ``stage_modules`` and ``keep_stages``.
    """

    study_softmax = True
    _classifier_name = "1.fc"

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        num_classes: int,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        self.add_module("0", backbone)
        head = ClassifierHead(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.add_module("1", head)
        self.num_features, self.num_classes = num_features, num_classes
        self.head_hidden_size = num_features * head.global_pool.feat_mult()

    @property
    def backbone(self) -> nn.Module:
        return self.get_submodule("0")

    @property
    def head(self) -> nn.Module:
        return self.get_submodule("1")

    def stage_modules(self) -> list[Sequence[nn.Module]]:
        return self.backbone.stage_modules()

    def keep_stages(self, count: int) -> None:
        self.backbone.keep_stages(count)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.backbone(x)  # called as one module, so that its hooks run

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)
