"""Networks of many kinds, everything that is run on them, and the exceptions with their reasons.

``python tests/any_model_sweep.py`` runs all networks, also the large ones that the test suite
leaves out, says what differs from the declared exceptions, and writes the list in
docs/any-model.md. Weights are random; nothing is downloaded.
"""

import copy
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torchvision
from data_factory import cub_folder
from torch import nn

import cba_fast.models  # noqa: F401  (registers our models with timm)
from cba_fast import erf
from cba_fast.data import open_image_set
from cba_fast.models import inference_form
from cba_fast.nn import accelerate, restore
from cba_fast.runs.evaluate import ScoredImages, score_images
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.scoring.boxes import open_boxes
from cba_fast.runs.settings import BoxConfig, DataConfig, MapConfig, RunConfig
from cba_fast.wsol import METHODS, heatmap

PAGE = Path(__file__).parent.parent / "docs" / "any-model.md"
CLASSES = 5
SWIN = {"depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "embed_dim": 32}


def _timm(side: int = 128, name: str | None = None, **options):
    return side, lambda own: timm.create_model(name or own, num_classes=CLASSES, **options)


def _torchvision(side: int = 128):
    return side, lambda own: torchvision.models.get_model(own.split()[1], num_classes=CLASSES)


# By name: the side of the images, and what makes the network.
SMALL = {
    **{name: _timm(160) for name in timm.list_models("test_*")},
    "resnet18": _timm(),
    "vgg narrow": (
        128,
        lambda own: timm.models.vgg.VGG([8, "M", 16, "M", 32, "M", 32, "M", 32, "M"], CLASSES),
    ),
    "densenet short": (
        128,
        lambda own: timm.models.densenet.DenseNet(8, (2, 2, 2, 2), num_classes=CLASSES),
    ),
    "mobilenetv2_050": _timm(),
    "mobilenetv3_small_050": _timm(),
    "convnext_atto": _timm(),
    "swin_tiny short": _timm(name="swin_tiny_patch4_window7_224", img_size=128, **SWIN),
    "vit_tiny_patch16_224": _timm(img_size=128),
    "mambaout_femto": _timm(),
    "replknet_nano": _timm(),
    "slak_nano": _timm(),
    "slak_flex_nano": _timm(),
}
BY_HAND = {
    "vgg11": _timm(),
    "densenet121": _timm(),
    "efficientnet_b0": _timm(),
    "maxvit_rmlp_pico_rw_256": _timm(img_size=128),
    "swinv2_tiny_window8_256": _timm(img_size=128),
    "regnety_002": _timm(),
    "torchvision resnet18": _torchvision(),
    "torchvision densenet121": _torchvision(),
    "torchvision convnext_tiny": _torchvision(),
    "torchvision swin_t": _torchvision(),
}
NETWORKS = {**SMALL, **BY_HAND}
_VITS = ("test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos")
_VITS += ("vit_tiny_patch16_224",)


@dataclass(frozen=True)
class Exceptions:
    """Operations that do not run on some networks.

    Attributes:
        operations: their names in `OPERATIONS`.
        networks: their names in `NETWORKS`.
        reason: why, for readers of the documentation.
        says: what the error message says, a regular expression.
    """

    operations: tuple[str, ...]
    networks: tuple[str, ...]
    reason: str
    says: str


EXCEPTIONS = (
    Exceptions(
        ("attention-rollout", "chefer"),
        tuple(name for name in NETWORKS if name not in _VITS),
        "They follow the attention of each position to each other one. These networks have none, or"
        " attention within windows only.",
        "no layers of attention over the whole image",
    ),
    Exceptions(
        ("cam", "pc1"),
        ("test_vit", "vit_tiny_patch16_224"),
        "The classifier reads the class token alone: its weights say nothing about the patches.",
        "no linear head over the mean of the tokens",
    ),
    Exceptions(
        ("cam", "pc1"),
        (
            *("test_vit3", "test_mambaout", "mambaout_femto"),
            *("mobilenetv3_small_050", "vgg narrow", "vgg11"),
        ),
        "Layers with weights run between the last feature map and the classifier, so its weights do"
        " not belong to the channels of the map.",
        "no linear head after .* runs before the classifier",
    ),
)


def _finite(value: torch.Tensor) -> None:
    if not value.isfinite().all():
        raise AssertionError("values that are not finite")


def _heatmap(method: str) -> Callable:
    def run(model: nn.Module, x: torch.Tensor, name: str) -> None:
        maps = heatmap(model, x, method=method)
        _finite(maps)
        assert maps.shape == (len(x), *x.shape[2:])
        assert maps.min() >= 0
        assert maps.max() <= 1

    return run


def _erf_sizes(model: nn.Module, x: torch.Tensor, name: str) -> None:
    found = erf.erf_sizes(model, x, score="logit")
    assert ((found > 0) & (found <= x.shape[2:].numel())).all()


def _erf_map(model: nn.Module, x: torch.Tensor, name: str) -> None:
    found = erf.erf_map(model, x)
    _finite(torch.from_numpy(found.map))
    assert found.map.shape == x.shape[2:]
    assert found.map.max() > 0


def _erf_depth(model: nn.Module, x: torch.Tensor, name: str) -> None:
    found = erf.erf_depth(model, x)
    assert len(found) > 3
    wide = [(each.map > 0).sum() for each in found.values()]
    assert 0 < wide[0] <= max(wide)  # untrained blocks may pass the map on as it is


def _accelerate(model: nn.Module, x: torch.Tensor, name: str) -> None:
    with torch.no_grad():
        expected, fast = model(x), copy.deepcopy(model)
        types = [type(m) for m in fast.modules()]
        accelerate(fast)
        _close(fast(x), expected)
        restore(fast)
        assert [type(m) for m in fast.modules()] == types


def _inference_form(model: nn.Module, x: torch.Tensor, name: str) -> None:
    with torch.no_grad():
        _close(inference_form(model)(x), model(x))


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * scale)


def _evaluate(model: nn.Module, x: torch.Tensor, name: str) -> None:
    """Make and score the maps of a CUB folder by CAM, or by Grad-CAM where CAM cannot be had."""
    excepted = any("cam" in e.operations and name in e.networks for e in EXCEPTIONS)
    with tempfile.TemporaryDirectory() as folder:
        root = cub_folder(Path(folder) / "CUB_200_2011")
        images = open_image_set(root, split="all")
        box_config = BoxConfig(cub_root=root, split="all", contours="both")
        what = ScoredImages(
            list(images.records),
            [r.image_id for r in images.records],
            open_boxes(box_config),
            DataConfig(str(root), input_size=x.shape[2]),
            MapConfig("grad-cam" if excepted else "cam", map_size=32),
            box_config,
            [],
            ("", ""),
        )
        run = Runtime.of(RunConfig(num_workers=0, device="cpu"))
        evaluator = what.evaluator()
        score_images(run.form_of(model), what, run, [evaluator])
        assert evaluator.compute().num_images == len(images.records)


OPERATIONS: dict[str, Callable] = {
    **{method: _heatmap(method) for method in METHODS},
    "erf_sizes": _erf_sizes,
    "erf_map": _erf_map,
    "erf_depth": _erf_depth,
    "accelerate": _accelerate,
    "inference_form": _inference_form,
    "evaluate": _evaluate,
}


def failures(name: str) -> dict[str, str]:
    """Run everything on a network; return the error of each operation that fails."""
    side, make = NETWORKS[name]
    torch.manual_seed(0)
    model = make(name).eval()
    x, found = torch.randn(1, 3, side, side), {}
    for operation, run in OPERATIONS.items():
        try:
            run(model, x, name)
        except (ValueError, TypeError, RuntimeError, AssertionError) as e:
            found[operation] = f"{type(e).__name__}: {e}"
    return found


def differences(name: str, found: dict[str, str]) -> list[str]:
    """Return how the failures of a network differ from the declared exceptions."""
    declared = {o: e.says for e in EXCEPTIONS if name in e.networks for o in e.operations}
    lines = [
        f"{name}: {operation} fails: {why}"
        for operation, why in found.items()
        if not re.search(declared.get(operation, "(?!)"), why)
    ]
    return lines + [f"{name}: {o} works, an exception is declared" for o in declared.keys() - found]


def table() -> str:
    """Return what docs/any-model.md lists: networks, operations, exceptions and their reasons."""
    rows = ["| does not run | on | because |", "|---|---|---|"]
    for each in EXCEPTIONS:
        networks = ", ".join(each.networks)
        if len(each.networks) > len(NETWORKS) / 2:
            networks = "all but " + ", ".join(n for n in NETWORKS if n not in each.networks)
        rows.append(f"| {', '.join(each.operations)} | {networks} | {each.reason} |")
    small = [name for name in SMALL if not name.startswith("test_")]
    lists = {
        "Operations": OPERATIONS,
        "Networks in each run of the tests": ["all test_* models of timm", *small],
        "Networks by hand": BY_HAND,
    }
    texts = [textwrap.fill(f"{title}: {', '.join(names)}.", 130) for title, names in lists.items()]
    return "\n\n".join([*texts, "\n".join(rows)])


def write_page() -> None:
    """Replace the list in docs/any-model.md."""
    head, start, _ = PAGE.read_text().partition("## What runs on what\n")
    PAGE.write_text(f"{head}{start}\n{table()}\n")


if __name__ == "__main__":
    wrong = [
        line for name in sys.argv[1:] or NETWORKS for line in differences(name, failures(name))
    ]
    print("\n".join(wrong) or "everything runs, but for the declared exceptions")
    write_page()
    sys.exit(bool(wrong))
