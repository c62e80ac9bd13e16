"""How tests run: ``async def`` tests get a fresh event loop each, and may leave nothing behind in it.

A test marked ``virtual_time`` runs on a loop whose time jumps when everything waits; every other one on a real loop:
asyncio's, patient with a machine that is slow or busy (``patient_loop.py``), or with ``--loop`` one that is not.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from raftkit_core.clock import SystemClock
from raftkit_core.testing.pytest_plugin import run_if_async

sys.path.insert(0, str(Path(__file__).parent))
import patient_loop

SystemClock.monotonic = staticmethod(patient_loop.monotonic)  # type: ignore[method-assign]

# How long an example takes says something about the machine, not about the code: a fresh clone spends seconds on making
# hypothesis' table of characters, and other processes may hold the processor.
settings.register_profile("raftkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raftkit")


@pytest.fixture(autouse=True)
def _no_foreign_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell (plugins, endpoints, contexts) must not reach a test."""
    for name in [name for name in os.environ if name.startswith("RAFTKIT_")]:
        monkeypatch.delenv(name)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--loop") == "patient":
        patient_loop.install()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loop",
        choices=("patient", "asyncio", "uvloop"),
        default="patient",
        help="what async tests on real time run on",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    loop = pyfuncitem.config.getoption("--loop")
    if loop == "patient":
        return run_if_async(pyfuncitem, new_loop=patient_loop.PatientLoop)
    module = asyncio if loop == "asyncio" else pytest.importorskip("uvloop")
    return run_if_async(pyfuncitem, new_loop=module.new_event_loop)
