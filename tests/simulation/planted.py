"""A pytest plugin that plants a bug for a whole run: ``RAFTKIT_MUTANT=ID pytest -p planted …``."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from raftkit_core.testing.simulation.mutants import applied

_stack = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    _stack.enter_context(applied(os.environ["RAFTKIT_MUTANT"]))


def pytest_unconfigure(config: pytest.Config) -> None:
    _stack.close()
