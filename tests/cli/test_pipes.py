"""Pipes and the like where users name files: refused at once by all that reads such files."""

import os
import signal

import pytest

from cba_fast.analysis.documents import read_document
from cba_fast.analysis.models import load_sizes
from cba_fast.erf.partial import Partial, partial_path
from cba_fast.errors import CheckpointError, InputError
from cba_fast.experiments.erf_shape import load_target
from cba_fast.files import read_json
from cba_fast.models import read_checkpoint
from cba_fast.npy import read_npy
from cba_fast.runs.erf.shared import read_array as read_sizes
from cba_fast.runs.outputs import read_arrays
from cba_fast.training.state import load_state

READERS = {
    "json": (read_json, OSError),
    "yaml": (read_document, OSError),
    "npy": (read_npy, OSError),
    "erf sizes": (load_sizes, InputError),
    "erf map": (load_target, InputError),
    "own erf": (read_sizes, InputError),
    "own arrays": (read_arrays, InputError),
    "checkpoint": (read_checkpoint, CheckpointError),
    "training state": (load_state, OSError),
}


@pytest.fixture(autouse=True)
def no_waiting():
    """Fail where a pipe was opened, which waits for a writer forever."""

    def stop(*_):
        raise TimeoutError("waits for a writer of the pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    read, error = READERS[name]
    path = tmp_path / "pipe.pth"
    os.mkfifo(path)
    with pytest.raises(error, match="not a (regular )?file") as caught:
        read(path)
    assert "pipe.pth" in str(caught.value)


def test_a_pipe_for_partial_results_counts_as_none(tmp_path, caplog):
    output = tmp_path / "erf.npy"
    os.mkfifo(partial_path(output))
    assert Partial(output).load() is None
    assert "not a regular file" in caplog.text


def test_a_yaml_file_with_a_nul_is_refused_in_one_line(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"a: \0\n")
    with pytest.raises(InputError, match=r"plan\.yaml: .*character") as caught:
        read_document(path)
    assert "\n" not in str(caught.value)
