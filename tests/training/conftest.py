"""Fixtures of the tests of training: a small data set, and settings of a run over it."""

import pytest
from training_runs import small_config, training_data


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_root, tmp_path):
    return small_config(data_root, tmp_path / "weights")
