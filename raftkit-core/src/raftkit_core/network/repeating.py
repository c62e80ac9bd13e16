"""What may be said of a write that was sent more than once under one serial.

An answer that comes from applying the entry settles it: a result, a refusal of the machine, or the outcome remembered
of an earlier attempt. A refusal that was given before anything entered a log speaks of *its* attempt only: if an
earlier one got no answer, that one may have been applied, or may still be.
"""

from __future__ import annotations

from raftkit_core.errors import OutcomeUnknown, RaftError, ResultForgotten


class Attempts:
    """One write under a session, over all its attempts."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lost: RaftError | None = None

    @property
    def is_uncertain(self) -> bool:
        """Whether an attempt went without an answer."""
        return self._lost is not None

    def failed(self, error: RaftError) -> RaftError | None:
        """An attempt ended with ``error``. None: send it again; else what the caller is told."""
        if error.outcome == "applied" or isinstance(error, ResultForgotten):
            return error
        if error.outcome == "unknown":
            self._lost = error
            return None
        return None if error.retryable else self.given_up(error)

    def given_up(self, error: RaftError) -> RaftError:
        """Nothing more is sent; ``error`` is the last one. It is definite only if every attempt was."""
        if self._lost is None:
            return error
        why = self._lost.message if error is self._lost else f"{self._lost.message}; then {error.message}"
        unknown = OutcomeUnknown(
            f"{self._what} may or may not have been applied: {why}", hint="read the state before you write it again"
        )
        unknown.__cause__ = error
        return unknown
