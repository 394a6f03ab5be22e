"""The preprocessing in two halves equals that in one; images on their way to a device."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_factory import image_folder, write_file
from PIL import Image

from cba_fast.data import ImageDataset, open_image_set, study_transform
from cba_fast.data.reading import Report, normalize_bytes, read_batches, resize_to_bytes, to_device
from cba_fast.wsol.device_maps import HostCopy

FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", [(50, 40), (64, 64), (500, 333)])
def test_the_two_halves_are_the_studys_preprocessing(size, memory_format):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    small = resize_to_bytes(64)(image)
    assert small.dtype == torch.uint8
    assert small.is_contiguous()
    images = normalize_bytes(small[None].to(memory_format=memory_format))
    assert images.is_contiguous(memory_format=memory_format)
    assert torch.equal(images[0], study_transform(64)(image))


def test_every_byte():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    image = Image.fromarray(x[0].permute(1, 2, 0).numpy().copy())
    assert torch.equal(normalize_bytes(x)[0], study_transform(16)(image))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("workers", "threads"), [(0, False), (1, False), (2, True)])
def test_read_batches_finishes_images_where_they_went(tmp_path, workers, threads, memory_format):
    image_folder(tmp_path, ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg", "b/5.jpg"])
    write_file(tmp_path / "a" / "2.jpg", b"not an image")
    records = open_image_set(tmp_path).records
    batches = [[0, 1, 2], [3, 4]]
    options = {"num_workers": workers, "threads": threads, "memory_format": memory_format}
    whole = read_batches(ImageDataset(records, 32), batches, Report(), **options)
    report = Report()
    halves = read_batches(
        ImageDataset(records, 32, resize_to_bytes(32)),
        batches,
        report,
        finish=normalize_bytes,
        **options,
    )
    for want, got in zip(whole, halves, strict=True):
        assert got.indices == want.indices
        assert torch.equal(got.images, want.images)
        assert got.images.is_contiguous(memory_format=memory_format)
    assert [index for index, _ in report.failed] == [1]


def test_tensors_of_the_host_arrive_as_they_are():
    tensors = torch.arange(6).reshape(2, 3), torch.ones(4, dtype=torch.uint8)
    assert to_device(tensors[0], "cpu") is tensors[0]
    got = HostCopy(*tensors).wait()
    assert [a.dtype for a in got] == [np.int64, np.uint8]
    np.testing.assert_array_equal(got[0], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.gpu
def test_there_and_back_without_waiting():
    want = torch.randint(0, 256, (4, 3, 384, 384), dtype=torch.uint8)
    turned = want.to(memory_format=torch.channels_last)
    to_device(want, "cuda")  # the first pinned pages are allocated
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(50_000_000)
        there = to_device(want, "cuda"), to_device(turned, "cuda")
        copy = HostCopy(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for got in copy.wait():
        np.testing.assert_array_equal(got, want.numpy())


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_gpu_normalizes_to_the_same_bits(memory_format):
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    x = x.contiguous(memory_format=memory_format)
    got = normalize_bytes(x.cuda())
    assert got.is_contiguous(memory_format=memory_format)
    assert torch.equal(got.cpu(), normalize_bytes(x))


KILLED = """
import os, signal, sys, time
from cba_fast.data import ImageDataset, open_image_set
from cba_fast.data.reading import Report, read_batches, resize_to_bytes
records = open_image_set(sys.argv[1]).records * 4
dataset = ImageDataset(records, 256, resize_to_bytes(256))
batches = [[i] for i in range(len(records))]
reading = read_batches(dataset, batches, Report(), num_workers=1)
next(reading)
print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
time.sleep(0.5)  # the worker has the next batches ready, which fill its pipe
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc tells the workers")
def test_workers_with_batches_to_hand_over_end_with_a_killed_run(tmp_path):
    image_folder(tmp_path)
    line = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    workers = done.stdout.split()
    assert workers
    deadline = time.monotonic() + 15
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
