"""ConvNeXt in the study's layout: timm's stem and stages, average pooling, a linear layer."""

from typing import Any

import timm
from torch import nn

from .classifier import BackboneWithHead
from .timm_cfg import study_cfg


class ConvNeXtStudy(BackboneWithHead):
    """timm's ConvNeXt without the norm before its head, with the study's state dict.

    x (N,3,H,W) -> features (N,C,H/32,W/32) -> average pooling, linear -> logits (N,num_classes).
    The keys are ``0.0.*`` (timm's stem), ``0.1.*`` (timm's stages), ``1.fc.weight``, ``1.fc.bias``:
    342 for ConvNeXt-B.

    Args:
        name: a model of timm's ``convnext`` module, with or without a pretrained tag.
        num_classes: 0 leaves the classifier out.
        pretrained: download timm's weights of that tag and load them into stem and stages.
        global_pool, drop_rate: see `Classifier.make_head`.
        **kwargs: passed to timm's ConvNeXt, such as ``in_chans`` and ``drop_path_rate``.

    Raises:
        RuntimeError: timm does not know the tag.

    Example:
        >>> import torch
        >>> from cba_fast.models import ConvNeXtStudy
        >>> model = ConvNeXtStudy("test_convnext", num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> list(model.state_dict())[-1]
        '1.fc.bias'
    """

    family = "convnext"

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        pretrained: bool = False,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **kwargs: Any,
    ):
        base = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        backbone = _StemAndStages(base.stem, base.stages)
        super().__init__(backbone, base.num_features, num_classes, global_pool, drop_rate)
        self.feature_info = [
            {**info, "module": info["module"].replace("stages", "0.1")}
            for info in base.feature_info
        ]
        self.pretrained_cfg = self.default_cfg = study_cfg(first_conv="0.0.0", classifier="1.fc")

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return timm's groups of layers, for learning rates that fall with depth."""
        blocks = [
            (r"^0\.1\.(\d+)\.downsample", (0,)),
            (r"^0\.1\.(\d+)\.blocks\.(\d+)", None),
        ]
        return {"stem": r"^0\.0", "blocks": r"^0\.1\.(\d+)" if coarse else blocks}


class _StemAndStages(nn.Sequential):
    """timm's stem and stages under the names ``0`` and ``1``."""

    def stage_modules(self) -> list[tuple[nn.Module, ...]]:
        stem, stages = self[0], list(self[1].children())
        return [(stem, stages[0]), *((stage,) for stage in stages[1:])]

    def keep_stages(self, count: int) -> None:
        stages: Any = self[1]
        self[1] = stages[:count]
