"""Fixtures of the tests of experiments."""

from collect_runs import calls  # noqa: F401
