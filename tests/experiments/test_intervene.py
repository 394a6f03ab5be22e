"""erf-intervene: networks whose truth is known, the command from images to answer, resumption."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_factory import image_folder
from torch import nn

from cba_fast.data import open_image_set
from cba_fast.erf import center_gradient, input_gradient, scale_free_area_ratio
from cba_fast.errors import InputError
from cba_fast.experiments.intervene import run as intervene
from cba_fast.experiments.intervene.answer import KINDS, answer_lines, text_of
from cba_fast.experiments.intervene.features import (
    blur_by,
    blur_matrix,
    change_by,
    drop_by,
    feature_maps,
    with_changed_features,
)
from cba_fast.experiments.intervene.findings import METRICS, Effect, Findings, Row
from cba_fast.experiments.intervene.masking import large_kernels
from cba_fast.experiments.intervene.measure import area_of, central_squares, measure_fields
from cba_fast.experiments.intervene.plots import plot_interventions
from cba_fast.experiments.intervene.run import Networks, Setting, merged_copy, settings_of
from cba_fast.runs.runtime import Runtime
from cba_fast.runs.settings import DataConfig, InterveneConfig, RunConfig

SIDE = 33


class OneKernel(nn.Module):
    """A network whose ERF map is its kernel: one 13x13 convolution of positive taps, no stride."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 13, padding=6, groups=3, bias=False)
        self.head = nn.Linear(3, 4)
        nn.init.ones_(self.conv.weight)

    def forward_features(self, x):
        return self.conv(x)

    def forward_head(self, features):
        return self.head(features.mean((2, 3)))

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def networks(model=None, **config):
    torch.manual_seed(0)
    images = torch.randn(2, 3, SIDE, SIDE)
    run = Runtime.of(RunConfig(device="cpu"))
    return Networks(model or OneKernel(), run, InterveneConfig(**config), images)


def area(made: Networks, setting: Setting) -> float:
    form, _ = made.form(setting, made.exact)
    maps = center_gradient(form, made.probes).double().relu().sum(1)
    return area_of(central_squares(maps).sum(0, keepdim=True).numpy(), SIDE)[0]


def test_the_erf_of_a_known_network_is_the_square_of_the_radius():
    made = networks()
    found = [area(made, Setting("outer", r)) for r in (1, 2, 3, 4, 5, 6)]
    assert found == sorted(set(found))
    for r, percent in enumerate(found, 1):
        half = (2 * r + 1) ** 2 / 2  # of the equal taps
        wide = next(side for side in range(1, 14, 2) if side**2 > half)
        narrow = wide - 2
        side = narrow + 2 * (half - narrow**2) / (wide**2 - narrow**2)
        assert percent == pytest.approx(100 * side**2 / SIDE**2, rel=1e-5)  # float32
    assert found[-1] == area(made, Setting())


def test_controls_of_the_same_energy_leave_the_erf_of_a_known_network_almost_unchanged():
    made = networks()
    whole, cut = area(made, Setting()), area(made, Setting("outer", 4))
    assert cut < 0.55 * whole
    for kind in ("random", "inner"):
        assert area(made, Setting(kind, 4)) > 0.9 * whole
    shares = [made.form(Setting(k, 4), made.exact)[1] for k in ("outer", "random", "inner")]
    np.testing.assert_allclose(shares, 1 - 81 / 169, rtol=1e-6)


def test_a_blur_changes_the_features_as_much_and_the_gradient_of_the_score_not_at_all():
    made = networks()
    wanted = made.change(made.form(Setting("outer", 5), made.exact)[0])
    for kind in ("blur", "drop"):
        form, dose = made.form(Setting(kind, 5), made.exact)
        assert made.change(form) == pytest.approx(wanted, rel=1e-3)
        assert dose > 0
    blurred, plain = (made.form(s, made.exact)[0] for s in (Setting("blur", 5), Setting()))
    x = made.probes
    torch.testing.assert_close(input_gradient(blurred, x), input_gradient(plain, x))
    assert area(made, Setting("blur", 5)) > 1.01 * area(made, Setting())  # of the map itself
    assert not torch.equal(blurred.forward_features(x), plain.forward_features(x))


def test_the_model_itself_is_never_changed():
    made = networks()
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    for kind in ("outer", "random", "inner", "blur", "drop"):
        made.form(Setting(kind, 2), made.exact)
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())
    assert "forward_features" not in vars(made.model)


@pytest.mark.parametrize(("n", "sigma"), [(1, 2.0), (5, 0.0), (6, 0.7), (6, 30.0)])
def test_a_blur_keeps_the_mean_of_every_map(n, sigma):
    b = blur_matrix(n, sigma)
    np.testing.assert_allclose(b, b.T, atol=1e-15)
    np.testing.assert_allclose(b.sum(0), 1, rtol=1e-12)
    if sigma == 0:
        np.testing.assert_array_equal(b, np.eye(n))


@pytest.mark.parametrize("change", [0.01, 0.2, 0.5])
def test_feature_changes_are_met(change):
    f = torch.randn(3, 20, 6, 7, generator=torch.Generator().manual_seed(0))
    assert change_by(f, blur_by(f, change)[1](f)) == pytest.approx(change, rel=2e-3)
    assert change_by(f, drop_by(f, change, 0)[1](f)) == pytest.approx(change, rel=1e-5)


def test_feature_changes_that_cannot_be_met_end_at_the_strongest():
    f = torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)) + 1  # mostly their means
    sigma, strongest = blur_by(f, 0.9)
    assert sigma == 6
    assert change_by(f, strongest(f)) < 0.1
    assert change_by(f, drop_by(f, 3.0, 0)[1](f)) == pytest.approx(0.95)
    assert blur_by(f, 0.0)[0] == drop_by(f, 0.0, 0)[0] == 0


def test_branches_of_other_peoples_networks_are_merged_before_a_cut():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.large = nn.Conv2d(3, 3, 13, padding=6, groups=3, bias=False)
            self.small = nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

        def forward(self, x):
            return self.norms[0](self.large(x)) + self.norms[1](self.small(x))

    model = OneKernel()
    model.conv = Branches()
    model.eval()
    assert len(large_kernels(model, 5)) == 2
    assert [m.kernel_size for m in large_kernels(merged_copy(model), 5).values()] == [(13, 13)]
    assert len(large_kernels(merged_copy(model, keep_layers=True), 5)) == 2


def test_changed_networks_run_in_half_precision():
    made, run = networks(), Runtime.of(RunConfig(device="cpu", precision="bf16"))
    for setting in (Setting("blur", change=0.1), Setting("random", 3)):
        form, _ = made.form(setting, run)
        exact, _ = made.form(setting, made.exact)
        with run.autocast(), torch.no_grad():
            found = form(made.probes).float()
        torch.testing.assert_close(found, exact(made.probes), rtol=0.1, atol=0.1)


def test_features_of_channels_last_networks_are_blurred_over_positions():
    class Nhwc(OneKernel):
        num_features, output_fmt = 3, "NHWC"

        def forward_features(self, x):
            return self.conv(x).permute(0, 2, 3, 1)

        def forward_head(self, features):
            return self.head(features.mean((1, 2)))

    a, b = networks(), networks(Nhwc())
    maps = feature_maps(a.model, a.probes)
    torch.testing.assert_close(feature_maps(b.model, b.probes), maps)
    _, blurred = blur_by(maps, 0.01)
    changed = with_changed_features(b.model, blurred)
    torch.testing.assert_close(feature_maps(changed, b.probes), blurred(maps))


def test_networks_that_do_not_use_their_features_are_refused():
    class Other(OneKernel):
        def forward(self, x):
            return self.head(x.mean((2, 3)))

    made = networks(Other())
    with pytest.raises(InputError, match="does not compute its classes from forward_features"):
        made.form(Setting("blur", change=0.1), made.exact)
    with pytest.raises(InputError, match="Linear has no forward_features"):
        settings_of(nn.Linear(2, 2), InterveneConfig(kinds=("drop",)))


def test_the_area_is_the_scale_free_ratio_with_an_interpolated_side():
    maps = torch.rand(5, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double() ** 4
    squares = central_squares(maps).numpy()
    for m, percent in zip(maps.numpy(), area_of(squares, SIDE), strict=True):
        (ratio,) = scale_free_area_ratio(m, (0.5,))
        side = (percent / 100) ** 0.5 * SIDE
        assert ratio.side - 2 <= side <= ratio.side
    together = central_squares(maps.mean(0, keepdim=True)).numpy()
    np.testing.assert_allclose(squares.mean(0, keepdims=True), together, rtol=1e-12)
    assert np.isnan(area_of(np.zeros((1, 4)), SIDE)).all()


def test_the_area_of_a_wide_map_is_a_share_of_both_sides():
    peak = torch.zeros(1, 8, 20).double()
    peak[:, 3:6, 9:12] = 1
    (percent,) = area_of(central_squares(peak).numpy(), "8x20")
    assert percent == pytest.approx(100 * (1 + 2 * 3.5 / 8) ** 2 / 160)


@pytest.mark.parametrize("size", ["24x16", "16x24"])
def test_the_fields_of_images_of_two_sides(tmp_path, size):
    records = open_image_set(image_folder(tmp_path, ["a/1.jpg"])).records
    data = DataConfig(str(tmp_path), input_size=size)
    what = SimpleNamespace(records=records, image_ids=["1"], data=data)
    run = Runtime.of(RunConfig(device="cpu", num_workers=0))
    found = measure_fields(OneKernel(), what, records, run, InterveneConfig(), "none")
    assert found["squares"].shape == (1, 9)


def test_the_plan_goes_dose_by_dose_and_refuses_what_is_given_twice():
    model = OneKernel()
    plan = settings_of(model, InterveneConfig(kinds=("outer", "blur"), radii=(1, 4)))
    kinds = [("untouched", None), ("outer", 4), ("blur", 4), ("outer", 1), ("blur", 1)]
    assert [(s.kind, s.radius) for s in plan] == kinds
    assert {s.radius for s in settings_of(model, InterveneConfig())} == {None, 1, 2, 3, 4, 5}
    own = settings_of(model, InterveneConfig(radii=(2,), changes=(0.3,)))
    assert [s.file for s in own[3:]] == ["inner_r2.npz", "blur_c0.3.npz", "drop_c0.3.npz"]
    with pytest.raises(InputError, match="`radii` holds a value twice: 2, 2"):
        settings_of(model, InterveneConfig(radii=(2, 2)))


def test_networks_without_large_kernels_can_have_their_features_changed():
    model = OneKernel()
    with pytest.raises(InputError, match=r"no depthwise convolution .* kernels: 13x13"):
        settings_of(model, InterveneConfig(min_kernel=15))
    plan = settings_of(model, InterveneConfig(kinds=("blur",), min_kernel=15))
    assert [s.change for s in plan] == [None, *intervene.CHANGES]


def effect(difference: float, width: float = 1.0) -> Effect:
    return Effect(50 + difference, difference, difference - width, difference + width)


def row(kind, radius, box, erf, against_box=0.0, against_erf=0.0):
    effects = dict.fromkeys(METRICS, effect(0)) | {"max_box_acc": effect(box)}
    effects |= dict.fromkeys(("erf_size", "erf_area"), effect(erf))
    against = dict.fromkeys(("erf_size", "erf_area"), effect(against_erf))
    against["max_box_acc"] = effect(against_box)
    setting = Setting(kind, radius)
    return Row(
        setting, 0.1, None, None, 0.2, effects, against if kind in ("inner", "random") else {}
    )


def findings(*rows):
    return Findings([row("untouched", None, 0, 0), *rows], 100, 30, 20.0, 1000, 0.95, 0, [])


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([row("blur", None, -5, 0)], "no outer taps were cut"),
        ([row("outer", 2, -5, 0)], "no cut makes the ERF smaller beyond chance"),
        ([row("outer", 2, 5, -9)], "r = 2 the ERF is smaller and MaxBoxAcc higher"),
        ([row("outer", 2, -0.5, -9)], "the intervals allow a fall of up to 1.5 points"),
        ([row("outer", 2, -5, -9)], "without a control of the same energy"),
        (
            [row("outer", 2, -5, -9), row("inner", 2, -1, 0, -4, -9)],
            "more than the lost energy explains",
        ),
        (
            [row("outer", 2, -5, -9), row("inner", 2, -5, 0, 0, -9)],
            "the damage to the kernels can explain the fall",
        ),
        (  # one of two controls is enough to doubt
            [
                row("outer", 2, -5, -9),
                row("inner", 2, -1, 0, -4, -9),
                row("random", 2, -5, 0, 0.5, -9),
            ],
            "the damage to the kernels can explain the fall",
        ),
        ([row("outer", 2, -5, -9), row("blur", 2, -5, 0)], "the ERF size alone does not decide"),
        ([row("outer", 2, 0, 0), row("inner", 2, -5, 9)], "a larger ERF alone does not help"),
    ],
)
def test_the_answer_says_no_more_than_the_intervals(rows, wanted):
    lines = answer_lines(findings(*rows))
    follows = [line for line in lines if line.startswith("What follows: ")]
    assert any(wanted in line for line in follows), follows
    assert ("more than the lost energy" in " ".join(follows)) == ("more than" in wanted)
    assert lines[-1].startswith("What does not follow: ")


def test_an_untouched_network_that_does_not_localize_answers_nothing():
    poor = replace(findings(row("outer", 2, -5, -9)), centred_box=50.0)
    follows = [line for line in answer_lines(poor) if line.startswith("What follows: ")]
    assert len(follows) == 1
    assert "no better than one centred box" in follows[0]


def test_a_lone_one_of_many_blurs_shows_nothing():
    rows = [row("blur", r, -5 if r == 1 else 0, 0) for r in (3, 2, 1)]
    told = " ".join(answer_lines(findings(row("outer", 1, 5, -9), *rows)))
    assert "does not decide" not in told
    rows[1] = row("blur", 2, -5, 0)
    told = " ".join(answer_lines(findings(row("outer", 1, 5, -9), *rows)))
    assert "with feature maps blurred (r = 2, 1) MaxBoxAcc changes" in told


def test_differences_are_written_with_their_interval_and_never_as_minus_0():
    assert text_of("top1", Effect(50, -3.46, -6.04, 0.0)) == "-3.5 [-6.0, +0.0]"
    assert text_of("erf_size", Effect(500, -0.3, -12.4, 3.0)) == "+0 [-12, +3]"
    assert text_of("erf_area", Effect(None, None, None, None)) == "undefined"


def test_the_answer_warns_of_few_images():
    few = replace(findings(row("outer", 2, -5, -9)), num_erf=20)
    assert any("20 images" in line and "too narrow" in line for line in answer_lines(few))
    assert not any("too narrow" in line for line in answer_lines(findings(row("outer", 2, -5, -9))))


def test_the_picture_has_axes_with_units_and_a_line_for_each_kind():
    fig = plot_interventions(findings(*(row(k, 2, -5, -9) for k in KINDS)))
    axes = fig.get_axes()
    labels = ["ERF size (pixels)", "ERF area (% of the input)", "radius r (taps)"]
    assert [ax.get_xlabel() for ax in axes] == labels
    assert axes[0].get_ylabel() == "MaxBoxAcc (%)"
    told = [t.get_text() for t in fig.legends[0].get_texts()]
    assert told == [*KINDS.values(), "untouched network"]
    assert "95 % interval" in fig.legends[0].get_title().get_text()
