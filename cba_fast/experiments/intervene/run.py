"""The command ``erf-intervene``: change the ERF of a trained network, and measure localization."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from ... import locks, resume
from ...data import ImageRecord
from ...errors import InputError
from ...models import merge
from ...models.families.classifier import Classifier
from ...models.inference.folding import fold
from ...runs.erf.shared import checkpoint_level
from ...runs.evaluate import ScoredImages, find_images
from ...runs.outputs import describe_run, read_arrays, write_arrays
from ...runs.resolve import ResolvedRun, resolve
from ...runs.runtime import Runtime
from ...runs.settings import (
    BoxConfig,
    DataConfig,
    InterveneConfig,
    MapConfig,
    ModelConfig,
    RunConfig,
    settings,
)
from ...short import Short
from .features import (
    Change,
    blur_by,
    change_by,
    check_has_features,
    drop_by,
    feature_maps,
    with_changed_features,
)
from .masking import cut_kernels, large_kernels, largest_radius
from .measure import Measured, drawn, localize, measure_fields, probe_images

UNTOUCHED = "untouched"
OF_FEATURES = ("blur", "drop")
CHANGES = (0.05, 0.1, 0.2, 0.4)  # of blur and drop where no radius says how strong they are


@dataclass(frozen=True)
class Setting:
    """One network: the untouched one, or one that was changed.

    Attributes:
        kind: ``untouched`` or one of the kinds of `InterveneConfig`.
        radius: of the cut; of blur and drop, whose features change as much as by that cut.
        change: of blur and drop without a radius, the relative change of the features.
    """

    kind: str = UNTOUCHED
    radius: int | None = None
    change: float | None = None

    @property
    def dose(self) -> str:
        """How strong the change is, in words: settings of one dose belong together."""
        if self.radius is not None:
            return f"r = {self.radius}"
        return "" if self.change is None else f"change {self.change:g}"

    @property
    def file(self) -> str:
        """The name of the file of its measurement."""
        dose = f"_r{self.radius}" if self.radius is not None else ""
        return f"{self.kind}{dose}{'' if self.change is None else f'_c{self.change:g}'}.npz"


def settings_of(model: nn.Module, config: InterveneConfig) -> list[Setting]:
    """Return the networks that are compared: the untouched one, then dose by dose.

    Raises:
        InputError: the network has no kernel to cut, or no features to change, or a kind, radius or
            change is given twice.
    """
    for name in ("kinds", "radii", "changes"):
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise InputError(f"`{name}` holds a value twice: {', '.join(map(str, values))}")
    of_taps = [k for k in config.kinds if k not in OF_FEATURES]
    of_features = [k for k in config.kinds if k in OF_FEATURES]
    if of_features:
        check_has_features(model)
    radii: tuple[int, ...] = ()
    if of_taps or config.radii:
        largest = largest_radius(large_kernels(model, config.min_kernel))
        spread = np.linspace(largest - 1, 1, 5).round().astype(int).tolist()
        radii = config.radii or tuple(dict.fromkeys(r for r in spread if r > 0)) or (0,)
    changes = config.changes or (() if radii else CHANGES)
    kinds = of_taps if config.changes else config.kinds  # given changes need no radius
    found = [Setting(kind, radius=r) for r in sorted(radii, reverse=True) for kind in kinds]
    found += [Setting(kind, change=c) for c in sorted(changes) for kind in of_features]
    return [Setting(), *found]


class Networks:
    """Makes the changed networks, each a copy of the same trained one.

    Args:
        model: the trained network, which is left as it is.
        exact: how to compute in float32, for gradients and for features that are compared.
        config: settings.
        probes: images on which the change of the features is measured.
        keep_layers: see `Runtime.form_of`.
    """

    def __init__(
        self,
        model: nn.Module,
        exact: Runtime,
        config: InterveneConfig,
        probes: Tensor,
        keep_layers: bool = False,
    ):
        self.keep_layers = keep_layers
        self.model, self.exact, self.config, self.probes = model, exact, config, probes
        self._features: dict[Setting, Tensor] = {}

    def form(self, setting: Setting, run: Runtime) -> tuple[nn.Module, float]:
        """Return a network in its form for a run, and its dose, see `Measured`."""
        if setting.kind == UNTOUCHED:
            return run.form_of(self.model, self.keep_layers), 0.0
        if setting.kind not in OF_FEATURES:
            return self._cut(setting, run)
        dose, change = self._feature_change(setting)
        form = with_changed_features(run.form_of(self.model, self.keep_layers), change)
        self._check_head(form, run)
        return form, dose

    @functools.cached_property
    def level(self) -> str:
        """Which activations the gradients of all networks recompute: none, of blocks or stages."""
        form = self.exact.form_of(self.model, self.keep_layers)
        return checkpoint_level("auto", form, self.probes.shape[2:], self.exact)

    def change(self, form: nn.Module) -> float:
        """Return the relative change of a network's features; `form` is that of the exact run."""
        return change_by(self._features_of(Setting()), feature_maps(form, self.probes))

    def _cut(self, setting: Setting, run: Runtime) -> tuple[nn.Module, float]:
        # Branches are merged first, so that a cut acts on the kernel that the network applies.
        # Strips stay strips here, whatever form is faster later.
        network = merged_copy(self.model, self.keep_layers)
        found = large_kernels(network, self.config.min_kernel)
        assert setting.radius is not None  # as every cut has
        share = cut_kernels(found, setting.radius, setting.kind, self.config.seed)
        return run.form_of(network, self.keep_layers), share

    def _feature_change(self, setting: Setting) -> tuple[float, Change]:
        base, wanted = self._features_of(Setting()), setting.change
        if wanted is None:
            wanted = change_by(base, self._features_of(Setting("outer", setting.radius)))
        if setting.kind == "blur":
            return blur_by(base, wanted)
        return drop_by(base, wanted, self.config.seed)

    def _features_of(self, setting: Setting) -> Tensor:
        if setting not in self._features:
            form, _ = self.form(setting, self.exact)
            self._features[setting] = feature_maps(form, self.probes)
        return self._features[setting]

    @torch.no_grad()
    def _check_head(self, form: nn.Module, run: Runtime) -> None:
        """Refuse a network that does not compute its classes from the features that are changed."""
        x = self.probes[:1]
        with run.autocast():
            a, b = form(x), form.forward_head(form.forward_features(x))
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4):
            raise InputError(
                f"{type(self.model).__name__} does not compute its classes from forward_features"
                " and forward_head, so that blur and drop would not reach them"
            )


def merged_copy(model: nn.Module, keep_layers: bool = False) -> nn.Module:
    """Return a copy with merged branches and folded norms, by `merge` or, for others, by `fold`.

    With `keep_layers` it is a plain copy of networks that `merge` does not know.
    """
    if isinstance(model, Classifier | ConvNeXt):
        return merge(model)
    form = copy.deepcopy(model).eval().requires_grad_(False)
    return form if keep_layers else fold(form)[0]


@dataclass(repr=False)
class Interventions(Short):
    """All measurements, in the order of :func:`settings_of`.

    Attributes:
        measured: by setting, the untouched network first.
        what: the localized images.
        config: the settings.
        notes: lines to print.
        used: the settings of the run as JSON values.
    """

    measured: dict[Setting, Measured]
    what: ScoredImages
    config: InterveneConfig
    used: dict
    notes: list[str] = field(default_factory=list)


@locks.released()
def intervene(
    model_config: ModelConfig,
    data: DataConfig,
    run: RunConfig | Runtime,
    maps: MapConfig,
    box_config: BoxConfig,
    config: InterveneConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Callable = lambda steps, count: steps,
) -> Interventions:
    """Measure the untouched network and each changed one on the same images.

    Each measurement is a file ``<kind>_<dose>.npz`` in `folder`, written in one step, with a record
    beside it. What is there is read, so that a killed run goes on, and one of more kinds or radii
    measures what is new.

    Args:
        model_config, data, run, maps, box_config: settings as for `cba_fast.runs.evaluate`.
        config: which changes, and on how many images.
        folder: where the measurements are kept.
        overwrite: measure anew and replace what an earlier run wrote.
        progress: called with the iterable of settings and their number, returns an iterable.

    Raises:
        OtherRunError: measurements of other settings, weights, images or boxes are there.
        CbaError: no kernels to cut, the weights cannot be loaded, no image can be used.
    """
    run, resolved = Runtime.of(run), resolve(model_config, data)
    what, erf_records = drawn(find_images(resolved, maps, box_config), config)
    model = resolved.model.build(input_size=what.data.input_size)
    plan = settings_of(model, config)
    if maps.layer is not None and set(config.kinds) & set(OF_FEATURES):
        raise InputError(
            f"`layer` {maps.layer}: the `kinds` blur and drop change the last feature maps, which"
            " maps of another layer do not show; leave them out"
        )
    describe = _Description(resolved, what, erf_records, run, config)
    outputs = [resume.beside(folder / s.file, describe(s)) for s in plan]
    for output in outputs:
        output.check(overwrite)
    for output in outputs:
        output.prepare(overwrite)
    exact, networks = Runtime.of(run.config.for_erf()), None
    found = Interventions({}, what, config, describe.used)
    for setting, output in progress(zip(plan, outputs, strict=True), len(plan)):
        path = folder / setting.file
        if output.result is None:
            if networks is None:  # nothing is computed where all is there
                probes = probe_images(what, erf_records, exact)
                networks = Networks(model, exact, config, probes, maps.layer is not None)
            write_arrays(path, _measure(networks, setting, what, erf_records, run))
            output.finish()
        found.measured[setting] = Measured(**read_arrays(path))
    lines = [n for m in found.measured.values() for n in (*m.notes.tolist(), *m.erf_notes.tolist())]
    found.notes = [*what.notes, *dict.fromkeys(lines)]
    return found


def _measure(
    networks: Networks,
    setting: Setting,
    what: ScoredImages,
    erf_records: list[ImageRecord],
    run: Runtime,
) -> dict[str, np.ndarray]:
    """Make one network and return the arrays of its `Measured`."""
    exact = networks.exact
    form, dose = networks.form(setting, run)
    exact_form = form if run.dtype == exact.dtype else networks.form(setting, exact)[0]
    return {
        **localize(form, what, run),
        **measure_fields(exact_form, what, erf_records, exact, networks.config, networks.level),
        "change": np.array(networks.change(exact_form)),
        "dose": np.array(dose),
    }


class _Description:
    """Makes the record of each measurement: everything that its numbers depend on."""

    def __init__(
        self,
        resolved: ResolvedRun,
        what: ScoredImages,
        erf_records: list[ImageRecord],
        run: Runtime,
        config: InterveneConfig,
    ):
        how = replace(run.config, device=str(run.device), num_workers=0, strict=False)
        used = settings(resolved.model, what.data, what.maps, what.box_config, how)
        for name in ("num_images", "num_samples", "share", "seed", "score"):
            used[name] = getattr(config, name)
        self.used, self.config = used, config
        records = [*what.records, *erf_records]
        self.described = describe_run(used, resolved.model.weights, records)
        boxes = [what.boxes.boxes[i].tolist() for i in what.image_ids]
        labels = [r.label for r in what.records]
        self.described["inputs"]["boxes"] = resume.values_fingerprint((labels, boxes))

    def __call__(self, setting: Setting) -> dict:
        own = {f.name: getattr(setting, f.name) for f in fields(setting)}
        if setting.radius is not None:
            own["min_kernel"] = self.config.min_kernel
        return {**self.described, "settings": {**self.described["settings"], **own}}
