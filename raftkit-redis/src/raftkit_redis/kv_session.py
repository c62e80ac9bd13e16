"""A handle's hold on the state of one ``redis-kv`` machine: its names in Redis, and the claim on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.kv import KV_MACHINE
from raftkit_redis import kv_scripts
from raftkit_redis.holder import Holder
from raftkit_redis.link import Argument
from raftkit_redis.options import RedisOptions
from raftkit_redis.scripts import IDENTITY, Script
from raftkit_redis.session import FencedSession, Seen

VIEWS_MAX = 8
"""Snapshots, digests and long lists that may be read at once. Their keys have fixed names, so that none is lost."""


class KvKeys:
    """Names of one machine's keys. The braces keep them in one hash slot, and apart from a log of the same prefix."""

    def __init__(self, prefix: str) -> None:
        self._start = f"{{{prefix}}}:kv"
        self.meta = f"{self._start}:meta"
        self.records = f"{self._start}:records"

    def cells(self, generation: int) -> tuple[str, str]:
        """The hash of cells and the zset of keys."""
        return f"{self._start}:data:{generation}", f"{self._start}:keys:{generation}"

    def view(self, slot: int) -> tuple[str, str]:
        return f"{self._start}:view:{slot}:data", f"{self._start}:view:{slot}:keys"

    @property
    def views(self) -> list[str]:
        return [key for slot in range(VIEWS_MAX) for key in self.view(slot)]


class KvSession(FencedSession):
    """Needs no witness: a state that went back is found by its position, and brought forward from the log."""

    peek = kv_scripts.PEEK
    claim = kv_scripts.CLAIM
    role = ":kv"

    def __init__(self, options: RedisOptions, context: AdapterContext) -> None:
        super().__init__(options, context, None)
        self.names = KvKeys(options.prefix)
        self.keys = (self.names.meta, self.names.records, *self.names.cells(0))

    def _look(self, answer: list[Any], me: Holder) -> Seen:
        location, meta = self.options.location, self.names.meta
        match bytes(answer[0]):
            case b"OK":
                _, form, owner, holder, identity_blob, _, _ = answer
                seen = self._seen(form, owner, holder, identity_blob, me)
                found, wanted = seen.identity, self._context.cluster
                if found is not None and (found.cluster, found.machine) != (wanted, KV_MACHINE):
                    raise IdentityError(
                        f"{location} holds the machine {found.machine} of cluster {found.cluster}; "
                        f"this is {KV_MACHINE} of cluster {wanted}",
                        hint="give each cluster a prefix of its own: ?prefix=NAME",
                    )
                return seen
            case b"NONE":
                return Seen()
            case b"ORPHAN":
                raise StorageCorrupt(
                    f"{location} has {answer[1].decode()}, but {meta} beside it is gone",
                    subject="state machine",
                    verb="open",
                    hint=f"nothing was changed; restore it from a backup, or delete {answer[1].decode()} by hand: the "
                    "node rebuilds its state from snapshot and log where these are whole",
                )
            case _:
                raise StorageError(
                    f"{location} is used by something else: {meta} is a {answer[1].decode()}, and it is not ours",
                    subject="state machine",
                    verb="open",
                    hint="choose another prefix: ?prefix=NAME in the state machine's URL",
                )

    async def change_identity(self, blob: bytes) -> None:
        """Raises: StorageError and its kinds."""
        await self.commit(IDENTITY, [blob], subject="identity")

    async def change(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> None:
        """:meth:`commit` on other keys than the claim's. Raises: StorageError and its kinds."""
        claimed = self.keys
        self.keys = (self.names.meta, *keys)
        try:
            await self.commit(script, arguments, subject="state machine")
        finally:
            self.keys = claimed
