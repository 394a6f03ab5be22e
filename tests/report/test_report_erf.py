"""The effective receptive fields of a report: what is shown, and what may be said of them."""

import json

import numpy as np
import pytest
from cli_runner import run_cli
from report_factory import report_data
from test_report import Page

from cba_fast.analysis.plots_erf import decades
from cba_fast.erf import ErfMap, radial_profile
from cba_fast.erf.report import with_figures, write_map
from cba_fast.errors import InputError
from cba_fast.report import RunErf, Sizes, collect, read_erf, render
from cba_fast.report.claims import find_claims
from cba_fast.report.erf import together
from cba_fast.report.plots import erf_and_score, profiles
from cba_fast.runs.settings import BoxConfig, ReportConfig


def a_map(size: int, sigma: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    return np.exp(-(x**2 + y**2) / (2 * sigma**2))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = report_data(tmp_path_factory.mktemp("report"), 12)
    for name, size, sigma in (("sharp", 64, 5.0), ("wide", 96, 20.0)):
        found = with_figures(ErfMap(a_map(size, sigma), 7, []), [])
        write_map(root / f"{name}_map.npy", found, "replknet", {"input_size": size, "layer": None})
        np.save(root / f"{name}_sizes.npy", np.full(20, 10 * sigma, np.float32))
    return root


@pytest.fixture(scope="module")
def collected(root):
    erf = {
        "sharp": read_erf(root / "sharp_sizes.npy", root / "sharp_map.npy"),
        "<wide>": read_erf(root / "wide_map.npy", root / "wide_sizes.npy"),
    }
    config, report = BoxConfig(metadata_root=root / "meta"), ReportConfig(num_resamples=20)
    return collect({n: root / n for n in erf}, config, report, erf=erf)


def test_files_of_the_erf_commands_are_read(collected):
    found = collected.erf["sharp"]
    assert found.sizes == Sizes(50.0, 0.0, 20)
    assert found.map.erf.map.shape == (64, 64)
    assert found.map.erf.count == 7
    assert found.told == {"map.input_size": 64, "map.layer": None, "map.definition": "replknet"}


def test_the_page_shows_maps_profiles_and_sizes(collected):
    page = Page(render(collected))
    pictures = page.all("img", alt="ERF map of <wide>")
    assert pictures[0]["src"].startswith("data:image/jpeg;base64,")
    assert "50.0 ± 0.0" in page.text
    assert "96 x 96" in page.text
    titles = [svg["aria-label"] for svg in page.all("svg", role="img")]
    assert sum(t.startswith("Radial profile") for t in titles) == 1
    assert sum(t.startswith("MaxBoxAcc (percent") for t in titles) == 1
    assert "No correlation of ERF size and MaxBoxAcc is given: a line through two" in page.text
    assert "ERF of sharp: map.definition" in page.text
    assert page.all("a", href="#erf")


def test_profiles_end_at_their_rings(collected):
    plot = profiles(collected)
    assert [line.name for line in plot.lines] == ["sharp", "<wide>"]
    for line in plot.lines:
        erf = collected.erf[line.name].map.erf.map
        x, y = (np.array([p.split(",") for p in line.points.split()], float)[:, k] for k in (0, 1))
        assert x[0] == 0
        assert x[-1] == 300
        np.testing.assert_allclose(y, -200 / 3 * decades(radial_profile(erf)[None])[0], atol=0.051)


def test_radial_profile_by_hand():
    erf = np.zeros((5, 5))
    erf[2, 2], erf[2, 3], erf[0, 0] = 4.0, 8.0, 12.0
    # 1 pixel at distance 0; 8 within (0.5, 1.5]; 12 within (1.5, 2.5], and the corners at 2.83
    assert radial_profile(erf).tolist() == [4.0, 1.0, 0.0]


def test_the_scatter_has_the_intervals_of_the_scores(collected):
    both = collected.erf_and_scores()
    plot = erf_and_score(collected, both)
    assert both.erf.tolist() == [50.0, 200.0]
    assert [line.x for line in plot.lines] == sorted(line.x for line in plot.lines)
    for line in plot.lines:
        left, right, top, bottom = line.bar
        assert left == right == line.x
        assert 0 <= top <= line.y <= bottom <= 200


def erf_of(*means, **told):
    return {f"run{n}": RunErf(Sizes(m, 1.0, 20), told=told) for n, m in enumerate(means)}


def scores_of(*values):
    return {f"run{n}": v for n, v in enumerate(values)}


def test_what_may_be_said_of_erf_and_localization():
    said = together(erf_of(1, 2, 3, 4, 5), scores_of(50, 60, 61, 70, 90), 0.95)
    assert said.found.count == 5
    assert said.found.low > 0
    assert together(erf_of(1), scores_of(50), 0.95) is None
    assert "two points" in together(erf_of(1, 2), scores_of(50, 60), 0.95).reason
    assert "equal" in together(erf_of(1, 2, 3), scores_of(50, 50, 50), 0.95).reason
    assert "one network" in together(erf_of(1, 1, 3), scores_of(50, 60, 70), 0.95).reason
    other = erf_of(1, 2, 3) | {"run2": RunErf(Sizes(3, 1, 20), told={"input_size": 96})}
    told = erf_of(1, 2, 3, input_size=384) | {"run2": other["run2"]}
    assert "input_size differ" in together(told, scores_of(50, 60, 70), 0.95).reason
    assert together(other, scores_of(50, 60, 70), 0.95).found is not None  # unknown of the others


@pytest.mark.parametrize(
    ("scores", "shown", "text"),
    [
        ((50, 60, 61, 70, 90), True, "goes with a higher MaxBoxAcc"),
        ((90, 70, 61, 60, 50), True, "goes with a lower MaxBoxAcc"),
        ((50, 90, 40, 70, 60), False, "which may be 0"),
        ((50, 60, 70), False, "too few for an interval"),
        ((50, 60), False, "a line through two points always fits"),
    ],
)
def test_claims_on_the_erf_follow_the_interval(collected, monkeypatch, scores, shown, text):
    both = together(erf_of(*range(1, len(scores) + 1)), scores_of(*scores), 0.95)
    monkeypatch.setattr(type(collected), "erf_and_scores", lambda self: both)
    claim = find_claims(collected)[-1]
    assert claim.shown is shown
    assert text in claim.text


def test_bad_files_are_named(root, tmp_path):
    np.save(tmp_path / "layers.npy", np.ones((3, 9, 9)))
    np.save(tmp_path / "zero.npy", np.zeros((9, 9)))
    (tmp_path / "text.npy").write_text("x")
    for name, message in (
        ("layers", "not one ERF map"),
        ("zero", "zero everywhere"),
        ("text", "not a .npy file"),
        ("none", "none.npy: no such file$"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_erf(tmp_path / f"{name}.npy")
        assert f"{name}.npy" in str(caught.value)
    with pytest.raises(InputError, match="a second file of ERF maps"):
        read_erf(root / "sharp_map.npy", root / "wide_map.npy")
    config = BoxConfig(metadata_root=root / "meta")
    with pytest.raises(InputError, match="'x' belongs to none of the runs sharp"):
        collect({"sharp": root / "sharp"}, config, ReportConfig(), erf={"x": RunErf()})


def test_the_command_takes_the_erf_of_each_run(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["report", "--metadata_root", root / "meta", "--bootstrap", 20, "--gallery", 2]
    maps = ["--scoremaps", f"A={root / 'sharp'}", "--scoremaps", f"B={root / '<wide>'}"]
    erf = ["--erf", f"A={root / 'sharp_map.npy'}", "--erf", f"A={root / 'sharp_sizes.npy'}"]
    erf += ["--erf", f"B={root / 'wide_sizes.npy'}"]
    done = run_cli(capsys, *common, *maps, *erf, "--tables", "t")
    assert done.status == 0, done.err
    page = Page((tmp_path / "report.html").read_text())
    assert len([a for a in page.all("img") if a["alt"].startswith("ERF map")]) == 1
    assert (tmp_path / "t" / "erf.tex").read_text().count("not measured") == 1
    unnamed = run_cli(capsys, *common, *maps, "--erf", root / "sharp_map.npy")
    assert unnamed.status == 2
    assert "say whose it is, such as A=" in unnamed.err
    one = run_cli(capsys, *common, *maps[:2], "--erf", root / "sharp_map.npy", "--output", "one")
    assert one.status == 0, one.err
    assert "Report       : one/report.html" in one.out
    assert json.loads((root / "sharp_map.json").read_text())["num_images"] == 7
