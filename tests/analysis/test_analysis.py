"""The analysis: statistics, the fit, and the JSON and CSV it reads."""

import json
import multiprocessing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cba_fast.analysis import models as analysis
from cba_fast.analysis import points
from cba_fast.analysis.points import Point
from cba_fast.errors import InputError


def write_sizes(path, values) -> str:
    np.save(path, np.asarray(values, dtype=np.float32))
    return str(path)


def write_config(tmp_path, entries) -> str:
    path = tmp_path / "models.json"
    path.write_text(json.dumps(entries))
    return str(path)


@pytest.fixture
def sizes(tmp_path):
    return write_sizes(tmp_path / "sizes.npy", [1, 3, 5, 7])


def test_size_stats_by_hand():
    found = analysis.size_stats(np.array([1, 3, 5, 7], dtype=np.float32))
    assert found == analysis.SizeStats(4.0, 5**0.5, 1.0, 7.0, 4)  # ddof 0: variance 20 / 4


def test_fit_of_points_on_a_line():
    fit = analysis.fit_line([1, 2, 4], [12, 14, 18])
    assert fit.slope == pytest.approx(2)
    assert fit.intercept == pytest.approx(10)
    assert fit.r2 == pytest.approx(1)
    assert fit.pearson == pytest.approx(1)
    assert fit.count == 3


def test_fit_by_hand():
    # means 2 and 3; deviations (-1, 0, 1) and (-2, 1, 1): slope 3/2, residuals (-.5, 1, -.5)
    fit = analysis.fit_line([1, 2, 3], [1, 4, 4])
    assert fit.slope == pytest.approx(1.5)
    assert fit.intercept == pytest.approx(0)
    assert fit.r2 == pytest.approx(1 - 1.5 / 6, abs=1e-7)
    assert fit.pearson == pytest.approx(3 / (2 * 6) ** 0.5)


# Scores on a grid, so that ss_tot is either 0 or far above the 1e-8 of the study's R2.
SCORES = st.integers(0, 1000).map(lambda v: v / 10)
SIZES = st.integers(0, 147456).map(lambda v: v / 10)


@given(st.lists(st.tuples(SIZES, SCORES), min_size=2, max_size=20))
def test_fit_agrees_with_numpy(rows):
    x, y = np.array(rows).T
    fit = analysis.fit_line(x, y)
    if np.ptp(x) == 0:
        assert fit is None
        return
    slope, intercept = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
    assert fit.slope == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert fit.intercept == pytest.approx(intercept, rel=1e-6, abs=1e-6)
    if np.ptp(y) == 0:
        assert fit.pearson is None
    else:
        assert fit.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
        # The study's formula adds 1e-8 to the sum of squares.
        off = 1e-8 / ((y - y.mean()) ** 2).sum()
        assert fit.r2 == pytest.approx(fit.pearson**2, abs=1e-6 + off)
        assert (fit.p_value is None) == (len(x) == 2)


def test_one_model_has_no_fit_and_the_report_says_so():
    model = analysis.ModelScore("a", analysis.size_stats(np.array([4.0])), 80.0)
    assert analysis.fit_models([model]) is None
    assert "One model only" in analysis.report_lines([model], None)[-1]


@pytest.mark.parametrize("other", [0.8968 * 100, 89.68])
def test_equal_scores_have_no_pearson_and_the_report_says_so(other):
    models = [
        analysis.ModelScore(name, analysis.size_stats(np.array([mean])), score)
        for name, mean, score in [("a", 10.0, 89.68), ("b", 20.0, other)]
    ]
    fit = analysis.fit_models(models)
    assert fit.pearson is None
    assert fit.slope == pytest.approx(0, abs=1e-12)
    assert fit.intercept == pytest.approx(89.68)
    assert any("undefined" in line for line in analysis.report_lines(models, fit))


def test_equal_sizes_have_no_line_and_the_report_says_so():
    stats = analysis.size_stats(np.array([10.0]))
    models = [analysis.ModelScore(n, stats, s) for n, s in [("a", 50.0), ("b", 60.0)]]
    fit = analysis.fit_models(models)
    assert fit is None
    assert "All ERF means are equal" in analysis.report_lines(models, fit)[-1]


def test_fit_refuses_other_lengths_and_nan():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        analysis.fit_line([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        analysis.fit_line([1, 2], [1, float("nan")])


@pytest.mark.parametrize(("given_score", "percent"), [(0.8968, 89.68), (1, 100), (89.68, 89.68)])
def test_config_takes_fractions_and_percent(tmp_path, sizes, given_score, percent):
    path = write_config(tmp_path, [{"name": "a", "erf_path": sizes, "maxboxacc": given_score}])
    (model,) = analysis.load_models(path)
    assert model.maxboxacc == pytest.approx(percent)
    assert model.erf.mean == 4


GOOD = {"name": "a", "erf_path": "sizes.npy", "maxboxacc": 0.5}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"name": "a"}, "expected a non-empty list"),
        ([], "expected a non-empty list"),
        ([GOOD, 3], "entry 2: expected an object"),
        ([GOOD, {**GOOD, "colour": "red"}], r"entry 2: .*unknown keys \['colour'\]"),
        ([{"name": "a", "maxboxacc": 1}], r"entry 1: missing keys \['erf_path'\]"),
        ([{**GOOD, "name": ""}], "entry 1: name must be"),
        ([{**GOOD, "erf_path": 5}], "entry 1: erf_path must be"),
        ([{**GOOD, "maxboxacc": "0.9"}], "entry 1: maxboxacc .*'0.9'"),
        ([{**GOOD, "maxboxacc": True}], "entry 1: maxboxacc .*True"),
        ([{**GOOD, "maxboxacc": 101}], "entry 1: maxboxacc .*101"),
        ([{**GOOD, "maxboxacc": float("nan")}], "entry 1: maxboxacc .*nan"),
        ([{**GOOD, "erf_path": "no.npy"}], r"entry 1: no\.npy: no such file"),
    ],
)
def test_bad_config_is_named(tmp_path, monkeypatch, sizes, entries, message):
    monkeypatch.chdir(tmp_path)
    path = write_config(tmp_path, entries)
    with pytest.raises(InputError, match=rf"models\.json.*{message}"):
        analysis.load_models(path)


def test_models_come_from_json_yaml_or_the_csv_of_a_study(tmp_path, sizes):
    entry = {"name": "a", "erf_path": str(sizes), "maxboxacc": 0.75, "family": "slak"}
    (tmp_path / "a.json").write_text(json.dumps([entry], indent="\t"))  # YAML has no tabs
    (tmp_path / "without_suffix").write_text(json.dumps([entry], indent="\t"))
    (tmp_path / "a.yaml").write_text("".join(f"  {k}: {v}\n" for k, v in entry.items()))
    text = (tmp_path / "a.yaml").read_text()
    (tmp_path / "a.yaml").write_text("-" + text[1:])
    (tmp_path / "a.csv").write_text(f"model_name,family,erf_path,wsol\na,slak,{sizes},0.75\n")
    found = [analysis.load_models(path) for path in sorted(tmp_path.glob("[aw]*"))]
    assert len(found) == 4
    assert all(models == found[0] for models in found)
    (model,) = found[0]
    assert (model.name, model.family, model.maxboxacc) == ("a", "slak", 75)


def test_a_plan_or_an_empty_csv_is_no_list_of_models(tmp_path):
    (tmp_path / "plan.yaml").write_text("experiments: [{model_family: slak}]")
    with pytest.raises(InputError, match=r"plan\.yaml: a plan; collect-erf-wsol runs it"):
        analysis.load_models(tmp_path / "plan.yaml")
    (tmp_path / "x.csv").write_text("model_name,family,erf_path,wsol\n")
    with pytest.raises(InputError, match="no points below the header"):
        analysis.load_models(tmp_path / "x.csv")


def test_config_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "models.json"
    path.write_text('[{"name": ')
    with pytest.raises(InputError, match=r"models\.json: not valid JSON"):
        analysis.load_models(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((4, 2)), "2 values of p"),
        (np.ones(()), r"shape \(\)"),
        (np.ones(0), r"shape \(0,\)"),
        (np.array([1, np.nan]), "got nan"),
        (np.array([1, 1.7e308]), r"numbers of pixels, 0 to 9.01e\+15, got 1.7e\+308"),
        (np.full(2, 3e38, dtype=np.float32), r"got 3e\+38"),
        (np.array([-1.0]), "got -1"),
        (np.array(["a"]), "real numbers"),
        (np.array([{}], dtype=object), "not a .npy file"),
    ],
)
def test_bad_size_files_are_named(tmp_path, values, message):
    path = tmp_path / "sizes.npy"
    np.save(path, values, allow_pickle=True)
    with pytest.raises(InputError, match=rf"sizes\.npy: .*{message}"):
        analysis.load_sizes(path)


def test_size_files_that_are_no_arrays_are_named(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "b.npz", a=np.ones(3))
    for name in ("a.npy", "empty.npy", "b.npz"):
        with pytest.raises(InputError, match=name):
            analysis.load_sizes(tmp_path / name)


def test_one_column_is_a_vector(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 1)))
    assert analysis.load_sizes(tmp_path / "a.npy").shape == (3,)


A, B = Point("a", "replknet", "a.npy", 0.5), Point('b, "big"', "convnext", "b.npy", 0.123456789)


def test_points_survive_the_file(tmp_path):
    path = tmp_path / "new" / "points.csv"
    points.append_points(path, [A])
    points.append_points(path, [B])
    assert points.read_points(path) == [A, B]
    assert path.read_text().splitlines()[0] == "model_name,family,erf_path,wsol"


def test_appending_keeps_what_is_there(tmp_path):
    path = tmp_path / "points.csv"
    before = "wsol,model_name,family,erf_path\n\n 0.50 ,a,replknet,a.npy"  # no last newline
    path.write_text(before)
    points.append_points(path, [B])
    assert path.read_text() == f'{before}\n0.123456789,"b, ""big""",convnext,b.npy\n'
    assert points.read_points(path) == [A, B]


def test_percent_in_the_csv_is_taken_as_percent(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("model_name,family,erf_path,wsol\na,replknet,a.npy,50\n")
    assert points.read_points(path) == [A]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("name,family,erf_path,wsol\n", "line 1: the header must be"),
        ("model_name,family,erf_path,wsol,wsol\n", "line 1: the header must be"),
        ("model_name,family,erf_path,wsol\na,f,a.npy,0.5\na,f,0.5\n", "line 3: 3 values"),
        ("model_name,family,erf_path,wsol\na,f,a.npy,high\n", "line 2: wsol .*'high'"),
        ("model_name,family,erf_path,wsol\na,f,a.npy,nan\n", "line 2: wsol"),
        ("model_name,family,erf_path,wsol\na,f,a.npy,0.1_0\n", "line 2: wsol is not a number"),
        ("model_name,family,erf_path,wsol\na,f\0,a.npy,0.1\n", "line 2: a NUL byte"),
        ("model_name,family,erf_path,wsol\na,f,a.npy,-0.1\n", "line 2: wsol"),
        ("model_name,family,erf_path,wsol\na,,a.npy,0.1\n", "line 2: family is empty"),
        ('model_name,family,erf_path,wsol\na,f,"a.npy,0.1\n', "line 2"),
    ],
)
def test_bad_csv_is_named_and_not_appended_to(tmp_path, text, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"points\.csv.*{message}"):
        points.read_points(path)
    if text:
        with pytest.raises(InputError, match=message):
            points.append_points(path, [A])
        assert path.read_text() == text


def test_bad_points_are_not_appended(tmp_path):
    path = tmp_path / "points.csv"
    with pytest.raises(InputError, match="point 'a': wsol"):
        points.append_points(path, [Point("a", "f", "a.npy", 89.0)])
    assert not path.exists()


def _append_many(path: str, worker: int) -> None:
    for i in range(20):
        points.append_points(path, [Point(f"{worker}-{i}", "f", "a.npy", 0.5)])


def test_several_processes_append_to_one_file(tmp_path):
    path = str(tmp_path / "points.csv")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_many, args=(path, w)) for w in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    names = [p.model_name for p in points.read_points(path)]
    assert sorted(names) == sorted(f"{w}-{i}" for w in range(3) for i in range(20))


def test_points_are_scored_in_percent(tmp_path, sizes):
    (model,) = analysis.score_points([Point("a", "slak", sizes, 0.75)])
    assert (model.name, model.family, model.maxboxacc, model.erf.mean) == ("a", "slak", 75.0, 4.0)
