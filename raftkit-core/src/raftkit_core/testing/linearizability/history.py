"""What clients of a key-value cluster did and saw: recorded while it happens, kept as JSON lines, judged afterwards.

Two words that must not be mixed up: ``None`` means *the key was absent*, ``UNSET`` means *not known*. A checker that
takes one for the other accepts histories that are wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from raftkit_core.errors import PreconditionFailed, RaftError
from raftkit_core.types.kv import KeyValue, WriteResult

FORMAT = "raftkit-history/1"

Kind = Literal["put", "get", "cas", "delete"]

Outcome = Literal["ok", "refused", "failed", "unknown"]
"""``refused``: it took its turn and its condition did not hold. ``failed``: it never happens, now or later.
``unknown``: it may have happened, or happen later, at most once."""


class Header(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="header"):
    """The first line of a file: what is needed to make this history again."""

    format: str = FORMAT
    seed: int | None = None
    commit: str = ""
    config: dict[str, Any] = {}
    note: str = ""
    has_final_log: bool = False
    """Whether the final log follows the operations."""


class Operation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False, tag_field="line", tag="op"):
    """One call of one client. Times are seconds of one clock; ``returned`` means nothing where ``outcome`` is unknown.

    The witness, where the cluster gave it: ``revision`` is the log index of a change, or for a read of the change it
    saw (0: the key was absent); ``previous_revision`` is what a change found.
    """

    client: str
    kind: Kind
    key: str
    called: float
    returned: float
    outcome: Outcome
    value: str | UnsetType = UNSET
    """put, cas: what is written."""
    expected: str | UnsetType | None = UNSET
    """cas: what must be there; None: the key must be absent."""
    if_revision: int | UnsetType = UNSET
    """put, delete: the revision that must be there; 0: the key must be absent."""
    found: str | UnsetType | None = UNSET
    """get: what was read; None: the key was absent."""
    revision: int | UnsetType = UNSET
    previous_revision: int | UnsetType = UNSET
    changed: bool = True
    """False: a delete that found nothing to delete."""
    consistency: str = "linearizable"
    """get: what was asked for. ``lease`` promises the same; ``stale`` promises only that nothing is invented."""
    session: int = 0
    serial: int = 0
    error: str = ""

    def __str__(self) -> str:
        return f"{self.client} {describe(self)} [{self.called:.6f}, {self.returned:.6f}]"


class DurableWrite(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="line", tag="durable"):
    """A key-value command that stands in the final, committed log. It may have been refused when it was applied."""

    index: int
    kind: Kind
    key: str
    value: str | UnsetType = UNSET
    session: int = 0
    serial: int = 0


_Line = Header | Operation | DurableWrite


class Call:
    """An operation under way. End it exactly once; one that is never ended has an unknown outcome."""

    __slots__ = ("_history", "operation")

    def __init__(self, history: History, operation: Operation) -> None:
        self._history = history
        self.operation = operation

    def ok(self, now: float, result: WriteResult | KeyValue | None = None) -> None:
        """It was answered. A get gives what it read (None: absent), a change its :class:`WriteResult` if it has one."""
        facts: dict[str, Any] = {}
        if self.operation.kind == "get":
            assert not isinstance(result, WriteResult), "a get gives a KeyValue or None"
            facts["found"] = None if result is None else text_of(result.value)
            facts["revision"] = 0 if result is None else result.revision
        elif result is not None:
            assert isinstance(result, WriteResult), "a change gives a WriteResult"
            facts["revision"], facts["previous_revision"] = result.revision, result.previous_revision
            facts["changed"] = result.changed
        self._end(now, "ok", facts)

    def refused(self, now: float) -> None:
        """It was answered: the condition did not hold, nothing was changed."""
        self._end(now, "refused", {})

    def failed(self, now: float, error: str = "") -> None:
        """It is certain that it never takes effect."""
        self._end(now, "failed", {"error": error})

    def unknown(self, now: float, error: str = "") -> None:
        """Nobody knows whether it takes effect."""
        self._end(now, "unknown", {"error": error})

    def raised(self, now: float, error: RaftError) -> None:
        """It ended with ``error``, which says what became of it."""
        if isinstance(error, PreconditionFailed):
            self.refused(now)
        elif error.outcome == "not_applied":
            self.failed(now, error.code)
        else:
            self.unknown(now, error.code)

    def _end(self, now: float, outcome: Outcome, facts: dict[str, Any]) -> None:
        operation = msgspec.structs.replace(self.operation, returned=now, outcome=outcome, **facts)
        self._history.ended(self, operation)


class History:
    """Operations of all clients, in the order in which they ended."""

    def __init__(self, operations: Iterable[Operation] = (), *, header: Header | None = None) -> None:
        self.header = Header() if header is None else header
        self.durable: list[DurableWrite] | None = None
        """The final log, where somebody could look at it. None: nobody could, which is not the same as an empty one."""
        self._ended = list(operations)
        self._open: dict[int, Call] = {}

    def __len__(self) -> int:
        return len(self._ended) + len(self._open)

    @property
    def operations(self) -> list[Operation]:
        """All of them; those still under way have an unknown outcome."""
        return [*self._ended, *(call.operation for call in self._open.values())]

    def call(
        self,
        client: str,
        kind: Kind,
        key: str,
        *,
        now: float,
        value: bytes | str | UnsetType = UNSET,
        expected: bytes | str | UnsetType | None = UNSET,
        if_revision: int | UnsetType | None = UNSET,
        consistency: str = "linearizable",
        session: int = 0,
        serial: int = 0,
    ) -> Call:
        """An operation begins: before anything of it is sent."""
        operation = Operation(
            client=client,
            kind=kind,
            key=key,
            called=now,
            returned=now,
            outcome="unknown",
            value=UNSET if value is UNSET else text_of(value),
            expected=expected if expected is UNSET or expected is None else text_of(expected),
            if_revision=UNSET if if_revision is None else if_revision,
            consistency=consistency,
            session=session,
            serial=serial,
        )
        call = Call(self, operation)
        self._open[id(call)] = call
        return call

    def ended(self, call: Call, operation: Operation) -> None:
        assert self._open.pop(id(call), None) is not None, f"an operation ends once: {operation}"
        self._ended.append(operation)

    def save(self, path: Path) -> None:
        """Write one JSON document per line: the header, the operations, the final log."""
        encode = msgspec.json.encode
        with path.open("wb") as file:
            for line in self._lines():
                file.write(encode(line) + b"\n")

    def _lines(self) -> Iterator[_Line]:
        yield msgspec.structs.replace(self.header, has_final_log=self.durable is not None)
        yield from self.operations
        yield from self.durable or ()

    @classmethod
    def load(cls, path: Path) -> History:
        """Raises: ValueError for what is no history, with the line."""
        decoder: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)
        history = cls()
        number = 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = decoder.decode(raw)
                except msgspec.MsgspecError as error:
                    raise ValueError(f"{path} line {number} is not of {FORMAT}: {error}") from error
                if (number == 1) is not isinstance(line, Header):
                    raise ValueError(f"{path} line {number}: the header is the first line, and only that")
                if isinstance(line, Header):
                    if line.format != FORMAT:
                        raise ValueError(f"{path} is {line.format}, this reads {FORMAT}")
                    history.header = line
                    history.durable = [] if line.has_final_log else None
                elif isinstance(line, Operation):
                    history._ended.append(line)
                elif history.durable is not None:
                    history.durable.append(line)
        if number == 0:
            raise ValueError(f"{path} is empty")
        return history


def text_of(value: bytes | str) -> str:
    """Bytes as text that is one to one, and readable where they are ASCII."""
    return value if isinstance(value, str) else value.decode("latin-1")


def describe(operation: Operation) -> str:
    """``put k=v -> ok @17``, for a person."""
    if operation.kind == "get":
        what = f"get {operation.key}"
    elif operation.kind == "cas":
        what = f"cas {operation.key} {_shown(operation.expected)}->{_shown(operation.value)}"
    elif operation.kind == "put":
        what = f"put {operation.key}={_shown(operation.value)}"
    else:
        what = f"delete {operation.key}"
    if operation.if_revision is not UNSET:
        what += f" if @{operation.if_revision}"
    answer: str = operation.outcome
    if operation.kind == "get" and operation.found is not UNSET:
        answer = _shown(operation.found)
    if operation.kind == "delete" and operation.outcome == "ok" and not operation.changed:
        answer = "ok, was absent"
    if operation.revision is not UNSET:
        answer += f" @{operation.revision}"
    if operation.previous_revision is not UNSET:
        answer += f" after @{operation.previous_revision}"
    return f"{what} -> {answer}"


def _shown(value: str | UnsetType | None) -> str:
    if value is UNSET:
        return "?"
    return "absent" if value is None else repr(value)
