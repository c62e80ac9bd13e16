"""Time jumps when everything waits, and what cannot exist in virtual time is refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from raftkit_core.testing.virtual_time import VirtualClock, VirtualDeadlock, VirtualTimeLoop, run_virtual


def test_a_day_of_sleep_takes_no_time() -> None:
    async def sleep_a_day() -> float:
        clock = VirtualClock()
        before = clock.monotonic()
        await asyncio.sleep(86_400 * 3)
        return clock.monotonic() - before

    started = time.monotonic()
    assert run_virtual(sleep_a_day()) == pytest.approx(86_400 * 3)
    assert time.monotonic() - started < 5


def test_timers_fire_in_the_order_of_their_deadlines() -> None:
    async def main() -> list[tuple[float, str]]:
        seen: list[tuple[float, str]] = []
        loop = asyncio.get_running_loop()

        async def tick(name: str, delay: float) -> None:
            await asyncio.sleep(delay)
            seen.append((round(loop.time(), 6), name))

        await asyncio.gather(tick("late", 2.0), tick("early", 0.5), tick("middle", 1.0))
        return seen

    expected = [(0.5, "early"), (1.0, "middle"), (2.0, "late")]
    assert [run_virtual(main()) for _ in range(3)] == [expected] * 3


def test_a_timeout_fires_at_its_virtual_deadline() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(30)


def test_a_deadlock_names_the_task_and_where_it_waits() -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(stuck(), name="the-stuck-one")

    with pytest.raises(VirtualDeadlock, match=r"(?s)the-stuck-one: .*locks\.py.* in wait"):
        run_virtual(main())


def test_threads_run_on_the_loop_and_carry_results_and_errors() -> None:
    async def main() -> None:
        assert await asyncio.to_thread(lambda: 41 + 1) == 42
        with pytest.raises(KeyError):
            await asyncio.to_thread({}.__getitem__, "absent")

    run_virtual(main())


def test_work_given_to_a_thread_is_done_though_the_caller_was_cancelled() -> None:
    async def main() -> list[int]:
        done: list[int] = []
        task = asyncio.create_task(asyncio.to_thread(done.append, 1))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert task.cancelled()
        return done

    assert run_virtual(main()) == [1]


def test_sockets_are_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="memory network"):
            await asyncio.open_connection("127.0.0.1", 1)
        with pytest.raises(RuntimeError, match="memory network"):
            await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        with pytest.raises(RuntimeError, match="memory network"):
            asyncio.get_running_loop().add_reader(0, print)

    run_virtual(main())


@pytest.mark.virtual_time
async def test_a_marked_test_runs_in_virtual_time() -> None:
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    await asyncio.sleep(3600)
    assert VirtualClock().wall() == pytest.approx(1_700_003_600)
