"""`tune`: what is measured, wrong ways, interruptions, and the choice that follows from it."""

import json
import math
import warnings

import pytest
import torch
from cli_runner import run_cli
from torch import nn

import cba_fast
from cba_fast.bench import tune_ahead, tune_measure
from cba_fast.bench.dwconv_contest import Case
from cba_fast.bench.tune import device_of, in_time, jobs, seconds_for, slow, tune, verify
from cba_fast.bench.tune_measure import LAYOUTS, RIVALS, Job, measure, way_of
from cba_fast.errors import CbaWarning, InputError
from cba_fast.kernels import dwconv_cpp, dwconv_torch
from cba_fast.ops import choice_table, depthwise_conv2d, dwconv
from cba_fast.ops.choice_table import METHODS, Call, Table
from cba_fast.ops.dwconv_choice import explain

CASE, TEXT = Case(4, 9, 8, 5, 3, 2), "2x4x9x8_k5x3"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Make an empty folder that of the user's tables, and let measuring take no time."""
    monkeypatch.setenv("CBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(choice_table, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tune_measure, "HOPELESS", 1e6)  # on a busy machine any way may be that
    monkeypatch.setattr(measure, "__defaults__", (1e-4, (), False))
    choice_table.forget()
    yield tmp_path
    choice_table.forget()


def test_every_way_is_measured_and_the_choice_follows(folder):
    tuned = cba_fast.tune(cases=[TEXT], device="cpu")
    assert tuned.left == 0
    assert tuned.jobs == jobs(None, [TEXT])
    assert len(tuned.jobs) == 6
    assert not tuned.table.wrong
    for job in tuned.jobs:
        for layout, memory_format in LAYOUTS.items():
            call = job.call(layout)
            ms = choice_table.read(tuned.table.path).cases[str(call)]
            only = ["torch_fft", "conv2d"] if job.dtype == "float32" else []
            assert ms.keys() == {"fft", "direct", "torch", "nchw", "channels_last", *only}
            image = torch.zeros(2, 4, 9, 8, dtype=getattr(torch, job.dtype))
            image = image.to(memory_format=memory_format)
            method, source = explain(job.direction, image, (5, 3))
            assert source == str(tuned.table.path)
            assert ms[method] == min(ms[m] for m in ms if m in METHODS)


def test_jobs_of_models_begin_with_few_images():
    found = jobs("convnext_atto", input_sizes=[64], batch_sizes=[8, 1], directions=["grad_x"])
    assert [j.case.batch for j in found] == sorted(j.case.batch for j in found)
    assert {j.case.batch for j in found} == {1, 8}
    assert {j.direction for j in found} == {"grad_x"}
    assert found[0] == Job(Case(40, 16, 16, 7, 7), "grad_x", "float32")
    assert len(set(found)) == len(found)
    assert len(jobs(None, [TEXT, CASE])) == 6
    layers = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, padding=2, groups=4)]
    own = jobs(nn.Sequential(*layers), input_sizes=[9], batch_sizes=[2])
    assert {j.case for j in own} == {Case(4, 9, 9, 5, 5, 2)}


def test_the_time_is_a_minute_for_each_model():
    assert seconds_for(None, [], None) == 240
    assert seconds_for("replknet_31b", [], None) == 60
    assert seconds_for(["a", "b"], [TEXT], None) == 120
    assert seconds_for(None, [TEXT], None) == math.inf
    assert seconds_for("replknet_31b", [], 5.0) == 5
    assert list(in_time(iter("ab"), -1)) == []


def test_an_interrupted_run_goes_on(monkeypatch):
    begun = []

    def measured(job, *args, **kwargs):
        begun.append(job)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return {layout: {"fft": 1.0} for layout in LAYOUTS}, {layout: {} for layout in LAYOUTS}

    monkeypatch.setattr("cba_fast.bench.tune.measure", measured)
    with pytest.raises(KeyboardInterrupt):
        tune(cases=[TEXT], device="cpu")
    assert tune(cases=[TEXT], device="cpu", seconds=1e-9).left == 4
    tuned = tune(cases=[TEXT], device="cpu")
    assert begun == [*tuned.jobs[:3], *tuned.jobs[2:]]
    assert (tuned.left, len(tuned.jobs)) == (0, 6)
    tune(cases=[TEXT], device="cpu", overwrite=True)
    assert begun[7:] == tuned.jobs


def test_a_table_of_another_version_is_replaced(folder):
    first = tune(cases=[TEXT], device="cpu", directions=["forward"], dtypes=["float32"])
    path = first.table.path
    path.write_text(path.read_text().replace('"torch": "', '"torch": "1.'))
    with pytest.warns(CbaWarning, match="is replaced: it was measured with torch 1"):
        tuned = tune(cases=["1x4x9x8_k5x3"], device="cpu", directions=["forward"])
    assert all(" 1x4x9x8_k5x3" in text for text in choice_table.read(path).cases)
    assert len(tuned.table.cases) == 4


@pytest.mark.parametrize("direction", ["forward", "grad_x", "grad_weight"])
@pytest.mark.parametrize("fault", ["wrong", "wrong in one image", "raising", "nan"])
def test_a_wrong_kernel_is_not_timed_and_never_taken(direction, fault, monkeypatch):
    name = "weight_launcher" if direction == "grad_weight" else "launcher"
    make = getattr(dwconv_cpp, name)

    def broken(*args, **kwargs):
        launch = make(*args, **kwargs)
        if "fft" not in args:
            return launch

        def run(*tensors):
            y = launch(*tensors)
            if fault == "raising":
                raise RuntimeError("no such plan")
            if fault == "wrong in one image":  # beyond the few images and channels
                y[-1, -1] *= 1.5 if 20 in y.shape else 1
            else:
                y.mul_(math.nan if fault == "nan" else 1.01)
            return y

        return run

    monkeypatch.setattr(dwconv_cpp, name, broken)
    monkeypatch.setattr(dwconv, "_launchers", {})
    case = Case(20, 9, 8, 5, 3, 2)
    times, wrong = measure(Job(case, direction, "float32"), CPU)
    for layout in LAYOUTS:
        assert "fft" not in times[layout]
        assert "direct" in times[layout]
        assert wrong[layout].keys() == {"fft"}
    json.dumps(wrong)


@pytest.mark.parametrize(("kw", "hangs"), [(9, False), (11, True)])
def test_convolutions_of_pytorch_that_may_never_return_are_not_called(kw, hangs, monkeypatch):
    monkeypatch.setattr(dwconv_torch, "_onednn_has_bf16", lambda: True)
    plain = {"conv2d", "nchw", "channels_last"}
    for dtype, expected in (
        ("float32", plain),
        ("bfloat16", set() if hangs else plain - {"conv2d"}),
    ):
        job = Job(Case(4, 9, 8, 5, kw), "forward", dtype)
        functions = tune_measure.ways(job, tune_measure.inputs(job.case, job, CPU), (), False)
        assert {name.split()[0] for name in functions} & plain == expected


def test_ways_that_are_hopeless_and_slow_are_left_out(monkeypatch):
    monkeypatch.setattr(tune_measure, "HOPELESS", 8)
    job = Job(Case(4, 9, 8, 5, 3, 8), "forward", "float32")
    one = job.call("contiguous")._replace(batch=1)
    times = {"fft": 1.0, "direct": 99.0, "conv2d": 100.0, "nchw": 100.0, "channels_last": 90.0}
    table = Table({"kind": "cpu"}, {str(one): times})
    assert slow(table, job, 0.05) == {"conv2d contiguous", "nchw"}
    assert slow(table, job, 1.0) == set()
    table.cases[str(one)] = {"fft": 1.0, "conv2d": 240.0, "nchw": 230.0}
    assert slow(table, job, 0.05) == {"conv2d contiguous"}
    table.cases[str(one)] = {"fft": 1.0, "conv2d": 260.0}  # 2.1 s for 8 images
    assert slow(table, job, 0.05) == {"conv2d contiguous"}
    assert slow(table, job._replace(dtype="bfloat16"), 0.05) == set()
    functions = tune_measure.ways(job, tune_measure.inputs(job.case, job, CPU), {"nchw"}, True)
    assert way_of("nchw", "contiguous") not in functions
    assert {"fft contiguous", "automatic channels_last", "torch_fft"} <= functions.keys()


def test_a_kernel_that_ends_the_use_of_the_gpu_is_left_out_next_time(monkeypatch):
    asked = []

    def lost(job, device, without=()):
        asked.append(set(without))
        if "cuda" not in without:
            raise tune_measure.DeviceLost("cuda", job)
        return {layout: {"torch": 1.0} for layout in LAYOUTS}, {layout: {} for layout in LAYOUTS}

    monkeypatch.setattr("cba_fast.bench.tune.measure", lost)
    with pytest.raises(InputError, match=f"since cuda computed forward of {TEXT} in float32"):
        tune(cases=[TEXT], device="cpu")
    assert tune(cases=[TEXT], device="cpu").left == 0
    assert asked == [set(), *[{"cuda"}] * 6]


def test_a_case_that_does_not_fit_into_memory_does_not_end_the_run(monkeypatch):
    def too_large(*args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate 200 GiB")

    monkeypatch.setattr("cba_fast.bench.tune.measure", too_large)
    tuned = tune(cases=[TEXT], device="cpu")
    assert tuned.left == 0
    assert all(ms == {} for ms in choice_table.read(tuned.table.path).cases.values())
    assert explain("forward", torch.zeros(2, 4, 9, 8), (5, 3)).source == "the rule"


def test_a_kernel_that_no_op_takes_is_refused():
    with pytest.raises(InputError, match="1x4x9x8_k4x3: the kernel size must be two odd numbers"):
        tune(cases=["1x4x9x8_k4x3"], device="cpu")


def test_verification_compares_with_the_best_method(monkeypatch):
    shares = iter([0.5, 0.8, 0.99])

    def measured(job, device, seconds, automatic):
        share = next(shares)
        ms = {"fft": share, "direct": 5.0, "nchw": 0.1, "automatic": 1.0}
        return dict.fromkeys(LAYOUTS, ms), {}

    monkeypatch.setattr("cba_fast.bench.tune.measure", measured)
    job = Job(CASE, "forward", "float32")
    found = verify(job, CPU, 0.1, 0.97)
    assert {layout: ratio for layout, (ratio, _) in found.items()} == dict.fromkeys(LAYOUTS, 0.99)


@pytest.mark.parametrize("hangs", [False, True])
def test_kernels_are_compiled_a_chunk_ahead_until_that_hangs(hangs, monkeypatch):
    events = []

    class Pool:
        def map_async(self, function, work, chunksize):
            events.append(len(work))
            for item in [] if hangs else work:
                function(item)
            return self

        def wait(self, seconds):
            assert seconds == tune_ahead.LONGEST

        def ready(self):
            return not hangs

        def terminate(self):
            events.append("terminated")

    def compiled(job, tensors, without, automatic):
        return {
            "triton contiguous": lambda: events.append(job),
            "triton channels_last": lambda: 1 / 0,
            "cuda contiguous": lambda: events.append("cuda"),
        }

    monkeypatch.setattr(tune_ahead, "CHUNK", 2)
    monkeypatch.setattr(tune_ahead, "ways", compiled)
    wanted = jobs(None, [TEXT])[:3]
    assert list(tune_ahead.in_chunks(iter(wanted), CPU, Pool())) == wanted
    assert events == ([2, "terminated"] if hangs else [2, *wanted[:2], 1, wanted[2]])


def test_devices_that_cannot_be_measured_on():
    assert device_of("cpu") == CPU
    with pytest.raises(InputError, match="such as cpu or cuda:0, got 'gpu'"):
        device_of("gpu")
    with pytest.raises(InputError, match="must be a CPU or an NVIDIA GPU, got meta"):
        device_of("meta")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="PyTorch sees none here"):
            device_of("cuda")


def test_the_command_says_what_won_and_info_names_the_table(folder, capsys):
    how = ["tune", "--case", TEXT, "--direction", "forward", "--device", "cpu"]
    out = run_cli(capsys, *how, "--dtype", "float32").out
    path = folder / choice_table.file_name(choice_table.place_of(CPU))
    assert f"Table: {path}" in out
    assert out.count(TEXT) == 2
    found = json.loads(run_cli(capsys, "info", "--json", "--case", TEXT).out)
    table = {"path": str(path), "source": "yours", "cases": 2}
    assert found["convolution_tables"]["cpu"] == [table]
    sources = {c["call"]: c["source"] for c in found["choices"] if c["device"] == "cpu"}
    assert sources[f"forward float32 contiguous {TEXT}"] == str(path)
    assert sources[f"grad_x float32 contiguous {TEXT}"] == "the rule"
    out = run_cli(capsys, "info", "--case", TEXT).out
    assert "yours" in out
    assert "the rule" in out


def test_a_network_of_ones_own(folder, capsys):
    mine = folder / "mine.py"
    mine.write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    layers = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, (5, 3), padding=(2, 1), groups=4)\n"
        "    return nn.Sequential(*layers)\n"
    )
    how = ("--input_size", 9, "--batch_size", 2, "--device", "cpu", "--dtype", "float32")
    found = run_cli(capsys, "tune", "--model_factory", f"{mine}:make", *how)
    assert found.status == 0
    assert found.out.count("2x4x9x9_k5x3") == 6


def test_losses_are_printed(folder, capsys, monkeypatch):
    def measured(job, *args, **kwargs):
        ms = {"fft": 2.0, "torch": 3.0, "nchw": 1.0}
        return dict.fromkeys(LAYOUTS, ms), {layout: {} for layout in LAYOUTS}

    monkeypatch.setattr("cba_fast.bench.tune.measure", measured)
    how = ("tune", "--case", TEXT, "--device", "cpu")
    assert "0.50 (loss)" in run_cli(capsys, *how).out
    monkeypatch.setattr(
        "cba_fast.bench.tune.measure",
        lambda *args, **kwargs: ({layout: {"fft": 1, "automatic": 2} for layout in LAYOUTS}, {}),
    )
    found = run_cli(capsys, *how, "--verify")
    assert found.status == 1
    assert "12 below 0.97, the least is 0.500" in found.out


def test_the_measured_table_gives_right_results(folder):
    tune(cases=[TEXT], device="cpu")
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(4, 1, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = depthwise_conv2d(x, weight)
    expected = depthwise_conv2d(x, weight, backend="reference")
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert Call.of("forward", x, (5, 3)) is not None
    assert RIVALS[0] not in METHODS


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_is_measured_and_its_table_is_taken(dtype):
    tuned = tune(cases=["8x32x24x24_k13x13"], device="cuda", dtypes=[dtype])
    assert tuned.left == 0
    assert not tuned.table.wrong
    image = torch.zeros(8, 32, 24, 24, device="cuda", dtype=getattr(torch, dtype))
    for job in tuned.jobs:
        ms = tuned.table.cases[str(job.call("contiguous"))]
        assert {"torch", "nchw", "channels_last", "cudnn_benchmark"} <= ms.keys()
        method, source = explain(job.direction, image, (13, 13))
        assert source == str(tuned.table.path)
        assert ms[method] == min(t for m, t in ms.items() if m in METHODS)
