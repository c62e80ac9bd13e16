"""The answer to one request, told at once: between two parts of a node a future would cost a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PENDING, _ANSWERED, _FAILED, _CANCELLED = range(4)


class Reply(Generic[T]):
    """Like a future with one listener, which is called when the answer is given, not a turn of the loop later.

    The listener must not raise: what it raises goes to the loop's exception handler. May be awaited once instead.
    """

    __slots__ = ("_listener", "_state", "_value")

    def __init__(self) -> None:
        self._state = _PENDING
        self._value: Any = None
        self._listener: Callable[[Reply[T]], None] | None = None

    def done(self) -> bool:
        """Whether it is answered, failed or cancelled."""
        return self._state != _PENDING

    @property
    def failed(self) -> bool:
        return self._state == _FAILED

    def cancelled(self) -> bool:
        return self._state == _CANCELLED

    def set_result(self, value: T) -> None:
        """Answer it; an answer to one that is done is dropped."""
        if self._state == _PENDING:
            self._state = _ANSWERED
            self._value = value
            if self._listener is not None:
                self._tell()

    def set_exception(self, error: BaseException) -> None:
        """Fail it; nobody has to ask for the error."""
        if self._state == _PENDING:
            self._state = _FAILED
            self._value = error
            if self._listener is not None:
                self._tell()

    def cancel(self) -> None:
        """Nobody waits for it any more: the listener is not called."""
        if self._state == _PENDING:
            self._state = _CANCELLED
            self._listener = None

    def result(self) -> T:
        """The answer. Raises: what it failed with; CancelledError; InvalidStateError before the end."""
        if self._state == _ANSWERED:
            value: T = self._value
            return value
        if self._state == _FAILED:
            raise self._value
        if self._state == _CANCELLED:
            raise asyncio.CancelledError
        raise asyncio.InvalidStateError("the reply is not there yet")

    def exception(self) -> BaseException | None:
        """What it failed with, or None. Raises: CancelledError; InvalidStateError before the end."""
        if self._state == _FAILED:
            error: BaseException = self._value
            return error
        if self._state != _ANSWERED:
            self.result()
        return None

    def then(self, listener: Callable[[Reply[T]], None]) -> None:
        """Call ``listener(self)`` when it is done: at once if it is."""
        assert self._listener is None, "a reply has one listener"
        self._listener = listener
        if self._state != _PENDING:
            self._tell()

    def _tell(self) -> None:
        listener, self._listener = self._listener, None
        assert listener is not None, "told to somebody"
        try:
            listener(self)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "the listener of a reply failed", "exception": error}
            )

    def __await__(self) -> Generator[Any, None, T]:
        if self._state == _PENDING:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.then(lambda _: None if future.done() else future.set_result(None))
            try:
                yield from future
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result()
