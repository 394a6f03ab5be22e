"""ConvNeXt in the study's layout: timm's stem and stages, average pooling, linear."""

import timm
from torch import nn

from .layers import BackboneWithHead
from .timm_cfg import study_cfg


class ConvNeXtStudy(BackboneWithHead):
    """timm's ConvNeXt without the norm before its head, with the study's state dict.

    x (N,3,H,W) -> features (N,C,H/32,W/32) -> average pooling, linear -> logits (N,num_classes).
    The keys are ``0.0.*`` (timm's stem), ``0.1.*`` (timm's stages), ``1.fc.weight``, ``1.fc.bias``:
    342 for ConvNeXt-B.

    Args:
        name: a model of timm's ``convnext`` module, with or without a pretrained tag.
        num_classes: 0 leaves the classifier out.
        pretrained: load timm's weights of that tag into stem and stages (downloads them).
        **kwargs: passed to timm's ConvNeXt, such as ``in_chans`` and ``drop_path_rate``.

    Raises:
        RuntimeError: timm does not know the tag.
    """

    family = "convnext"

    def __init__(self, name: str, num_classes: int = 1000, pretrained: bool = False, **kwargs):
        base = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        super().__init__(nn.Sequential(base.stem, base.stages), base.num_features, num_classes)
        self.pretrained_cfg = self.default_cfg = study_cfg(first_conv="0.0.0", classifier="1.fc")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        for stage in self.backbone[1]:
            stage.grad_checkpointing = enable
