"""An event loop whose time jumps: when every task waits, the clock moves to the next timer at once.

Nothing real is waited for, so hours of timeouts run in milliseconds and equal programs take equal steps. Sockets,
pipes and subprocesses are refused, and threads do not exist: ``run_in_executor`` runs the function on the loop, one
turn later, as a thread would leave the caller one turn to go on.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context, ContextVar
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

WALL_START = 1_700_000_000.0
"""Wall time, in seconds since the epoch, at virtual time 0."""

OWNER: ContextVar[str | None] = ContextVar("raftkit_owner", default=None)
"""Whose callbacks and timers these are: what :meth:`VirtualTimeLoop.freeze` tells apart."""


TURNS_AT_ONCE_MAX = 200_000
"""Turns of the loop without any time passing: more is a program that waits busily, which here would last for ever."""


class VirtualDeadlock(RuntimeError):
    """Every task waits and no timer is left, or time stands still while tasks run: the message names each task and the
    line where it waits."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """``time()`` starts at ``start`` (seconds) and moves only when nothing else can run."""

    def __init__(self, start: float = 0.0) -> None:
        self._virtual_now = start
        self._turns_at_once = 0
        self.ends_at: float | None = None
        """The latest the program may take; later is a :class:`VirtualDeadlock` that says who waits."""
        self._frozen: dict[str, list[asyncio.Handle]] = {}
        self._virtual_selector = _TimeSelector(self)
        super().__init__(self._virtual_selector)
        self._virtual_selector.is_closed_to_files = True  # the loop's own wake-up pipe is in

    def time(self) -> float:
        return self._virtual_now

    # --- stopping one owner's part of the program --------------------------------------------------------------------

    def freeze(self, owner: str) -> None:
        """Stop everything whose context has :data:`OWNER` ``owner``, as SIGSTOP stops a process: no callback and no
        timer of it runs until :meth:`thaw`. What is in the middle of a step finishes that step."""
        if owner in self._frozen:
            return
        kept = self._frozen[owner] = []
        ready = self._ready  # type: ignore[attr-defined]
        for place, handle in enumerate(ready):
            if _context_of(handle).get(OWNER) == owner:
                kept.append(handle)
                ready[place] = asyncio.Handle(_nothing, (), self)  # the loop has counted what is ready
        timers = self._scheduled  # type: ignore[attr-defined]
        mine = [timer for timer in timers if _context_of(timer).get(OWNER) == owner]
        if mine:
            timers[:] = [timer for timer in timers if _context_of(timer).get(OWNER) != owner]
            heapq.heapify(timers)
            for timer in sorted(mine):
                timer._scheduled = False
                kept.append(timer)

    def thaw(self, owner: str) -> None:
        """Let it go on: overdue timers fire at once, each one time."""
        for handle in self._frozen.pop(owner, ()):
            if handle.cancelled():
                continue
            if isinstance(handle, asyncio.TimerHandle):
                heapq.heappush(self._scheduled, handle)  # type: ignore[attr-defined]
                handle._scheduled = True  # type: ignore[attr-defined]
            else:
                self._ready.append(handle)  # type: ignore[attr-defined]

    def is_frozen(self, owner: str) -> bool:
        return owner in self._frozen

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._check_closed()  # type: ignore[attr-defined]
        handle = asyncio.Handle(callback, args, self, context)
        if self._frozen and (kept := self._frozen.get(_context_of(handle).get(OWNER))) is not None:  # type: ignore[arg-type]
            kept.append(handle)
        else:
            self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if self._frozen and (kept := self._frozen.get(_context_of(timer).get(OWNER))) is not None:  # type: ignore[arg-type]
            kept.append(timer)
            return timer
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def jump(self, timeout: float | None) -> None:
        """Called by the selector when nothing is ready: ``timeout`` seconds until the next timer, None if none is.

        Raises: VirtualDeadlock.
        """
        if timeout is None:
            raise VirtualDeadlock(f"every task waits and no timer is set at {self.time():.6f} s:\n{self._describe()}")
        if timeout > 0:
            self._virtual_now += timeout
            self._turns_at_once = 0
            if self.ends_at is not None and self._virtual_now > self.ends_at:
                ends_at, self.ends_at = self.ends_at, None  # so that what is left can be closed
                raise VirtualDeadlock(f"the program is not over after {ends_at:g} s:\n{self._describe()}")
        else:
            self._turns_at_once += 1
            if self._turns_at_once > TURNS_AT_ONCE_MAX:
                raise VirtualDeadlock(
                    f"the program is busy for ever, time does not move on from {self.time():.6f} s:\n{self._describe()}"
                )

    def _describe(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        return "\n".join(f"  {task.get_name()}: {_where(task)}" for task in tasks)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        self.call_soon(_run_into, future, func, args)
        return future

    async def create_connection(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_files()

    async def create_server(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_files()

    async def getaddrinfo(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_files()


class VirtualClock:
    """The clock of a node on a :class:`VirtualTimeLoop`; ``loop`` None: the running one, looked up at each reading."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, *, wall_start: float = WALL_START) -> None:
        self._loop = loop
        self._wall_start = wall_start

    def monotonic(self) -> float:
        loop = asyncio.get_running_loop() if self._loop is None else self._loop
        return loop.time()

    def wall(self) -> float:
        return self._wall_start + self.monotonic()


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` to its end in virtual time, like ``asyncio.run``.

    Raises: VirtualDeadlock, and whatever ``coroutine`` raises.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


class _TimeSelector(selectors.BaseSelector):
    """Selects nothing, ever; asked to wait, it moves the loop's time."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._keys: dict[Any, selectors.SelectorKey] = {}
        self.is_closed_to_files = False

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.is_closed_to_files:
            _refuse_files()
        key = selectors.SelectorKey(fileobj, fileobj if isinstance(fileobj, int) else fileobj.fileno(), events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.jump(timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


def _context_of(handle: asyncio.Handle) -> Context:
    return handle._context  # type: ignore[attr-defined,no-any-return]


def _nothing() -> None:
    pass


def _refuse_files() -> NoReturn:
    raise RuntimeError("sockets, pipes and subprocesses do not exist in virtual time: use the memory network")


def _run_into(future: asyncio.Future[T], func: Callable[..., T], args: tuple[Any, ...]) -> None:
    """Runs even if the caller was cancelled: a thread would not have noticed either."""
    try:
        result = func(*args)
    except Exception as error:
        if not future.cancelled():
            future.set_exception(error)
    else:
        if not future.cancelled():
            future.set_result(result)


def _where(task: asyncio.Task[Any]) -> str:
    """File, line and function of the innermost coroutine ``task`` waits in."""
    awaitable: Any = task.get_coro()
    frame = None
    while awaitable is not None:
        found = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        frame = found or getattr(awaitable, "ag_frame", None) or frame
        awaitable = (
            getattr(awaitable, "cr_await", None)
            or getattr(awaitable, "gi_yieldfrom", None)
            or getattr(awaitable, "ag_await", None)
        )
    if frame is None:
        return "not started"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
