"""Commands and results of ``kv/1`` as bytes, with the checks that keep nonsense out of the log."""

from __future__ import annotations

from typing import Any

import msgspec

from raftkit_core.errors import BadCommand
from raftkit_core.state_machine.interface import MsgspecCodec
from raftkit_core.types.kv import MAX_KEY_BYTES, CompareAndSet, Delete, KvCommand, Put, WriteResult

_CERTAINLY_SHORT = MAX_KEY_BYTES // 4
"""So many characters are never too many bytes. A plain put with such a key is seen at once to be in order."""


class KvCodec(MsgspecCodec):
    """Shared by every implementation of ``kv/1``. Refusals are no results: they travel as errors.

    The types of a command's fields have decoding check everything but the bytes of a long key.
    """

    def __init__(self) -> None:
        super().__init__(KvCommand, WriteResult)
        self._encode = self._encoder.encode

    def encode_command(self, command: Any) -> bytes:
        return self.encode_checked(command)[0]

    def encode_checked(self, command: Any) -> tuple[bytes, KvCommand]:
        """The body and what it decodes to. Raises: BadCommand."""
        if type(command) is Put and type(command.value) is bytes and command.if_revision is None:
            key = command.key
            if type(key) is str and key:
                try:
                    encode = self._encode
                    body = encode(command)
                except ValueError as error:  # a key that is no text
                    raise BadCommand(f"the command cannot be encoded: {error}") from error
                if len(body) <= MAX_KEY_BYTES or len(key) <= _CERTAINLY_SHORT:
                    return body, command  # either way the key is not too long, and decoding gives its equal
        try:
            body, decoded = self._encode_and_decode(command)
        except BadCommand:
            if isinstance(command, Put | Delete | CompareAndSet) and isinstance(command.key, str):
                check_command(command)  # says it better
            raise
        check_command(decoded)
        return body, decoded

    def decode_command(self, body: bytes) -> Any:
        try:
            command = self._command.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadCommand(f"the command cannot be decoded: {error}") from error
        if len(command.key) > _CERTAINLY_SHORT:
            check_command(command)
        return command

    def decode_commands(self, bodies: list[bytes]) -> list[Any]:
        """As ``decode_command`` for each. Raises: BadCommand."""
        try:
            commands = list(map(self._command.decode, bodies))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadCommand(f"a command cannot be decoded: {error}") from error
        if max(map(len, bodies), default=0) > _CERTAINLY_SHORT:
            for command in commands:
                if len(command.key) > _CERTAINLY_SHORT:
                    check_command(command)
        return commands


def check_command(command: KvCommand) -> None:
    """Raises: BadCommand for an empty or too long key, or a revision no entry can have."""
    try:
        size = len(command.key.encode())
    except UnicodeEncodeError as error:
        raise BadCommand(f"the key is no text: {error}") from error
    if size == 0:
        raise BadCommand("the key is empty", hint="give a key of at least one character")
    if size > MAX_KEY_BYTES:
        raise BadCommand(f"the key has {size} bytes, at most {MAX_KEY_BYTES} are allowed", hint="use a shorter key")
    if not isinstance(command, CompareAndSet) and command.if_revision is not None and command.if_revision < 0:
        raise BadCommand(
            f"if_revision is {command.if_revision}", hint="give the key's revision, or 0 if it must not exist"
        )
