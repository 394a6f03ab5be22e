"""Write checkpoints of random weights in the study's, the official and timm's key layouts.

For tests and for trying commands on the real architectures without a download::

    PYTHONPATH=. python tests/checkpoint_factory.py replknet out.pth --num_classes 200
"""

import os
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import cba_fast.models
from cba_fast.models import DEFAULT_MODELS, ConvNeXtStudy

LAYOUTS = ("training", "merged", "timm")
WRAPPERS = (None, "model", "state_dict", "module")

# One small model per family.
SMALL_MODELS = {
    "convnext": "test_convnext",
    "replknet": "replknet_nano",
    "slak": "slak_nano",
    "slak_flex": "slak_flex_nano",
}


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make a fresh model look trained, in place.

    Nothing that a test must see stays at 0 or 1, and the input's variance reaches the logits: with
    PyTorch's own initialization each layer shrinks it to a third, until biases alone are left.
    Weights have variance 1 / fan_in; the residual branches are damped to 0.05 to 0.4, so that two
    dozen of them do not blow the activations up.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(t: Tensor, low: float, high: float) -> None:
        t.copy_(torch.empty(t.shape).uniform_(low, high, generator=g))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            edge = (3 / module.weight[0].numel()) ** 0.5
            uniform(module.weight, -edge, edge)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(7)
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
            uniform(module.weight, 0.6, 1.4)
        if name.endswith(".pw2.bn"):
            uniform(module.weight, 0.2, 0.4)
        if getattr(module, "bias", None) is not None:
            uniform(module.bias, -0.2, 0.2)
        if getattr(module, "gamma", None) is not None:
            uniform(module.gamma, 0.05, 0.3)
    for module in model.modules():
        if isinstance(module, nn.Sequential) and hasattr(module, "nonlinear"):
            module.bn.weight.mul_(2**0.5)  # a ReLU halves the second moment
    return model


def make_images(n: int = 1, size: int = 64, dtype=torch.float64, seed: int = 1) -> Tensor:
    """Return random smooth images (n,3,size,size): blobs that survive pooling, unlike white noise.

    The values are about standard normal.
    """
    blobs = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return nn.functional.interpolate(blobs, (size, size), mode="bilinear")


def make_model(
    family: str,
    model: str | None = None,
    *,
    num_classes: int = 200,
    layout: str = "training",
    seed: int = 0,
    **options,
) -> nn.Module:
    """Build a model of random weights (float32, evaluation mode) whose state dict has `layout`.

    Args:
        family: one of `cba_fast.models.FAMILIES`.
        model: a model name; None for the study's.
        num_classes: rows of the classifier.
        layout: "training" (the study's and the official keys), "merged" (branches merged), or
            "timm" (convnext under timm's own names).
        seed: of the weights; the global generator is left as it was.
        **options: options of the model's constructor.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    name = model or DEFAULT_MODELS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "convnext" and layout != "timm":
            built = ConvNeXtStudy(name, num_classes=num_classes, **options)
        else:
            built = timm.create_model(name, num_classes=num_classes, **options)
        randomize(built, seed)
    if layout == "merged":
        built.structural_reparam()
    return built.eval()


def make_checkpoint(
    path: str | os.PathLike,
    family: str,
    model: str | None = None,
    *,
    wrapper: str | None = None,
    **kwargs,
) -> Path:
    """Write the state dict of `make_model(family, model, **kwargs)` to `path` and return the path.

    Args:
        wrapper: None for the bare state dict, "model" or "state_dict" for a dict with that entry
            (and an epoch), "module" for DataParallel's key prefix.
    """
    return write_checkpoint(path, make_model(family, model, **kwargs).state_dict(), wrapper)


def write_checkpoint(
    path: str | os.PathLike, state: dict[str, Tensor], wrapper: str | None = None
) -> Path:
    """Write `state` to `path` in `wrapper` (see `make_checkpoint`) and return the path."""
    if wrapper not in WRAPPERS:
        raise ValueError(f"wrapper must be one of {WRAPPERS}, got {wrapper!r}")
    value: dict = dict(state)
    if wrapper == "module":
        value = {f"module.{k}": v for k, v in value.items()}
    elif wrapper is not None:
        value = {"epoch": 3, wrapper: value}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=cba_fast.models.FAMILIES)
    parser.add_argument("path")
    parser.add_argument("--model")
    parser.add_argument("--num_classes", type=int, default=200)
    parser.add_argument("--layout", choices=LAYOUTS, default="training")
    parser.add_argument("--wrapper", choices=[w for w in WRAPPERS if w])
    parser.add_argument("--seed", type=int, default=0)
    args = vars(parser.parse_args())
    print(make_checkpoint(args.pop("path"), args.pop("family"), args.pop("model"), **args))


if __name__ == "__main__":
    main()
