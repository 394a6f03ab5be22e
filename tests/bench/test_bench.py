"""Benchmarks: fair turns, no speed on a wrong result, records and tables, the shapes measured."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from cli_runner import run_cli

from cba_fast.bench import dwconv_contest, model_contest
from cba_fast.bench import records as bench_records
from cba_fast.bench import tables as bench_tables
from cba_fast.bench.contest import Contest, Timing
from cba_fast.bench.dwconv_contest import Case, DwconvContest
from cba_fast.bench.summary import summary
from cba_fast.errors import InputError
from cba_fast.ops import dwconv
from cba_fast.reference import dwconv as reference

ROOT = Path(__file__).parents[2]


# Turns.


class Clock:
    """A clock that the timed functions move forward themselves."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr("cba_fast.bench.contest.time.perf_counter", lambda: self.now)

    def function(self, name, seconds):
        def call():
            self.calls.append(name)
            self.now += seconds
            return name

        return call


def test_turns_alternate_and_slow_functions_get_fewer(monkeypatch):
    clock = Clock(monkeypatch)
    functions = {n: clock.function(n, s) for n, s in (("quick", 1 / 128), ("slow", 0.5))}
    contest = Contest(functions, seconds=1.0)
    assert contest.results == {"quick": "quick", "slow": "slow"}
    clock.calls.clear()
    timings = contest.run()
    assert timings["quick"] == Timing(*[1 / 128] * 3, 50)
    assert timings["slow"].median == 0.5
    assert timings["slow"].calls == 2
    # A quick function is called once before it is timed; a slow one has no such need, and its two
    # turns lie half a contest apart.
    after = clock.calls[1:]  # the first call settled the number of rounds
    assert sorted(after[:3]) == ["quick", "quick", "slow"]
    first, second = (i for i, name in enumerate(after) if name == "slow")
    assert second - first > 40


def test_a_function_timed_elsewhere_gets_no_turn(monkeypatch):
    clock = Clock(monkeypatch)
    contest = Contest({n: clock.function(n, 0.2) for n in "ab"}, seconds=1.0)
    contest.round(0.0, without="a")
    assert contest.samples == {"a": [], "b": [pytest.approx(0.2)]}
    contest.leave_out("b")
    contest.round(1.0)
    assert len(contest.samples["b"]) == 1


def test_percentiles():
    assert Timing.of([3.0]) == Timing(3.0, 3.0, 3.0, 1)
    assert Timing.of([float(i) for i in range(11)]) == Timing(5.0, 2.0, 8.0, 11)
    assert Timing.of([0.001, 0.002, 0.006]).in_ms()["median_ms"] == 2.0


# The depthwise convolution.


@pytest.mark.parametrize(
    "case", [Case(3, 9, 10, 5, 7, 2), Case(3, 5, 4, 13, 9, 2), Case(2, 8, 8, 1, 51)]
)
def test_torch_fft_computes_the_convolution(case):
    g = torch.Generator().manual_seed(0)
    image = (case.batch, case.channels, case.height, case.width)
    x, grad = (torch.randn(image, generator=g, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(case.channels, 1, case.kh, case.kw, generator=g, dtype=torch.float64)
    size = (case.kh, case.kw)
    for ours, theirs, args in (
        (dwconv_contest.fft_forward, reference.depthwise_conv2d, (x, weight)),
        (dwconv_contest.fft_grad_x, reference.depthwise_conv2d_grad_x, (grad, weight)),
        (dwconv_contest.fft_grad_weight, reference.depthwise_conv2d_grad_weight, (grad, x, size)),
    ):
        torch.testing.assert_close(ours(*args), theirs(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", dwconv_contest.DIRECTIONS)
def test_dwconv_record(direction, dtype):
    contest = DwconvContest(Case(4, 9, 8, 5, 3, 2), direction, dtype, seconds=1e-3)
    assert contest.wrong() == {}
    contest.contest.run()
    record = contest.record()
    assert set(record["timings"]) == {"ours", "ours_channels_last", "nchw", "channels_last", "fft"}
    assert all(t["median_ms"] > 0 for t in record["timings"].values())
    assert record["gflop"] == 2 * 2 * 4 * 9 * 8 * 5 * 3 / 1e9
    assert Case.parse(record["case"]) == Case(4, 9, 8, 5, 3, 2)
    json.dumps(record, allow_nan=False)


def test_a_wrong_result_gets_no_speed(monkeypatch):
    def one_tap_off(x, weight):
        weight = weight.clone()
        weight[:, :, 0, 0] *= 1.01
        return reference.depthwise_conv2d(x, weight)

    monkeypatch.setattr(dwconv_contest, "_torch_forward", one_tap_off)
    contest = DwconvContest(Case(4, 9, 8, 5, 3), "forward", seconds=1e-3)
    assert set(contest.wrong()) == {"nchw", "channels_last"}
    contest.contest.run()
    record = contest.record()
    assert set(record["timings"]) == {"ours", "ours_channels_last", "fft"}
    assert "nchw" not in bench_tables.ratios(record)
    assert "wrong (0.00" in bench_tables.dwconv_table([record | {"machine": {}}])


def test_cases_are_read_as_they_are_printed():
    case = Case(128, 96, 95, 51, 5, 8)
    assert str(case) == "8x128x96x95_k51x5"
    assert Case.parse(str(case)) == case
    for text in ("128x96x96", "1x0x9x9_k3x3", "1x2x9x9_k3"):
        with pytest.raises(InputError, match=f"got '{text}'"):
            Case.parse(text)


# Networks.


def test_cases_of_the_benchmarks_are_the_layers_of_the_models(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    cases = runpy.run_path(str(ROOT / "benchmarks" / "cases.py"))
    found = {}
    for name in ("replknet_31b", "slak_tiny", "slak_flex_base"):
        with torch.device("meta"):
            model = timm.create_model(name)
        found[name] = model_contest.depthwise_cases(model, 384)
        if name == "replknet_31b":
            found["at 224"] = model_contest.depthwise_cases(model, 224)
    large = {c for n in ("replknet_31b", "at 224") for c in found[n] if c.kh > 5}
    assert large == {c for c in cases["DWCONV"]["replknet"] if c.batch == 1}
    # 24 blocks, each with a large and a small kernel, and the 3x3 kernel of stride 1 in the stem.
    assert sum(found["replknet_31b"].values()) == 2 * 24 + 1
    strips = {c for c in cases["DWCONV"]["strips"] if c.batch == 1}
    assert strips <= set(found["slak_tiny"]) | set(found["slak_flex_base"])
    assert {c.batch for c in cases["DWCONV"]["largest"]} == {1, 8}


@pytest.mark.parametrize("name", ["slak_nano", "replknet_nano", "test_convnext", "test_resnet"])
def test_model_record(name):
    model, half = model_contest.create(name), name == "slak_nano"
    functions = model_contest.inference(model, 64, bfloat16=half, compiled=False)
    contest = model_contest.ModelContest(functions, seconds=1e-3)
    assert contest.wrong() == {}
    contest.contest.run()
    timed = set(contest.record()["timings"])
    expected = {"default", "channels_last", "ours"}
    if name != "test_resnet":
        expected.add("channels_last_merged")
    if half:
        expected |= {"channels_last_merged_bf16", "ours_bf16"}
    assert timed == expected


def test_training_step():
    model = model_contest.create("replknet_nano")
    exact = model_contest.exact_gradients(model, 64, 2)
    assert {g.dtype for g in exact} == {torch.float64}
    contest = model_contest.ModelContest(model_contest.training(model, 64, 2), 1e-3, exact)
    assert contest.wrong() == {}
    assert set(contest.contest.run()) == {"default", "channels_last", "ours"}


@pytest.mark.parametrize("wrong", [None, *dwconv_contest.DIRECTIONS])
def test_a_wrong_kernel_in_a_training_step_is_noticed(monkeypatch, wrong):
    """In one direction the central tap of each kernel is off by a thousandth."""

    def off(kernel):
        kernel = kernel.clone()
        kernel[..., kernel.shape[-2] // 2, kernel.shape[-1] // 2] *= 1.001
        return kernel

    def harmed(make):
        def launcher(*args):
            launch = make(*args)
            if wrong == "grad_weight":
                return lambda *args: off(launch(*args))
            if args[0] != wrong:
                return launch
            return lambda image, kernel, *args: launch(image, off(kernel), *args)

        return launcher

    monkeypatch.setattr(dwconv, "_launchers", {})
    if wrong:
        name = "_grad_weight_launcher" if wrong == "grad_weight" else "_image_launcher"
        monkeypatch.setattr(dwconv, name, harmed(getattr(dwconv, name)))
    errors = model_contest.layer_errors(model_contest.create("replknet_nano"), 32, 2)
    assert len(errors) == 3 * (1 + 4 * 2)  # the stem's, a large and a small kernel in each stage
    found = [name for name, e in errors.items() if not e <= dwconv_contest.WRONG["float32"]]
    assert found == [name for name in errors if name.endswith(f" {wrong}")]


def test_one_tensor_of_many_is_enough_to_be_wrong():
    right, nan = torch.ones(3), torch.full((3,), torch.nan)
    functions = {
        "default": lambda: [right, right, right],
        "off": lambda: [right, 1.01 * right, right],
        "nan": lambda: [right, nan, right],
        "ours": lambda: [right, right, 1.0001 * right],
    }
    exact = [right.double()] * 3
    contest = model_contest.ModelContest(functions, 1e-3, exact)
    assert set(contest.wrong()) == {"off", "nan"}
    assert set(contest.contest.functions) == {"default", "ours"}


def test_a_layer_that_is_lost_in_training_is_noticed(monkeypatch):
    def lose_a_layer(model):
        model.stages[0].blocks[0].large_kernel.small_conv.conv.weight.data.zero_()

    monkeypatch.setattr(model_contest, "accelerate", lose_a_layer)
    model = model_contest.create("replknet_nano")
    exact = model_contest.exact_gradients(model, 64, 2)
    contest = model_contest.ModelContest(model_contest.training(model, 64, 2), 1e-3, exact)
    assert set(contest.wrong()) == {"ours"}


def test_a_form_that_computes_something_else_is_noticed(monkeypatch):
    def lose_a_branch(model, **kwargs):
        form = model_contest.merge(model)
        form.stages[2][0].large_kernel.LoRA2.conv.weight.data.zero_()
        return form

    monkeypatch.setattr(model_contest, "inference_form", lose_a_branch)
    functions = model_contest.inference(model_contest.create("slak_nano"), 64, compiled=False)
    contest = model_contest.ModelContest(functions, seconds=1e-3)
    assert set(contest.wrong()) == {"ours"}


def test_pytorch_s_compiler_is_a_rival_with_its_first_call(monkeypatch):
    calls = []
    monkeypatch.setattr(model_contest, "compile_frozen", lambda f: calls.append(f) or f)
    functions = model_contest.inference(model_contest.create("slak_nano"), 32, bfloat16=True)
    contest = model_contest.ModelContest(functions, seconds=1e-3)
    contest.contest.run()
    record = contest.record() | {
        "bench": "models",
        "case": "n",
        "direction": "inference",
        "machine": made()["machine"],
    }
    names = ("channels_last_compiled", "ours_compiled")
    compiled = {f"{name}{half}" for name in names for half in ("", "_bf16")}
    assert len(calls) == 4
    assert compiled <= set(record["timings"]) & set(record["first_call_s"])
    record["first_call_s"] = dict.fromkeys(compiled, 61.0)
    record["timings"]["channels_last_compiled"] = {"median_ms": 1e-9, "p20_ms": 1, "p80_ms": 1}
    single, half = bench_tables.tables([record]).splitlines()[-3:-1]
    assert single.startswith("| n | float32 |")
    assert "| 61 s |" in single
    assert single.endswith("(loss) |")
    assert half.startswith("| n | bfloat16 |")


# Records and tables.


def made(case="1x2x3x3_k3x3", ours=1.0, nchw=2.0, **kwargs):
    def timing(ms):
        return {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "calls": 3}

    record = {
        "bench": "dwconv",
        "case": case,
        "direction": "forward",
        "dtype": "float32",
        "algorithm": "auto",
        "gflop": 1.0,
        "errors": {"fft": 0.5},
        "timings": {"ours": timing(ours), "nchw": timing(nchw), "channels_last": timing(4.0)},
        "machine": {"cpu": "C", "isa": "avx2", "threads": 2, "versions": {"torch": "2"}},
    }
    return record | kwargs


def test_records_replace_older_ones_of_the_same_case(tmp_path):
    path = tmp_path / "r.jsonl"
    for record in (made(), made("other"), made(ours=0.5), made(dtype="bfloat16")):
        bench_records.add_record(path, record)
    read = bench_records.read_records(path)
    assert [(r["case"], r["dtype"]) for r in read] == [
        ("1x2x3x3_k3x3", "float32"),
        ("other", "float32"),
        ("1x2x3x3_k3x3", "bfloat16"),
    ]
    assert read[0]["timings"]["ours"]["median_ms"] == 0.5
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(InputError, match="line 4 is no JSON"):
        bench_records.read_records(path)


def test_table_shows_means_losses_and_the_share_of_the_peak():
    slow = made("slow", ours=8.0)
    slow["machine"] = slow["machine"] | {"fma_peak_gflops": 500.0}
    quick = made("quick", ours=1.0)
    quick["machine"] = slow["machine"]
    text = bench_tables.tables([slow, quick])
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert "0.25 (loss)" in rows["| slow"]
    assert rows["| quick"].endswith("| 2.00 | 1000 | 200 |")
    mean = math.sqrt(0.25 * 2)
    assert f"Geometric means: {mean:.2f} (0.25 to 2.00) times the best of torch" in text
    assert "FMA peak 500 GFLOP/s" in text


def test_table_of_memory():
    machine = made()["machine"]
    kib = {"channels_last": 2048, "ours_channels_last": 3072}
    record = {"bench": "memory", "case": "c", "direction": "grad_x", "kib": kib, "machine": machine}
    text = bench_tables.tables([record, made()])
    assert "| c | 2.0 | 3.0 | 1.50 (loss) |" in text
    assert "## forward, float32" in text


def test_table_and_summary_of_whole_commands():
    record = {"bench": "throughput", "case": "maps n 64", "direction": "generate-heatmap"}
    record |= {
        "model": "n",
        "precision": "fp32",
        "times_as_fast": 0.5,
        "machine": made()["machine"],
    }
    record["images_per_s"] = {"study": 2.0, "ours": 1.0}
    assert "| maps n 64 | images_per_s | study: 2.0, ours: 1.0 |" in bench_tables.tables([record])
    text = summary([record])
    assert "| `cba-fast generate-heatmap`, n, fp32, " in text
    assert " | the study's scripts | 1 | 0.50 | 1 |" in text


def test_machine_is_described():
    where = bench_records.machine()
    assert where["cpu"]
    assert where["threads"] == torch.get_num_threads()
    assert f"_{where['threads']}t" in bench_records.device_slug()


def test_command(capsys, tmp_path):
    path = tmp_path / "r.jsonl"
    args = ("bench", "--seconds", "0.001", "--json", path)
    done = run_cli(capsys, *args, "--model", "test_convnext", "--input_size", 32)
    assert done.status == 0, done.err
    assert "Geometric means" in done.out
    done = run_cli(capsys, *args, "--case", "1x4x5x5_k3x3", "--direction", "grad_weight")
    assert "| 1x4x5x5_k3x3 |" in done.out
    network = ("--what", "model", "--model", "slak_nano", "--input_size", 32, "--no-compiled")
    done = run_cli(capsys, *args, *network)
    assert "| slak_nano 1x3x32x32 |" in done.out
    records = bench_records.read_records(path)
    assert {r["bench"] for r in records} == {"dwconv", "models"}
    assert {r["direction"] for r in records if r["bench"] == "dwconv"} == {"forward", "grad_weight"}


FACTORY = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.large = nn.Conv2d(4, 4, 9, padding=4, groups=4)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return {"maps": self.large(y), "logits": (y.mean(3), 5)}
"""


def test_networks_of_a_user(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    name = f"{tmp_path}/mine.py:Two"
    args = ("bench", "--seconds", "0.001", "--model_factory", name, "--input_size", 32)
    done = run_cli(capsys, *args, "--what", "model", "--no-compiled")
    assert done.status == 0, done.err
    assert f"| {name} 1x3x32x32 |" in done.out
    done = run_cli(capsys, *args)
    assert "| 1x4x16x16_k9x9 |" in done.out
    done = run_cli(capsys, *args, "--model_factory", "mine.py")
    assert "--model_factory must be package.module:function" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "test_resnet"], "test_resnet has no depthwise convolution"),
        (["--model", "no_such_model"], "no_such_model"),
        (["--case", "5x5"], "NxCxHxW_kKHxKW"),
        (["--model", "replknet_nano", "--input_size", "0"], "input_size"),
    ],
)
def test_command_refuses(capsys, args, message):
    done = run_cli(capsys, "bench", *args)
    assert done.status != 0
    assert message in done.err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="builds a shared object")
def test_peak_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peak = runpy.run_path(str(ROOT / "benchmarks" / "peak.py"))["fma_peak_gflops"]
    found = peak(1, seconds=1e-3, repeats=2)
    assert found is None or 1 < found < 2000


def test_shipped_records_print_as_tables(monkeypatch, capsys):
    """Whatever the benchmarks file, the documented command must show."""
    monkeypatch.setattr(sys, "argv", ["table.py"])
    runpy.run_path(str(ROOT / "benchmarks" / "table.py"), run_name="__main__")
    shown = capsys.readouterr().out
    for path in (ROOT / "benchmarks" / "results").glob("*.jsonl"):
        for record in bench_records.read_records(path):
            assert f"| {record['case']} |" in shown


def test_exactness_run(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    run = runpy.run_path(str(ROOT / "benchmarks" / "exact_box_sweep.py"))
    maps = [*run["upsampled_maps"](0), *list(run["small_maps"](0))[:20]]
    assert not any(run["differs"](u) for u in maps)
    # It must be able to fail.
    wrong = run["differs"].__globals__["box_sweep"]
    run["differs"].__globals__["box_sweep"] = lambda u, t: wrong(u, t) + 1
    assert "largest" in run["differs"](maps[0])
