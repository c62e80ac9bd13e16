"""The pytest plugin ``raftkit`` (entry point ``pytest11``): runs the kits' ``async def`` cases, quotes their clauses.

Loaded by every pytest run of an environment with raftkit-core, so it imports nothing until a kit is found. It runs
``async def`` tests of the kits only; those of a whole project with ``raftkit_async = true`` in its pytest settings.
Turned off with ``-p no:raftkit``.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

pytest.register_assert_rewrite("raftkit_core.testing.conformance")  # also where it is installed editable


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("raftkit_async", "run every async def test, not only those of raftkit's kits", "bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_time: runs on an event loop whose time jumps when all is idle")
    config.addinivalue_line("markers", "process: starts processes of its own")
    config.addinivalue_line("markers", "timeout(seconds): a limit for pytest-timeout; means nothing without it")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    is_ours = getattr(pyfuncitem.cls, "raftkit_kit", False) or pyfuncitem.config.getini("raftkit_async")
    return run_if_async(pyfuncitem) if is_ours else None


def run_if_async(pyfuncitem: pytest.Function) -> bool | None:
    """Run an ``async def`` test, hypothesis or not. None: it is none."""
    function: Any = pyfuncitem.obj
    hypothesis = getattr(function, "hypothesis", None)
    if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
        hypothesis.inner_test = _in_a_loop(pyfuncitem, hypothesis.inner_test)  # one loop per example
        return None
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _in_a_loop(pyfuncitem, function)(**arguments)
    return True


def _in_a_loop(pyfuncitem: pytest.Function, function: Any) -> Any:
    from raftkit_core.testing.async_tests import in_a_loop

    return in_a_loop(function, virtual=pyfuncitem.get_closest_marker("virtual_time") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A case that failed quotes the clause it proves."""
    report = yield
    kit = getattr(item, "cls", None)
    if report.failed and getattr(kit, "raftkit_kit", False):
        from raftkit_core.testing.conformance.kit import quote

        clause = quote(kit, getattr(item, "originalname", item.name))
        if clause is not None:
            report.sections.append(("contract", clause))
    return report
