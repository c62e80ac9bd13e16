"""The pytest plugin ``raftkit`` (entry point ``pytest11``): runs the kits' ``async def`` cases, quotes their clauses,
and gives tests a simulated cluster.

Loaded by every pytest run of an environment with raftkit-core, so it imports nothing until a kit or the fixture is
found. It runs ``async def`` tests of the kits, and those that use ``raftkit_cluster``; those of a whole project with
``raftkit_async = true`` in its pytest settings.
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
    config.addinivalue_line(
        "markers", "raftkit_cluster(nodes=3, seed=0, **settings): how the fixture raftkit_cluster makes its Simulation"
    )
    config.addinivalue_line("markers", "process: starts processes of its own")
    config.addinivalue_line("markers", "timeout(seconds): a limit for pytest-timeout; means nothing without it")


@pytest.fixture
def raftkit_cluster(request: pytest.FixtureRequest) -> Any:
    """A :class:`raftkit_core.testing.Simulation` for an ``async def`` test: whole nodes in virtual time, three of them
    unless the marker ``raftkit_cluster(nodes=5, seed=7, machine=…)`` says otherwise. It starts when it is first
    awaited; when the test is over its rules are checked (``sim.check()``) and everything is taken down.

    A parameter of the fixture (``indirect=True``) is the seed. Heartbeats are every 250 ms, which is quick to simulate;
    pass ``config=`` for others.
    """
    from raftkit_core.config import Config
    from raftkit_core.testing.simulation.simulation import Simulation

    marker = request.node.get_closest_marker("raftkit_cluster")
    settings: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    settings.setdefault("config", Config(heartbeat_interval_ms=250))
    if hasattr(request, "param"):
        settings["seed"] = request.param
    return Simulation(**settings)


CLUSTER_FIXTURE = "raftkit_cluster"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    is_ours = (
        getattr(pyfuncitem.cls, "raftkit_kit", False)
        or CLUSTER_FIXTURE in pyfuncitem.funcargs
        or pyfuncitem.config.getini("raftkit_async")
    )
    return run_if_async(pyfuncitem) if is_ours else None


def run_if_async(pyfuncitem: pytest.Function, **how: Any) -> bool | None:
    """Run an ``async def`` test, hypothesis or not. None: it is none. ``how``: more for ``async_tests.in_a_loop``."""
    function: Any = pyfuncitem.obj
    hypothesis = getattr(function, "hypothesis", None)
    if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
        hypothesis.inner_test = _in_a_loop(pyfuncitem, hypothesis.inner_test, **how)  # one loop per example
        return None
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    cluster: Any = pyfuncitem.funcargs.get(CLUSTER_FIXTURE)
    if cluster is not None:
        function = cluster.guarding(function)
    _in_a_loop(pyfuncitem, function, **how)(**arguments)
    return True


def _in_a_loop(pyfuncitem: pytest.Function, function: Any, **how: Any) -> Any:
    from raftkit_core.testing.async_tests import in_a_loop

    is_virtual = pyfuncitem.get_closest_marker("virtual_time") is not None or CLUSTER_FIXTURE in pyfuncitem.funcargs
    return in_a_loop(function, virtual=is_virtual, **how)


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
