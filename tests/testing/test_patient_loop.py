"""The loop of tests on real time: a busy machine makes no timer due before what should come first."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

import pytest

from patient_loop import TURN_SECONDS_MAX, PatientLoop
from raftkit_core.clock import SystemClock

STALL = 5 * TURN_SECONDS_MAX


def on_patient_loop(program: Callable[[], Awaitable[None]]) -> None:
    with asyncio.Runner(loop_factory=PatientLoop) as runner:
        runner.run(program())
    assert PatientLoop.current is None


def test_a_stall_counts_as_a_little_also_on_the_clock_of_nodes() -> None:
    async def program() -> None:
        loop, clock = asyncio.get_running_loop(), SystemClock()
        began = loop.time()
        time.sleep(STALL)  # noqa: ASYNC251 (that is the stall)
        assert 0 < loop.time() - began <= TURN_SECONDS_MAX
        await asyncio.sleep(0)
        assert loop.time() - began <= 3 * TURN_SECONDS_MAX
        before, told, after = loop.time(), clock.monotonic(), loop.time()
        assert before <= told <= after

    on_patient_loop(program)


def test_what_is_waited_for_counts_whole_and_time_never_falls() -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        began, real = loop.time(), time.monotonic()
        seen = began
        while loop.time() - began < STALL:
            await asyncio.sleep(TURN_SECONDS_MAX / 4)
            assert loop.time() >= seen
            seen = loop.time()
        assert seen - began <= time.monotonic() - real

    on_patient_loop(program)


def test_what_came_in_during_a_stall_comes_before_the_timer_that_waits_for_it() -> None:
    """It takes two turns: the bytes, then whoever waits for the answer to them."""

    async def program() -> None:
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            there.setblocking(False)
            async with asyncio.timeout(STALL):
                there.send(b"question")
                time.sleep(2 * STALL)  # noqa: ASYNC251 (the processor is away, twice as long as the limit)
                await loop.sock_recv(here, 100)
                here.send(b"answer")
                assert await loop.sock_recv(there, 100) == b"answer"

    on_patient_loop(program)


def test_clocks_are_the_machine_s_where_no_such_loop_runs() -> None:
    assert PatientLoop.current is None
    first = SystemClock().monotonic()
    time.sleep(2 * TURN_SECONDS_MAX)  # more than the patient loop would count
    assert SystemClock().monotonic() - first >= 2 * TURN_SECONDS_MAX


def test_what_the_command_line_runs_has_such_a_loop_and_a_thread_beside_it_has_not(
    request: pytest.FixtureRequest,
) -> None:
    if request.config.getoption("--loop") != "patient":
        pytest.skip("--loop asked for another loop than the default")

    async def kind() -> type[asyncio.AbstractEventLoop]:
        return type(asyncio.get_running_loop())

    async def program() -> None:
        assert not issubclass(await asyncio.to_thread(asyncio.run, kind()), PatientLoop)

    assert asyncio.run(kind()) is PatientLoop
    on_patient_loop(program)
