"""JSON and YAML that hide, explode or overflow, and names that break files, tables or pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_runs import MODEL

from cba_fast.analysis import models as analysis
from cba_fast.analysis.points import Point, append_points, read_points
from cba_fast.errors import InputError
from cba_fast.experiments.plan import load_experiments
from cba_fast.experiments.progress import _read_result
from cba_fast.files import read_json
from cba_fast.runs.scoring.boxes import read_tuned
from cba_fast.training.config import TrainConfig, check_config

DEEP, DIGITS = "[" * 100_000, "9" * 5000
JSON_READERS = (read_json, analysis.load_models, _read_result, read_tuned)


@pytest.mark.parametrize("reader", JSON_READERS, ids=lambda r: r.__name__)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (f"[{DIGITS}]", "an integer of 5000 digits"),
        ('{"settings": 1, "settings": 2}', "the key 'settings' is given twice"),
        ("[1,", "not valid JSON"),
        (b"\xff\xfe[", "not UTF-8"),
    ],
)
def test_json_is_refused_in_one_sentence(reader, text, reason, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=reason) as e:
        reader(path)
    assert str(e.value).startswith(str(path))
    assert len(str(e.value)) < 300


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5]}')
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5]}


BOMB = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("experiments: " + DEEP, "nested too deeply"),
        (f"defaults: {{seed: {DIGITS}}}", "an integer of 5000 digits"),
        (f"defaults: {{seed: 0x{DIGITS}}}", "an integer of 5002 digits"),
        (BOMB, "aliases stand for more than 100000 values"),
        ("experiments: &a [*a]", "aliases stand for more than"),
        ("defaults: {seed: 2026-13-41}", "month must be"),
        ("grid: {" + ", ".join(f"k{i}: [1, 2, 3]" for i in range(40)) + "}", "grid 1: stands for"),
        (f"experiments: [{{model_family: slak, lr: {'x' * 9999}}}]", r"xxx\.\.\."),
    ],
)
def test_yaml_is_refused_in_one_sentence(text, reason, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as e:
        load_experiments(path)
    assert str(e.value).startswith(str(path))
    assert len(str(e.value)) < 600


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            '[{"name": "a", "erf_path": "a.npy", "maxboxacc": 1}]',
            "analysis-erf-vs-wsol takes",
        ),
        ("model_name,family,erf_path,wsol\na,slak,a.npy,0.5\n", "which plot-erf-vs-wsol takes"),
        ("- 1\n- 2", "a plan must hold keys such as"),
        ("", "a plan must hold keys such as"),
    ],
)
@pytest.mark.parametrize("suffix", ["yaml", "json", "csv"])
def test_files_of_other_commands_get_a_hint(text, hint, suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    path.write_text(text)
    if suffix == "json" and not text.startswith("["):
        hint = "not valid JSON"
    with pytest.raises(InputError, match=hint):
        load_experiments(path)


def test_a_plan_may_be_json(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"experiments": [{"model_family": "slak"}]}))
    assert load_experiments(tmp_path / "x.json").experiments[0].name == "slak"


def test_aliases_that_stand_for_little_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("defaults: &d {model_family: slak}\nexperiments: [{<<: *d, epochs: 2}]")
    assert load_experiments(path).experiments[0].settings.epochs == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        ("n" * 245, "245 bytes"),
        ("ü" * 111, "222 bytes"),
        ("a\ud800", "half a surrogate pair"),
        ("a\nb", "a control character"),
        ("=1+1", "a spreadsheet would run"),
        ("-x", "a spreadsheet would run"),
    ],
)
def test_names_of_experiments_that_break_files_are_refused(name, reason, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(json.dumps({"experiments": [{"model_family": "slak", "name": name}]}))
    with pytest.raises(InputError, match=f"name: .*{reason}"):
        load_experiments(path)


@pytest.mark.parametrize(
    ("name", "reason"), [("n" * 245, "got 245"), ("a\n", "a control char"), ("\ud800", "half a")]
)
def test_names_of_trainings_that_break_files_are_refused(name, reason):
    with pytest.raises(InputError, match=f"`exp_name` .*{reason}"):
        check_config(MODEL, replace(TrainConfig(Path("d")), exp_name=name))


@pytest.mark.parametrize("name", ["a\ud800", "a\nb"])
def test_names_of_an_analysis_that_break_tables_are_refused(name, tmp_path):
    np.save(tmp_path / "s.npy", [1.0])
    entry = {"name": name, "erf_path": str(tmp_path / "s.npy"), "maxboxacc": 50}
    (tmp_path / "x.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="entry 1: name .* holds"):
        analysis.load_models(tmp_path / "x.json")


def test_names_of_an_analysis_are_given_once(tmp_path):
    np.save(tmp_path / "s.npy", [1.0])
    entry = {"name": "a", "erf_path": str(tmp_path / "s.npy"), "maxboxacc": 50}
    (tmp_path / "x.json").write_text(json.dumps([entry, {**entry, "name": "b"}, entry]))
    with pytest.raises(InputError, match="entry 3: 'a' is also the name of entry 1"):
        analysis.load_models(tmp_path / "x.json")


def test_sizes_near_the_largest_float_are_refused(tmp_path):
    np.save(tmp_path / "s.npy", [1e308, 1e308])
    with pytest.raises(InputError, match="numbers of pixels"):
        analysis.load_sizes(tmp_path / "s.npy")


def test_rows_with_control_characters_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds a control character"):
        append_points(tmp_path / "p.csv", [Point("a\nb", "slak", "e.npy", 0.5)])
    (tmp_path / "p.csv").write_text('model_name,family,erf_path,wsol\n"a\nb",slak,e,0.5\n')
    with pytest.raises(InputError, match="holds a control character"):
        read_points(tmp_path / "p.csv")
