"""Shared fixtures; GPU tests skip with one line where there is no NVIDIA GPU."""

import os

# The tests' models are tiny: more OpenMP threads make them slower, on a busy machine many times.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_collection_modifyitems(config, items):
    gpu_items = [i for i in items if i.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
