"""The self-checks of GPU kernels: right ones pass, wrong and raising ones fall back, and warn."""

import dataclasses
import re

import pytest
import torch
from tolerance import assert_forward

from cba_fast.errors import CbaWarning
from cba_fast.kernels import dwconv_cuda
from cba_fast.kernels.dwconv_gpu import cuda_strip
from cba_fast.ops import choice_table, depthwise_conv2d, dwconv, erf, quantize
from cba_fast.ops.backends import BackendTable
from cba_fast.ops.choice_table import Call, Table
from cba_fast.ops.dwconv_choice import TABLES, explain

QUANTIZE = quantize.__globals__["TABLE"]  # the module has the name of its function
MAPS = torch.linspace(0, 1, 2 * 5 * 7).reshape(2, 5, 7)
GRAD = torch.linspace(-1, 1, 2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
one_order = pytest.mark.parametrize("emulated_cuda", [2], indirect=True)


def accumulated():
    return erf.erf_accumulate(GRAD, torch.zeros(5, 7, dtype=torch.float64))


# For each op its table, its kernels, and a call.
OPS = {
    "quantize": (QUANTIZE, quantize.__globals__["_KERNELS"], lambda: quantize(MAPS)),
    "erf_size": (erf.SIZE, erf._SIZE_KERNELS, lambda: erf.erf_size(GRAD)),
    "erf_accumulate": (erf.ACCUMULATE, erf._ACCUMULATE_KERNELS, accumulated),
}


def raising(*args):
    raise RuntimeError("no kernel image is available")


def off_by_one(function):
    """Return a kernel whose first value is too large by one."""

    def run(*args):
        result = function(*args)
        (args[1] if result is None else result).view(-1)[0] += 1
        return result

    return run


def takes_cpu_tensors(monkeypatch, table, name="cuda"):
    """Let a CUDA backend of the table take CPU tensors, unchecked."""
    backend = dataclasses.replace(
        table.backends[name], refuses=lambda *args: None, unavailable=lambda: None
    )
    monkeypatch.setitem(table.backends, name, backend)
    monkeypatch.setattr(table, "_checked", {})


@one_order
@pytest.mark.parametrize("op", OPS)
def test_right_kernels_pass(op, emulated_cuda, monkeypatch):
    table, kernels, call = OPS[op]
    expected = call()
    takes_cpu_tensors(monkeypatch, table)
    run, calls = kernels["cuda"], []
    monkeypatch.setitem(kernels, "cuda", lambda *args: calls.append(args) or run(*args))
    assert torch.equal(call(), expected)
    checks = len(calls) - 1
    assert checks >= 1
    assert torch.equal(call(), expected)
    assert len(calls) == checks + 2


@one_order
@pytest.mark.parametrize("fault", ["wrong", "raising"])
@pytest.mark.parametrize("op", OPS)
def test_wrong_kernels_fall_back_with_a_warning(op, fault, emulated_cuda, monkeypatch):
    table, kernels, call = OPS[op]
    expected = call()
    takes_cpu_tensors(monkeypatch, table)
    broken = raising if fault == "raising" else off_by_one(kernels["cuda"])
    monkeypatch.setitem(kernels, "cuda", broken)
    error = "no kernel image" if fault == "raising" else "relative error"
    pattern = f"{op}: backend 'cuda' is not used: its self-check failed on cpu: .*{error}"
    with pytest.warns(CbaWarning, match=pattern) as caught:
        results = [call(), call()]
    assert len(caught) == 1
    assert all(torch.equal(result, expected) for result in results)


@one_order
@pytest.mark.parametrize("fault", [None, "wrong", "raising"])
@pytest.mark.parametrize(
    ("direction", "method"),
    [*((d, "cuda") for d in TABLES), ("forward", "cuda_strip"), ("grad_x", "cuda_strip")],
)
def test_convolutions_of_a_shipped_table(direction, method, fault, emulated_cuda, monkeypatch):
    table, image = TABLES[direction], torch.randn(2, 32, 9, 10)
    takes_cpu_tensors(monkeypatch, table, method)
    kernels = dwconv_cuda if method == "cuda" else cuda_strip
    name = {"grad_weight": "grad_weight", "grad_x": "grad_x"}.get(direction, "forward")
    if fault:
        broken = raising if fault == "raising" else off_by_one(getattr(kernels, name))
        monkeypatch.setattr(kernels, name, broken)
    monkeypatch.setattr("cba_fast.ops.dwconv_choice._ON", {"cpu": ("torch", method)})
    cases = {str(Call.of(direction, image, (5, 7))): {"torch": 2.0, method: 1.0}}
    shipped = Table({"kind": "cuda"}, cases, path="shipped.json", source=choice_table.OURS)
    monkeypatch.setattr(choice_table, "tables", lambda device: [shipped])
    if fault is None:
        assert explain(direction, image, (5, 7)) == (method, "shipped.json")
        return
    with pytest.warns(CbaWarning, match=f"{re.escape(table.op)}: backend '{method}' is not used"):
        assert explain(direction, image, (5, 7)).method == "torch"
    if direction == "forward":
        monkeypatch.setattr(dwconv, "_launchers", {})
        weight = torch.randn(32, 1, 5, 7)
        assert_forward(depthwise_conv2d(image, weight), image, weight)


def test_self_checks_need_no_default_device(monkeypatch):
    with torch.device("meta"):
        for table, kernels, _ in OPS.values():
            monkeypatch.setitem(kernels, "cuda", kernels["reference"])
            table.backends["cuda"].self_check(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "triton", "torch"])
def test_self_checks_pass_on_this_gpu(name):
    device = torch.device("cuda", torch.cuda.current_device())
    tables = BackendTable.registry.values()
    backends = [table.backends[name] for table in tables if name in table.backends]
    backends = [backend for backend in backends if backend.self_check]
    if reason := backends[0].unavailable():
        pytest.skip(reason)
    for backend in backends:
        backend.self_check(device)
