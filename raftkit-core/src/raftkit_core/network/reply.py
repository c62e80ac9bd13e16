"""The answer to one request, told at once: between two parts of a node a future would cost a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PENDING, _ANSWERED, _FAILED, _CANCELLED = range(4)


class Reply(Generic[T]):
    """Like a future with one listener, which is called when the answer is given, not a turn of the loop later.

    The listener must not raise: what it raises goes to the loop's exception handler. May be awaited once instead. Who
    makes one may put what it keeps about the call into a subclass: one object per call.
    """

    # As defaults of the class they cost nothing until they change; every write makes four of these.
    answered: bool = False
    """Whether ``outcome`` is the answer."""
    failed: bool = False
    """Whether ``outcome`` is an error."""
    outcome: Any = None
    """What it was answered or failed with. For listeners: who does not know that it is done asks for ``result()``."""
    seconds: float = 0.0
    """How long the call took, where whoever made the reply knows."""
    _state: int = _PENDING
    _listener: Callable[[Reply[T], Any], None] | None = None
    _argument: Any = None

    def done(self) -> bool:
        """Whether it is answered, failed or cancelled."""
        return self._state != _PENDING

    def cancelled(self) -> bool:
        return self._state == _CANCELLED

    def set_result(self, value: T) -> None:
        """Answer it; an answer to one that is done is dropped."""
        if self._state:
            return
        self._state = _ANSWERED
        self.answered = True
        self.outcome = value
        listener = self._listener
        if listener is not None:
            self._listener = None
            try:
                listener(self, self._argument)
            except Exception as error:
                _listener_failed(error)

    def set_exception(self, error: BaseException) -> None:
        """Fail it; nobody has to ask for the error."""
        if self._state:
            return
        self._state = _FAILED
        self.failed = True
        self.outcome = error
        listener = self._listener
        if listener is not None:
            self._listener = None
            try:
                listener(self, self._argument)
            except Exception as problem:
                _listener_failed(problem)

    def cancel(self) -> None:
        """Nobody waits for it any more: the listener is not called."""
        if not self._state:
            self._state = _CANCELLED
            self._listener = None

    def result(self) -> T:
        """The answer. Raises: what it failed with; CancelledError; InvalidStateError before the end."""
        if self._state == _ANSWERED:
            value: T = self.outcome
            return value
        if self._state == _FAILED:
            raise self.outcome
        if self._state == _CANCELLED:
            raise asyncio.CancelledError
        raise asyncio.InvalidStateError("the reply is not there yet")

    def exception(self) -> BaseException | None:
        """What it failed with, or None. Raises: CancelledError; InvalidStateError before the end."""
        if self._state == _FAILED:
            error: BaseException = self.outcome
            return error
        if self._state != _ANSWERED:
            self.result()
        return None

    def then(self, listener: Callable[[Reply[T], Any], None], argument: Any = None) -> None:
        """Call ``listener(self, argument)`` when it is done: at once if it is."""
        assert self._listener is None, "a reply has one listener"
        if not self._state:
            self._listener = listener
            self._argument = argument
            return
        try:
            listener(self, argument)
        except Exception as error:
            _listener_failed(error)

    def __await__(self) -> Generator[Any, None, T]:
        if self._state == _PENDING:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.then(lambda _, waiting: None if waiting.done() else waiting.set_result(None), future)
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result()


def failed_reply(error: BaseException) -> Reply[Any]:
    """One that has failed already."""
    reply: Reply[Any] = Reply()
    reply.set_exception(error)
    return reply


def _listener_failed(error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": "the listener of a reply failed", "exception": error})
