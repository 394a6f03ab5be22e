"""Recognize a checkpoint's model family and layout by the keys of its state dict."""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...short import Short


@dataclass(frozen=True, repr=False)
class Layout(Short):
    """The layout of a checkpoint, as its keys show it.

    Attributes:
        family: the model family.
        name: "official", "study", "timm" or "merged".
        classifier: key of the classifier's weight (num_classes, C).
        options: constructor options that the keys imply.
    """

    family: str
    name: str
    classifier: str
    options: dict[str, Any] = field(default_factory=dict)


def detect_layout(state: dict[str, Tensor]) -> Layout | None:
    """Return the layout whose characteristic keys `state` has, or None.

    Example:
        >>> from cba_fast.models import build_model, detect_layout
        >>> layout = detect_layout(build_model("replknet", model="replknet_nano").state_dict())
        >>> layout.family, layout.name, layout.classifier
        ('replknet', 'official', 'head.weight')
    """

    def has(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in state)

    if has(r"^stem\.0\.conv\.|\.prelkb_bn\."):
        merged = has(r"\.large_kernel\.lkb_reparam\.")
        options: dict[str, Any] = {"merged": True} if merged else {}
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


# Keys of facebookresearch/ConvNeXt (and ConvNeXt-V2), as regular expressions, and timm's names.
_CONVNEXT_NAMES = [
    (r"^downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"^downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]


def in_known_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of facebookresearch's ConvNeXt to timm's, and those of early SLaK files."""
    if any(re.match(r"stages\.\d\.\d+\.dwconv\.weight$", key) for key in state):
        names = _CONVNEXT_NAMES
    else:
        names = [(r"\.large_kernel\.Decom", ".large_kernel.LoRA")]
    renamed = {}
    for key, value in state.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        renamed[key] = value.reshape(-1) if ".mlp.grn." in key else value
    return renamed
