"""The backend table: preference, predicates, explicit requests, reasons."""

import logging
import re
import warnings

import pytest
import torch

from cba_fast.cli.tools import info
from cba_fast.errors import CbaWarning
from cba_fast.ops.backends import Backend, BackendTable, expect


@pytest.fixture
def table(monkeypatch):
    """Return an op with a compiled backend that is not built and one that takes only even numbers.

    The package's own tables stay as they are.
    """
    monkeypatch.setattr(BackendTable, "registry", {})
    return BackendTable(
        "halve",
        [
            Backend("cuda", lambda n: "never asked", lambda: "no GPU here"),
            Backend("cpp", lambda n: None if n % 2 == 0 else f"{n} is odd"),
            Backend("reference", lambda n: None if n >= 0 else f"{n} is negative"),
        ],
    )


def test_the_first_that_can_run_is_taken(table):
    assert table.resolve(None, 4) == "cpp"
    assert table.resolve(None, 3) == "reference"


def test_a_named_backend_is_taken_or_refused_with_its_reason(table):
    assert table.resolve("reference", 4) == "reference"
    with pytest.raises(ValueError, match="halve: backend 'cpp' cannot run: 3 is odd"):
        table.resolve("cpp", 3)
    with pytest.raises(ValueError, match="'cuda' cannot run: no GPU here"):
        table.resolve("cuda", 4)


def checked_table(monkeypatch, self_check):
    monkeypatch.setattr(BackendTable, "registry", {})
    backends = [
        Backend("cuda", lambda image: None, self_check=self_check),
        Backend("reference", lambda image: None),
    ]
    return BackendTable("halve", backends)


def raises(device):
    raise RuntimeError("no kernel image")


def is_wrong(device):
    expect(torch.tensor([1.0, 2.0], device=device), torch.tensor([1.0, 2.5]), 1e-3)


def is_nan(device):
    expect(torch.tensor([1.0, float("nan")], device=device), torch.tensor([1.0, 2.0]), 1e-3)


@pytest.mark.parametrize(
    ("self_check", "failure"),
    [
        (raises, "RuntimeError: no kernel image"),
        (is_wrong, "ArithmeticError: its result has a relative error of 0.19"),
        (is_nan, "ArithmeticError: its result has a relative error of nan"),
    ],
)
def test_a_kernel_that_fails_its_self_check_is_taken_on_request_only(
    monkeypatch, self_check, failure
):
    table, image = checked_table(monkeypatch, self_check), torch.zeros(1, 8, 16, 16)
    failure = f"its self-check failed on cpu: {failure}"
    with pytest.warns(CbaWarning, match=re.escape(f"halve: backend 'cuda' is not used: {failure}")):
        assert table.resolve(None, image) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns once
        assert table.resolve(None, image) == "reference"
        assert table.resolve("cuda", image) == "cuda"
        shown = info.backends("halve", table)
    assert shown["cpu"] == "reference"
    assert shown["not_used"]["cpu"] == {"cuda": failure}


def test_a_self_check_runs_once_and_not_for_named_backends(monkeypatch):
    devices = []
    table, image = checked_table(monkeypatch, devices.append), torch.zeros(1, 8, 16, 16)
    assert table.resolve("cuda", image) == "cuda"
    assert devices == []
    assert [table.resolve(None, image) for _ in range(3)] == ["cuda"] * 3
    assert devices == [image.device]


def test_a_result_within_the_tolerance_passes():
    exact = torch.tensor([3.0, 4.0])
    expect(exact, exact)
    expect(exact + 1e-4, exact, 1e-3)
    with pytest.raises(ArithmeticError):
        expect(exact + 1e-4, exact)


def test_unknown_and_missing_backends_are_told_apart(table):
    with pytest.raises(ValueError, match=r"one of .*'reference'.*, got 'cudnn'"):
        table.resolve("cudnn", 4)
    with pytest.raises(ValueError, match="halve has no backend 'triton'; it has cuda, cpp, ref"):
        table.resolve("triton", 4)


def test_without_any_backend_all_reasons_are_given(table):
    with pytest.raises(ValueError, match="cuda: no GPU here; cpp: -3 is odd; reference: -3 is neg"):
        table.resolve(None, -3)


def test_refusals_are_logged_once(table, caplog):
    with caplog.at_level(logging.INFO, logger="cba_fast"):
        table.resolve(None, 3)
        table.resolve(None, 3)
        table.resolve(None, 5)
    assert [r.getMessage() for r in caplog.records] == [
        "halve: backend 'cuda' not used: no GPU here",
        "halve: backend 'cpp' not used: 3 is odd",
        "halve: backend 'cpp' not used: 5 is odd",
    ]


def test_tables_are_registered_under_their_op(table):
    assert BackendTable.registry == {"halve": table}


def test_the_ops_of_this_floor_have_tables_that_end_in_the_reference():
    import cba_fast.ops.dwconv
    import cba_fast.ops.erf  # noqa: F401

    expected = {
        "depthwise_conv2d",
        "depthwise_conv2d_grad_x",
        "depthwise_conv2d_grad_weight",
        "erf_size",
        "erf_accumulate",
    }
    assert expected <= BackendTable.registry.keys()
    for op in expected:
        assert list(BackendTable.registry[op].backends)[-1] == "reference"
