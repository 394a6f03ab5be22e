"""The settings that the commands share, each declared once: type, default, choices, help text.

Plain data; every check that needs files happens later. `cba_fast.runs.declare` says what is made
from a declaration.
"""

from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from ..choices import (
    CAM_CURVE_INTERVAL,
    CONFIDENCE,
    ERF_SHARE,
    SCORE_RESAMPLES,
    Contours,
    Family,
    Intervention,
    MapNames,
    Method,
    Pc1Range,
    Precision,
    Preprocess,
    Score,
)
from ..data.preprocessing import STUDY, Preprocessing
from ..data.records import DEFAULT_SPLIT
from ..shapes import Size
from .declare import Count, Positive, PositiveNumber, Range, Seed, Share, same, setting

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelConfig:
    """Which model. `weights` None means random weights, None elsewhere what the checkpoint says.

    `cba_fast.runs.resolve` completes it; `family` is then the name of timm's module for networks
    outside of the study, and `factory_sha256` tells which code made the network.
    """

    group: ClassVar[str] = "Model"

    family: Family | None = setting(
        None,
        "Family of the study, such as replknet.",
        option="model_family",
        otherwise="that of `model`, else the checkpoint's",
    )
    weights: Path | None = setting(
        None,
        "Checkpoint file, such as weights/rep_best.pth. One of train-wsol says all that the other"
        " options of the model say.",
        option=("weights", "fine_tuned_weight_name"),
    )
    name: str | None = setting(
        None,
        "Model name, such as replknet_31b, or any of timm's, such as resnet50.",
        option="model",
        otherwise="the checkpoint's, else the family's base model",
    )
    factory: str | None = setting(
        None,
        "A function that makes the network, such as my_net.py:build or torchvision.models:vgg16.",
        option="model_factory",
    )
    pretrained: bool = setting(False, "Take timm's pretrained weights of `model` (downloads).")
    num_classes: Positive | None = setting(
        None, "Number of classes, such as 200; checked against the checkpoint's head."
    )
    alpha: float | None = setting(
        None,
        "slak_flex: weight of the strips, such as 0.5.",
        otherwise="the checkpoint's, else 1",
    )
    beta: float | None = setting(
        None,
        "slak_flex: weight of the square kernel, such as 0.5.",
        otherwise="the checkpoint's, else 0",
    )
    output_stride: Literal[32, 16] | None = setting(
        None,
        "16: feature maps at 1/16 of the input, for small inputs; as in the training.",
        otherwise="the checkpoint's, else 32, timm's for its models",
    )
    factory_sha256: str | None = None

    @property
    def title(self) -> str:
        """What files are named after: the family of the study, else the model."""
        if self.family is not None and self.family in get_args(Family):
            return self.family
        # A factory's name is that of its function.
        return (self.name or self.family or "").rpartition(":")[2]

    def build(self, **options: Any) -> "nn.Module":
        """Build the model on the CPU, as it was trained.

        Args:
            options: other arguments of `cba_fast.models.build_model`, which stand before these.

        Raises:
            InputError, CheckpointError: as `cba_fast.models.build_model`.
        """
        from ..models import build_model  # needs torch, which these settings do without

        own = asdict(self)
        del own["factory_sha256"]
        named = {"model": own.pop("name"), "checkpoint": own.pop("weights")}
        return build_model(own.pop("family"), **{**named, **own, **options})


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are read. `input_size` None is the checkpoint's.

    `cba_fast.runs.resolve` finds out what `preprocess` means for the model: `preprocessing`.
    """

    group: ClassVar[str] = "Images"

    test_dataset: str = setting(
        help="Images: a name below datasets/ or a folder, of class folders or CUB_200_2011."
    )
    split: str | None = setting(
        None,
        "Split of CUB_200_2011 (train, test or all), or folder below the metadata root, such as"
        " val.",
        otherwise="test, or the split whose folder `metadata_root` is",
    )
    metadata_root: Path | None = setting(
        None, "wsolevaluation metadata: the folder with image_ids.txt, or the root above it."
    )
    dataset_name: str | None = setting(None, "Folder below the metadata root, such as CUB.")
    follow_links: bool = setting(
        False, "Take images that links lead to from outside of the data folder."
    )
    input_size: Annotated[Size, "size"] = setting(
        None,
        "Size to which images are resized, such as 384, or 224x320 (height x width).",
        otherwise="the checkpoint's, else 384, timm's for its models",
    )
    preprocess: Preprocess | None = setting(
        None,
        "study: bilinear, mean and std 0.5; model: timm's interpolation, mean and std of the model."
        " Both resize the whole image, without a crop.",
        otherwise="the checkpoint's, else study for the study's families, model for others",
    )
    classes: Path | None = setting(
        None, "File that names the model's classes in the order of their labels, one per line."
    )
    preprocessing: Preprocessing = STUDY


@dataclass(frozen=True)
class RunConfig:
    """How to compute; `cba_fast.runs.runtime` makes devices and dtypes of it.

    `compile` is for the maps' features alone; see `cba_fast.runs.compiled`.
    """

    group: ClassVar[str] = "Compute"

    batch_size: Positive = setting(8, "Images at once, such as 16.")
    num_workers: Count = setting(2, "Processes or threads that read images; 0: none beside it.")
    device: str | None = setting(
        None, "Device, such as cpu, cuda or cuda:1.", otherwise="cuda where it is available"
    )
    precision: Precision = setting(
        "fp32",
        "bf16 and fp16: autocast. On CPUs without bf16 instructions, bf16 is far slower.",
    )
    channels_last: bool = setting(True, "Keep the channels of the model's tensors innermost.")
    strict: bool = setting(False, "End at the first unreadable image.")
    compile: bool = setting(
        False, "Compile the model with torch.compile; on a GPU it runs as one CUDA graph."
    )

    def for_erf(self) -> "RunConfig":
        """Return how ERF sizes beside scores are measured: image by image, in float32."""
        return replace(self, batch_size=1, precision="fp32", compile=False)


@dataclass(frozen=True)
class ClusterConfig:
    """Where experiments or shards of the images run: in this process, or on a Ray cluster."""

    group: ClassVar[str] = "Compute"

    engine: Literal["local", "ray"] = setting(
        "local", "local: in this process; ray: on a Ray cluster."
    )
    address: str | None = setting(
        None,
        "Ray cluster to connect to, such as 10.0.0.1:6379, or auto for that of this machine.",
        otherwise="one that is started on this machine and ends with the run",
    )
    cpus: Positive | None = setting(
        None, "Ray: cores, and threads, of each experiment or shard, such as 8.", otherwise="1"
    )
    gpus: Annotated[float, Range(0.0)] | None = setting(
        None,
        "Ray: GPUs of each experiment or shard, such as 1, or 0.5 for two on one.",
        otherwise="1 where the cluster has any and `device` is not cpu, else 0",
    )
    retries: Count = setting(
        3, "Ray: how often an experiment or shard starts again whose worker died, such as 10."
    )
    shards: Positive | None = setting(
        None,
        "Ray: parts of the images, such as 64. The result does not depend on it.",
        otherwise="as many as the cluster can compute at once",
    )


@dataclass(frozen=True)
class MapConfig:
    """Which map of which class.

    `map_size` is a side, (H, W), "HxW", or "input" (or None) for the size of the network's input.
    """

    group: ClassVar[str] = "Map"

    method: Method = setting(
        "cam",
        "How the maps are made, such as grad-cam. cam and pc1 need a linear head over the features,"
        " attention-rollout and chefer attention over the whole image; others take any network.",
        option=("method", "localization_method"),
    )
    layer: str | None = setting(
        None,
        "Module whose output is explained, such as layer3.",
        otherwise="the last feature maps",
    )
    target: Annotated[str, "target"] = setting(
        "predicted", "Class to explain: the top-1, the image's label, or a 0-based index."
    )
    map_size: Annotated[Size, "size or input"] = setting(
        "input",
        "Size of the maps in pixels, such as 224 or 224x320 (height x width); input: that of"
        " `input_size`.",
    )
    pc1_range: Pc1Range = setting(
        "wrap", "PC1 values outside [0, 1]: wrap as the study's code does, clip, or rescale."
    )
    map_names: MapNames | None = setting(
        None,
        "Names of the maps: study, <class>/<name up to its first dot>, or official, the whole"
        " image id.",
        otherwise="study, unless two images would get the same name",
    )

    def at(self, input_size: Size) -> "MapConfig":
        """Return these settings with the size of the maps written out."""
        return replace(self, map_size=input_size) if self.map_size in (None, "input") else self


@dataclass(frozen=True)
class BoxConfig:
    """Which ground truth, and the protocol of the score."""

    group: ClassVar[str] = "Score"

    cub_root: Path | None = setting(None, "CUB_200_2011 folder, whose boxes are taken.")
    metadata_root: Path | None = same(DataConfig, "metadata_root")
    dataset_name: str | None = same(DataConfig, "dataset_name")
    split: str | None = same(DataConfig, "split")
    iou_thr: Share = setting(0.5, "IoU from which a box counts as right, such as 0.7.")
    cam_curve_interval: Annotated[float, Range(1e-5, 1)] = setting(  # up to 100,000 thresholds
        CAM_CURVE_INTERVAL, "Step between score thresholds; 0.001 in the paper's runs."
    )
    contours: Contours = setting(
        "largest", "Boxes of the largest contour (MaxBoxAcc), of all (MaxBoxAccV2), or both."
    )
    eval_size: Annotated[Size, "size"] = setting(None, "Demand maps of this size, such as 224.")
    resize_maps: bool = setting(False, "Resize maps to `eval_size` instead.")
    missing_as_miss: bool = setting(False, "Count images without a map as misses.")
    clip: Annotated[float, Range(0, 0.01)] = setting(
        0.0,
        "Clip values that leave [0, 1] by no more than this, such as 1e-5; others are refused.",
    )
    allow_beyond: bool = setting(
        False,
        "Go on where more than a tenth of the boxes lie outside of their images.",
        option="allow_boxes_beyond",
    )
    threshold: Annotated[float, Range(0, 1, max_open=True)] | None = setting(
        None, "Also score at this share of each map's maximum, such as 0.15."
    )


@dataclass(frozen=True)
class PixelConfig:
    """Which masks, and the protocol of their score."""

    group: ClassVar[str] = "Score"

    mask_root: Path = setting(help="Folder of the mask paths in the metadata.")
    metadata_root: Path = same(BoxConfig, "metadata_root", default=MISSING)
    dataset_name: str | None = same(BoxConfig, "dataset_name")
    split: str | None = same(BoxConfig, "split")
    cam_curve_interval: Annotated[float, Range(1e-5, 1)] = same(BoxConfig, "cam_curve_interval")
    eval_size: Annotated[Size, "size"] = same(BoxConfig, "eval_size")
    resize_maps: bool = same(BoxConfig, "resize_maps")
    missing_as_miss: bool = same(BoxConfig, "missing_as_miss")
    clip: Annotated[float, Range(0, 0.01)] = same(BoxConfig, "clip")


@dataclass(frozen=True)
class Statistics:
    """What is asked for beside the scores; a comparison needs resamples."""

    group: ClassVar[str] = "Score"

    predictions: Path | None = setting(
        None, "CSV or JSON of ranked classes: adds top-1 and top-5 localization."
    )
    compare: Path | None = setting(
        None, "Maps of another run over the same images: is this run really better?"
    )
    compare_predictions: Path | None = setting(
        None, "Ranked classes of the other run, as `predictions`."
    )
    num_resamples: Count = setting(
        0,
        "Confidence intervals from this many resamples of the images, such as 1000.",
        option="bootstrap",
        otherwise="0, but 1000 with `compare`",
    )
    confidence: Annotated[float, Range(0, 1, min_open=True, max_open=True)] = setting(
        CONFIDENCE, "Confidence level of the intervals, such as 0.99."
    )
    seed: Seed = setting(0, "Seed of the resamples.")
    per_class: bool = setting(False, "Add the figures of each class to `json`.")


@dataclass(frozen=True)
class ReportConfig:
    """What a report of scored maps shows."""

    group: ClassVar[str] = "Report"

    gallery: Count = setting(60, "Images in the gallery, such as 100; 0 leaves it out.")
    thumbnail: Annotated[int, Range(32, 1024)] = setting(
        224, "Longer side of the gallery's pictures in pixels, such as 320."
    )
    colormap: Literal["viridis", "jet"] = setting(
        "viridis", "Colours of the heatmaps; jet is that of the study's figures."
    )
    sheet_images: Positive = setting(
        6, "Images of each kind in the contact sheets of `sheets`, such as 10."
    )
    num_resamples: Annotated[int, Range(2)] = setting(
        SCORE_RESAMPLES, "Resamples of the images for the intervals.", option="bootstrap"
    )
    confidence: Annotated[float, Range(0, 1, min_open=True, max_open=True)] = same(
        Statistics, "confidence"
    )
    seed: Seed = setting(0, "Seed of the resamples, and of the images drawn for the gallery.")


@dataclass(frozen=True)
class SizeConfig:
    """Which ERF sizes are measured, on how many images. `shares` are the values of p."""

    group: ClassVar[str] = "ERF"

    num_samples: Positive = setting(200, "Images drawn from the set, such as 50.")
    shares: tuple[Share, ...] = setting(
        (ERF_SHARE,),
        "Share of the gradient inside the ERF; repeat it, or give a comma list such as 0.2,0.5.",
        option="p",
    )
    seed: Seed = setting(0, "Seed of the sample.")
    score: Score = setting("prob", "Top-1 score whose gradient is taken; prob is the study's.")
    layer: str | None = setting(
        None,
        "Take the gradient of this layer's features at `point` instead of the score's, such as"
        " stages.2.",
    )
    point: Annotated[str, "point"] | None = setting(
        None,
        "Position of the layer's map, or of an output that is a map: row and column, such as 3,5,"
        " or shares of height and width, such as 0.25,0.5.",
        otherwise="the centre",
    )


@dataclass(frozen=True)
class ErfMapConfig:
    """The ERF map's protocol; the defaults are those of RepLKNet's script."""

    group: ClassVar[str] = "ERF"

    num_images: Positive = setting(50, "Images of the ERF map, such as 20.")
    input_size: Annotated[Size, "size"] = setting(1024, "Size of the images of the ERF map.")
    layer: str | None = setting(
        None,
        "Layer whose map is looked at: a name, such as stages.2; a number of timm's feature maps;"
        " output, for networks whose output is a map; several names with commas, or all, for a"
        " curve over the depth of the network.",
        option=("layer", "layers"),
        otherwise="the last feature map",
    )
    point: Annotated[str, "point"] | None = same(SizeConfig, "point")


@dataclass(frozen=True)
class SweepConfig:
    """Which mixtures of slak_flex are measured, and on how many images."""

    group: ClassVar[str] = "ERF"

    steps: Annotated[int, Range(2)] = setting(5, "Mixtures from cross to square, both included.")
    num_images: Positive = setting(
        4,
        "Images of each ERF map, the first ones of the set.",
        option=("num_images", "num_samples"),
    )
    evaluations: Positive = setting(12, "Most maps that a search adds.")

    def shares(self) -> list[float]:
        """Return the sweep's shares of the square kernel, 0 to 1."""
        return [i / (self.steps - 1) for i in range(self.steps)]


@dataclass(frozen=True)
class InterveneConfig:
    """Which changes of a trained network are compared, how strong they are, and on which images."""

    group: ClassVar[str] = "ERF"

    kinds: tuple[Intervention, ...] = setting(
        get_args(Intervention),
        "Changes: outer taps cut; random or inner taps of the same energy; feature maps blurred;"
        " channels dropped; a comma list such as outer,inner.",
    )
    radii: tuple[Count, ...] = setting(
        (),
        "Radii in taps to which large kernels are cut, such as 5,3,1.",
        otherwise="five, from just below the largest kernel's down to 1",
    )
    min_kernel: Annotated[int, Range(2)] = setting(
        5, "Depthwise kernels are large from this many taps on their longer side, such as 7."
    )
    changes: tuple[PositiveNumber, ...] = setting(
        (),
        "Relative changes of the feature maps by blur and drop, such as 0.1,0.3.",
        otherwise="those that the outer cuts make; 0.05,0.1,0.2,0.4 if no radius is given or asked"
        " for",
    )
    num_images: Positive = setting(200, "Images that are localized, drawn from the set.")
    num_samples: Positive = setting(
        30, "Images of the ERF, the first ones of those drawn, such as 50."
    )
    share: Share = setting(ERF_SHARE, "Share of the gradient inside the ERF.", option="p")
    seed: Seed = setting(0, "Seed of the drawn images, of random taps and of dropped channels.")
    score: Score = same(SizeConfig, "score")


def settings(*configs: Any) -> dict:
    """Return the fields of the configs in one dict of JSON values, for manifests and results."""
    merged = {k: v for config in configs for k, v in asdict(config).items()}
    if "split" in merged and merged["split"] is None:
        merged["split"] = DEFAULT_SPLIT
    return {k: str(v) if isinstance(v, Path) else v for k, v in merged.items()}
