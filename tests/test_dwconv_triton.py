"""The Triton depthwise convolution without a GPU: values in the interpreter, plans, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_interpreter import CASES

from cba_fast.kernels import dwconv_triton, dwconv_triton_plan
from cba_fast.kernels.dwconv_triton_plan import window
from cba_fast.ops import depthwise_conv2d
from cba_fast.ops.dwconv_choice import TABLES
from cba_fast.ops.dwconv_gpu import fastest_on_gpu, refuses_triton

RUNNER = Path(__file__).parent / "triton_interpreter.py"
BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def interpreted():
    """Return what became of each case in the interpreter: None, or its traceback."""
    pytest.importorskip("triton")
    result = subprocess.run(
        [sys.executable, RUNNER],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert lines, result.stderr
    return {line["case"]: line["error"] for line in lines}


@pytest.mark.parametrize("name", CASES)
def test_in_the_interpreter(name, interpreted):
    assert name in interpreted, "the interpreter ended before"
    assert interpreted[name] is None, interpreted[name]
