"""Commands and results of ``kv/1`` as bytes, with the checks that keep nonsense out of the log."""

from __future__ import annotations

from typing import Any

from raftkit_core.errors import BadCommand
from raftkit_core.state_machine.interface import MsgspecCodec
from raftkit_core.types.kv import MAX_KEY_BYTES, CompareAndSet, KvCommand, WriteResult


class KvCodec(MsgspecCodec):
    """Shared by every implementation of ``kv/1``. Refusals are no results: they travel as errors."""

    def __init__(self) -> None:
        super().__init__(KvCommand, WriteResult)

    def encode_command(self, command: Any) -> bytes:
        body = super().encode_command(command)
        check_command(self._command.decode(body))
        return body

    def decode_command(self, body: bytes) -> Any:
        command = super().decode_command(body)
        check_command(command)
        return command


def check_command(command: KvCommand) -> None:
    """Raises: BadCommand for an empty or too long key, or a revision no entry can have."""
    size = len(command.key.encode())
    if size == 0:
        raise BadCommand("the key is empty", hint="give a key of at least one character")
    if size > MAX_KEY_BYTES:
        raise BadCommand(f"the key has {size} bytes, at most {MAX_KEY_BYTES} are allowed", hint="use a shorter key")
    if not isinstance(command, CompareAndSet) and command.if_revision is not None and command.if_revision < 0:
        raise BadCommand(
            f"if_revision is {command.if_revision}", hint="give the key's revision, or 0 if it must not exist"
        )
