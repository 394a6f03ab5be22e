"""The backend table: preference, predicates, explicit requests, reasons."""

import logging

import pytest

from cba_fast.cli.tools import info
from cba_fast.ops.backends import Backend, BackendTable


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


def test_a_backend_on_request_is_never_the_automatic_choice(monkeypatch, caplog):
    monkeypatch.setattr(BackendTable, "registry", {})
    table = BackendTable(
        "halve",
        [
            Backend("cuda", lambda n: None, on_request="backend='cuda' asks for it"),
            Backend("reference", lambda n: None),
        ],
    )
    with caplog.at_level(logging.INFO, logger="cba_fast"):
        assert table.resolve(None, 4) == "reference"
    assert "'cuda' not used: backend='cuda' asks for it" in caplog.text
    assert table.resolve("cuda", 4) == "cuda"
    shown = info.backends("halve", table)
    assert shown["cpu"] == "reference"
    assert shown["not_used"]["cpu"] == {"cuda": "backend='cuda' asks for it"}


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
