"""Shared fixtures; GPU tests skip with one line where there is no NVIDIA GPU."""

import os
import sys
import tempfile

# The tests' models are tiny: more OpenMP threads make them slower, on a busy machine many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A table that someone measured on this machine must not change what the tests see.
os.environ["CBA_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), "cba_fast_tests_have_no_table")

import hypothesis
import pytest

# A busy machine, or what the first example imports, takes any time.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

# Waiting for the disk after each file would take much of the time of tests that write many.
os.fsync = lambda descriptor: None


def pytest_collection_modifyitems(config, items):
    gpu_items = [i for i in items if i.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make an empty folder the working directory, and return it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def seeded():
    """Seed PyTorch's random numbers."""
    import torch

    torch.manual_seed(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """End a process whose GPU a failed test has left without an answer, if another can go on.

    After an illegal access every call of the process fails. pytest-xdist and `gpu_run` name the
    test in which the process ended and go on with a new one.
    """
    outcome = yield
    failed = call.excinfo is not None and item.get_closest_marker("gpu")
    if not failed or not {"PYTEST_XDIST_WORKER", "CBA_GPU_RUN"} & os.environ.keys():
        return
    import torch

    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        sys.stderr.write(f"{item.nodeid} ended the process's use of the GPU\n")
        sys.stderr.write(f"{outcome.get_result().longreprtext}\n")
        sys.stderr.flush()
        os._exit(1)


@pytest.fixture
def cuda_device():
    """Return the current GPU, for tests marked gpu, if the compiled CUDA kernels run on it."""
    import torch

    from cba_fast.kernels import cuda_core, native

    device = torch.device("cuda", torch.cuda.current_device())
    if (reason := native.cuda_unavailable() or cuda_core.refuses(device)) is not None:
        pytest.skip(reason)
    return device


@pytest.fixture(params=[0, 1, 2], ids=["ascending", "descending", "shuffled"])
def emulated_cuda(request, monkeypatch):
    """Let the launchers of `cba_fast.kernels` run their CUDA kernels on CPU tensors.

    The parameter is the order of a block's threads: a missing barrier shows in one of them.
    """
    import cuda_emulator

    return cuda_emulator.emulate(monkeypatch, request.param)


@pytest.fixture
def empty_is_nan(monkeypatch):
    """Let `torch.empty` return NaN: an output that is not written shows."""
    import torch

    empty = torch.empty

    def filled(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture
def a_gpu(monkeypatch):
    """Return a function that makes tensors of a GPU that is not here, of compute capability 9.0.

    The build is one for it. Nothing was measured on it; what a test finds out about it is forgotten
    afterwards.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from cba_fast.kernels import native
    from cba_fast.ops import choice_table, dwconv

    monkeypatch.setattr(native, "_cuda_built_for", ("90-real", (((9, 0), (9, 9)),)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(choice_table, "tables", lambda device: [])
    monkeypatch.setattr(dwconv, "_launchers", {})

    def make(*shape, dtype=torch.bfloat16, memory_format=torch.contiguous_format):
        return torch.empty(shape, dtype=dtype, device="cuda", memory_format=memory_format)

    with FakeTensorMode():
        yield make
