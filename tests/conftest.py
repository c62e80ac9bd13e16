"""How tests run: ``async def`` tests get a fresh event loop each, and may leave nothing behind in it.

A test marked ``virtual_time`` runs on a loop whose time jumps when everything waits; every other one on a real loop.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from typing import Any

import pytest

GRACE_TURNS = 20
"""Loop turns a cancelled task may take to end before it counts as leaked."""


@pytest.fixture(autouse=True)
def _no_foreign_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell (plugins, endpoints, contexts) must not reach a test."""
    for name in [name for name in os.environ if name.startswith("RAFTKIT_")]:
        monkeypatch.delenv(name)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    virtual = pyfuncitem.get_closest_marker("virtual_time") is not None
    function = pyfuncitem.obj
    hypothesis = getattr(function, "hypothesis", None)
    if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
        hypothesis.inner_test = _in_a_loop(hypothesis.inner_test, virtual)  # one loop per example
        return None
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _in_a_loop(function, virtual)(**arguments)
    return True


def _in_a_loop(test: Callable[..., Awaitable[Any]], virtual: bool) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        unhandled: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=_loop_factory(virtual)) as runner:
            runner.get_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
            leaked = runner.run(_run_and_find_leaks(test(*args, **kwargs)))
            del leaked[50:]
            gc.collect(1)  # a failed task tells the loop when it is collected
            problems = [f"leaked task: {text}" for text in leaked]
            problems += [f"unhandled in the loop: {_describe(context)}" for context in unhandled]
        if problems:
            pytest.fail("\n".join(problems), pytrace=False)

    return run


def _loop_factory(virtual: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    if not virtual:
        return asyncio.new_event_loop
    from raftkit_core.testing.virtual_time import VirtualTimeLoop

    return VirtualTimeLoop


async def _run_and_find_leaks(test: Awaitable[Any]) -> list[str]:
    await test
    for _ in range(GRACE_TURNS):
        if not any(_others()):
            return []
        await asyncio.sleep(0)
    return [repr(task) for task in _others()]


def _others() -> Iterator[asyncio.Task[Any]]:
    return (task for task in asyncio.all_tasks() if task is not asyncio.current_task())


def _describe(context: dict[str, Any]) -> str:
    details = {key: value for key, value in context.items() if key != "message"}
    return f"{context.get('message')} {details}"
