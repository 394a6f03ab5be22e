"""The thread pool of the compiled core: ranges, exceptions, nesting, forks, concurrent callers."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cba_fast.kernels import native, openmp, quantize_cpp
from cba_fast.ops import box_sweep, depthwise_conv2d, erf_size

parallel_for = native.load().parallel_for


@pytest.fixture(autouse=True, params=["OpenMP", "own"])
def threads_of(request):
    """Run each test on PyTorch's threads and on the pool of the core."""
    core = native.load()
    core.use_openmp(openmp.entry_point() if request.param == "OpenMP" else 0)
    yield request.param
    core.use_openmp(openmp.entry_point())


def visits(n: int, threads: int) -> list[int]:
    """Count how often each of the n items is visited."""
    counts = [0] * n
    lock = threading.Lock()

    def visit(begin, end):
        assert 0 <= begin < end <= n
        with lock:
            for i in range(begin, end):
                counts[i] += 1

    parallel_for(n, threads, visit)
    return counts


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100, 1001])
def test_each_item_is_visited_once(n, threads):
    assert visits(n, threads) == [1] * n


def test_a_negative_count_does_nothing():
    parallel_for(-5, 2, lambda begin, end: pytest.fail("called"))


def test_two_threads_take_part():
    seen = set()
    together = threading.Barrier(2, timeout=30)

    def meet(begin, end):
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            together.wait()  # breaks unless another thread works at the same time

    parallel_for(64, 2, meet)
    assert len(seen) == 2


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_exception_reaches_the_caller_and_the_pool_lives(threads):
    def fail(begin, end):
        if begin <= 40 < end:
            raise KeyError("item 40")

    for _ in range(20):
        with pytest.raises(KeyError, match="item 40"):
            parallel_for(100, threads, fail)
        assert visits(50, threads) == [1] * 50


def test_an_exception_in_every_range():
    def fail(begin, end):
        raise ValueError(str(begin))

    with pytest.raises(ValueError, match=r"^\d+$"):
        parallel_for(100, 4, fail)


def test_nested_calls_run_on_their_thread():
    total, lock = [0], threading.Lock()

    def outer(begin, end):
        caller = threading.get_ident()

        def inner(begin, end):
            assert threading.get_ident() == caller
            with lock:
                total[0] += end - begin

        for _ in range(begin, end):
            parallel_for(10, 4, inner)

    parallel_for(20, 4, outer)
    assert total == [200]


def test_callers_on_several_threads():
    results = {}

    def call(key):
        results[key] = all(visits(200, 3) == [1] * 200 for _ in range(20))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=60)
    assert results == dict.fromkeys(range(6), True)


def test_no_thread_is_started_by_the_import():
    code = (
        "import os; from cba_fast.kernels import native\n"
        "before = len(os.listdir('/proc/self/task')); core = native.load()\n"
        "core.parallel_for(9, 1, lambda a, b: None)\n"
        "idle = len(os.listdir('/proc/self/task')) - before\n"
        "core.parallel_for(9, 3, lambda a, b: None)\n"
        "print(idle, len(os.listdir('/proc/self/task')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "2"], done.stderr


MAPS = np.random.default_rng(0).random((4, 256, 256), np.float32)


@pytest.fixture(autouse=True)
def threads_as_before():
    """Restore PyTorch's number of threads, which the rounding of other tests depends on."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quantized_sum() -> int:
    torch.set_num_threads(2)
    # Summed by NumPy: a parallel sum of PyTorch would hang in a forked process, with its OpenMP.
    return int(quantize_cpp.quantize(torch.from_numpy(MAPS)).numpy().sum())


def wait_for(pid: int, seconds: float = 30) -> int | None:
    """Return the exit status of a child, or None (and kill it) if it hangs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def in_a_fork() -> int | None:
    """Use the pool in a forked child (and in its own child); return the child's exit status."""
    pid = os.fork()
    if pid == 0:
        # Nothing of pytest may run in the child, whatever happens.
        try:
            right = visits(100, 3) == [1] * 100
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(0 if visits(100, 3) == [1] * 100 else 3)
            os._exit(0 if right and wait_for(grandchild, 10) == 0 else 4)
        finally:
            os._exit(5)
    return wait_for(pid)


# Python 3.12 and later warn about every fork of a process with threads, which is what is tested.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
def test_a_fork_after_use():
    assert visits(100, 3) == [1] * 100
    for _ in range(5):
        assert in_a_fork() == 0
        assert visits(100, 3) == [1] * 100


@forks
def test_a_fork_while_other_threads_use_the_pool():
    stop = threading.Event()
    values = torch.from_numpy(MAPS)

    def keep_busy():
        while not stop.is_set():
            quantize_cpp.quantize(values)

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in busy:
        thread.start()
    try:
        assert [in_a_fork() for _ in range(10)] == [0] * 10
    finally:
        stop.set()
        for thread in busy:
            thread.join()


class Answers(Dataset):
    """Items that all compiled ops compute on two threads."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[int]:
        maps = torch.from_numpy(MAPS)
        image = torch.ones(2, 64, 16, 16)
        summed = depthwise_conv2d(image, torch.ones(64, 1, 7, 7), backend="cpp")
        answers = [quantized_sum(), erf_size(maps[:, None]), box_sweep(maps, [0.2, 0.5]), summed]
        # Summed by NumPy: see `quantized_sum`.
        return [index, *(int(np.asarray(answer).sum()) for answer in answers)]


@forks
def test_workers_of_a_data_loader_that_forked_after_threads():
    items = Answers()
    expected = [items[i] for i in range(6)]
    torch.ones(1 << 20).sum()  # PyTorch's threads have worked, too
    loader = DataLoader(
        items, num_workers=2, collate_fn=list, timeout=60, multiprocessing_context="fork"
    )
    assert [item for batch in loader for item in batch] == expected
    assert [items[i] for i in range(6)] == expected


def test_an_interrupt_reaches_the_main_thread():
    code = (
        "import os, signal, time; from cba_fast.kernels import native\n"
        # A shell lets its background jobs ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "native.load().parallel_for(9, 3, lambda a, b: None)\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        # not one long sleep: it may begin just after the signal
        "    for _ in range(600): time.sleep(0.1)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"


def test_the_runtime_of_openmp_is_found_only_where_it_is_clear(monkeypatch, tmp_path):
    row = "7f0000000000-7f0000001000 r-xp 00000000 00:00 1 "
    maps = tmp_path / "maps"
    monkeypatch.setattr(openmp, "_MAPS", maps)
    assert openmp.entry_point() == 0  # no such file: not Linux
    for libraries in ([], ["/a/libgomp.so.1", "/b/libomp.so"], ["/nowhere/libgomp.so.1"]):
        maps.write_bytes("\n".join(row + p for p in libraries).encode() + b"\n/tmp/omp\xff")
        assert openmp.entry_point() == 0


def test_a_fork_whose_parent_never_loaded_the_core():
    code = (
        "import os, signal, torch\n"
        "from cba_fast.kernels import native\n"
        "torch.set_num_threads(2); torch.randn(1000, 1000).exp_()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(20)\n"
        "    native.load().parallel_for(100, 2, lambda a, b: None)\n"
        "    os._exit(0)\n"
        "raise SystemExit(os.waitpid(child, 0)[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
