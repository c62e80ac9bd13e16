"""One handle's hold on one store: the claim, the connection that writes, and what is known to be confirmed.

Every change goes through :meth:`FencedSession.commit`: one script under the owner, epoch and sequence number that this
handle holds. When the connection breaks under it, the outcome is unknown, and is *found out*, never guessed and never
tried again: a new connection raises the epoch, after which nothing sent before can still run, and the sequence number
tells whether the change was made. If it was not, the handle is dead, as after any other failed write.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from redis import exceptions as driver

from raftkit_core.errors import IdentityError, StorageCorrupt, StorageError, StorageLocked
from raftkit_core.storage.identity import check_store_identity
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.identity import StoreIdentity
from raftkit_redis import codec, scripts
from raftkit_redis.holder import Holder, decode_holder, encode_holder, is_known_dead, this_process
from raftkit_redis.link import Argument, RedisLink
from raftkit_redis.options import RedisOptions
from raftkit_redis.scripts import Script
from raftkit_redis.server_check import ServerFacts, ask_server, check_server, is_loading
from raftkit_redis.translate import CONNECTION_ERRORS, DRIVER_ERRORS, STORAGE_ERRORS, translate
from raftkit_redis.witness import Record, Witness, lost_writes

logger = logging.getLogger("raftkit.redis")

_RECONNECT_PAUSE_S = 0.05

_live_owners: set[str] = set()
"""Owners of the open handles of this process: a claim of this process by any other was left behind by a failed
close."""


class Seen(NamedTuple):
    """What was there before the claim; the defaults are "nothing"."""

    owner: str = ""
    identity_blob: bytes = b""
    identity: StoreIdentity | None = None
    record: Record | None = None


class FencedSession:
    """Not for concurrent use: the storage holds a lock around it. Raises only errors of ``raftkit_core``.

    As it stands it holds a log; what else can be held overrides the scripts, the keys and :meth:`_look`.
    """

    peek: ClassVar[Script] = scripts.PEEK
    claim: ClassVar[Script] = scripts.CLAIM
    role: ClassVar[str] = ""
    """Added to the name that the connection has in Redis."""

    def __init__(self, options: RedisOptions, context: AdapterContext, witness: Witness | None) -> None:
        self.options = options
        self.keys: tuple[str, ...] = (options.meta_key, options.log_key)
        self.owner = secrets.token_hex(16)
        self.epoch = 0
        self.seq = 0
        self.claimed = False
        self.facts: ServerFacts | None = None
        self.reconnects = 0
        self.given_up = False
        self._context = context
        self._witness = witness
        self._link = RedisLink(options, f"raftkit:{context.node_id}{self.role}")

    # --- Opening and closing ----------------------------------------------------------------------------------------

    async def open(self) -> StoreIdentity | None:
        """Connect, check the server, compare with the witness, claim. Raises: as ``RaftLogStorage.open``."""
        try:
            await self._connect_loaded()
            await self._check_server()
            answer, _ = await self._link.run(self.peek, self.keys, [])
            return await self._claim(answer)
        except DRIVER_ERRORS as error:
            raise translate(error, location=self.options.location, subject="store", verb="open") from error

    async def _connect_loaded(self) -> None:
        deadline = asyncio.get_running_loop().time() + self.options.loading_timeout_s
        while True:
            try:
                await self._link.connect()
                if not await is_loading(self._link):
                    return
            except driver.BusyLoadingError:
                pass
            if self.given_up:
                raise StorageError("opening was given up", verb="open")
            if asyncio.get_running_loop().time() >= deadline:
                raise driver.BusyLoadingError("LOADING")
            await asyncio.sleep(_RECONNECT_PAUSE_S)

    async def _check_server(self) -> None:
        facts = await ask_server(self._link)
        check_server(facts, self.options)
        if self.options.durability == "strict" and not facts.fsync_always and self.facts is None:
            logger.warning(
                "%s has appendfsync %s: every write waits up to a second for WAITAOF; set appendfsync always",
                self.options.location,
                facts.config.get("appendfsync"),
            )
        self.facts = facts

    async def _claim(self, answer: list[Any]) -> StoreIdentity | None:
        me = this_process(self._context)
        seen = self._look(answer, me)
        if self._witness is not None:
            self._witness.check(seen.record, self.options.location)
            self._witness.open()
        _live_owners.add(self.owner)
        self.claimed = True
        answer, waited = await self._link.run(
            self.claim,
            self.keys,
            [self.owner, encode_holder(me), seen.owner, seen.identity_blob, codec.FORMAT],
            then=self._waitaof(),
        )
        if answer[0] != b"OK":
            self.claimed = False
            holder = decode_holder(answer[1]) if answer[0] == b"HELD" else None
            raise self._locked(holder, "just then another opener was faster")
        self._check_waited(waited, "open")
        self.epoch, self.seq = int(answer[1]), int(answer[2])
        return seen.identity

    def _look(self, answer: list[Any], me: Holder) -> Seen:
        """Judge what ``peek`` saw. Raises: IdentityError, StorageCorrupt, StorageLocked, StorageError."""
        if answer[0] == b"OK":
            _, form, owner, holder_blob, seq, identity_blob, vote, purged, next_index, last = answer
            seen = self._seen(form, owner, holder_blob, identity_blob, me)
            last_id = codec.decode_entry(last, int(next_index) - 1).log_id if last else None
            last_blob = codec.encode_log_id("last", last_id) if last_id else b""
            store_id = seen.identity.store_id if seen.identity else ""
            return seen._replace(record=Record(store_id, int(seq), vote, last_blob, purged))
        if answer[0] == b"NONE" and answer[1] == b"none":
            return Seen()
        if answer[0] == b"NONE" or (answer[0] == b"FOREIGN" and answer[2] == b"list"):
            raise StorageCorrupt(
                f"{self.options.location} has a log, but {self.options.meta_key} beside it is damaged or gone",
                verb="open",
                hint="nothing was changed; restore both keys from a backup, or rejoin the node",
            )
        raise StorageError(
            f"{self.options.location} is used by something else: {self.options.meta_key} is a "
            f"{answer[1].decode()}, {self.options.log_key} is a {answer[2].decode()}, and neither is ours",
            verb="open",
            hint="choose another prefix: ?prefix=NAME in the storage URL",
        )

    def _seen(self, form: bytes, owner: bytes, holder: bytes, identity_blob: bytes, me: Holder) -> Seen:
        if int(form) != codec.FORMAT:
            raise IdentityError(
                f"{self.options.location} has format {int(form)}, and this version reads format {codec.FORMAT}",
                hint="use the raftkit-redis version that wrote it, or another prefix",
            )
        identity = codec.decode_identity(identity_blob)
        check_store_identity(identity, self._context, self.options.location)
        self._check_holder(owner.decode(), decode_holder(holder), me)
        return Seen(owner.decode(), identity_blob, identity)

    def _check_holder(self, owner: str, holder: Holder | None, me: Holder) -> None:
        if not owner or (holder is not None and is_known_dead(holder, me)):
            return
        if holder is not None and _is_same_process(holder, me) and owner not in _live_owners:
            return
        if self.options.takeover:
            logger.warning("taking over %s from %s", self.options.location, holder or "an unknown holder")
            return
        raise self._locked(holder, "")

    def _locked(self, holder: Holder | None, note: str) -> StorageLocked:
        who = str(holder) if holder is not None else "an unknown holder"
        return StorageLocked(
            f"{self.options.location} is held by {who}" + (f" ({note})" if note else ""),
            verb="open",
            hint="stop that process; if it is certainly gone for good, open once with takeover=true in the storage URL",
        )

    async def close(self) -> None:
        """Release the claim and disconnect. Idempotent, never raises; a claim that stays is told to the log."""
        try:
            if self.claimed:
                self.claimed = False
                if not await self._link.is_clean():
                    await self._link.connect()
                await self._link.run(scripts.RELEASE, self.keys, [self.owner], then=self._waitaof())
        except STORAGE_ERRORS as error:
            told = translate(error, location=self.options.location, subject="store", verb="close")
            logger.warning("the claim on %s stays: %s", self.options.location, told)
        finally:
            _live_owners.discard(self.owner)
            await self._link.disconnect()

    # --- Changes ----------------------------------------------------------------------------------------------------

    async def commit(self, script: Script, arguments: Sequence[Argument], *, subject: str) -> list[Any]:
        """Make one change durable; the script's answer. Any error means that this handle must not be used again.

        Raises: StorageError and its kinds.
        """
        try:
            if not await self._link.is_clean():
                # Nothing is on its way, so this is not a repetition: the broken connection is replaced before use.
                await self._reestablish(in_flight=False)
            try:
                answer, waited = await self._run(script, arguments)
            except CONNECTION_ERRORS as error:
                if not await self._reestablish(in_flight=True):
                    raise self._not_made(error, subject) from error
                answer, waited = await self._run(script, arguments)  # it was made: this only asks for its answer
            check_status(answer, self.options, subject=subject, verb="write")
            self._check_waited(waited, "write")
        except DRIVER_ERRORS as error:
            raise translate(error, location=self.options.location, subject=subject, verb="write") from error
        self.seq = int(answer[1])
        return answer

    async def _run(self, script: Script, arguments: Sequence[Argument]) -> tuple[list[Any], Any]:
        tail = [self.owner, self.epoch, self.seq, *arguments]
        return await self._link.run(script, self.keys, tail, then=self._waitaof())

    async def _reestablish(self, *, in_flight: bool) -> bool:
        """Connect anew, check everything again, raise the epoch. Whether the change in flight had been made.

        Raises: StorageError and its kinds, the driver's exceptions when the deadline passes.
        """
        before = self.facts
        deadline = asyncio.get_running_loop().time() + self.options.timeout_s
        while True:
            try:
                await self._link.connect()
                if await is_loading(self._link):
                    raise driver.BusyLoadingError("LOADING")
                await self._check_server()
                answer, _ = await self._link.run(scripts.RENEW, self.keys, [self.owner])
                break
            except driver.AuthenticationError:
                raise
            except CONNECTION_ERRORS:
                if asyncio.get_running_loop().time() >= deadline:
                    raise
                await asyncio.sleep(_RECONNECT_PAUSE_S)
        self.reconnects += 1
        if before is not None and self.facts is not None and before.run_id != self.facts.run_id:
            logger.warning("%s was restarted; its content is verified", self.options.location)
        check_status(answer, self.options, subject="store", verb="write")
        self.epoch, found = int(answer[1]), int(answer[2])
        if found == self.seq:
            return False
        if in_flight and found == self.seq + 1:
            return True
        raise lost_writes(f"{self.options.location} is at change {found}, but it had confirmed change {self.seq}")

    def _not_made(self, error: BaseException, subject: str) -> StorageError:
        told = translate(error, location=self.options.location, subject=subject, verb="write")
        return StorageError(
            f"the connection broke during a write, which was not made: {told.message}",
            subject=subject,
            verb="write",
            hint=told.hint,
        )

    # --- WAITAOF ----------------------------------------------------------------------------------------------------

    def _waitaof(self) -> list[Argument] | None:
        """Wait until this connection's writes are on disk, where the server can. Sent right behind each change.

        With ``appendfsync always`` it costs no wait; it notices that somebody changed that setting meanwhile.
        """
        if self.options.durability != "strict" or self.facts is None or not self.facts.can_wait_for_fsync:
            return None
        return ["WAITAOF", 1, 0, max(1, int(self.options.timeout_s * 900))]

    def _check_waited(self, answer: Any, verb: str) -> None:
        """The *count* is what matters: WAITAOF also returns when its time is up."""
        if self._waitaof() is None:
            return
        if isinstance(answer, Exception):
            told = translate(answer, location=self.options.location, subject="store", verb=verb)
            raise StorageError(
                f"cannot tell whether a write is on disk: {told.message}",
                verb=verb,
                hint="was appendonly switched off? CONFIG SET appendonly yes, then start the node again",
            )
        if int(answer[0]) < 1:
            raise StorageError(
                f"{self.options.location} did not bring a write to disk within {self.options.timeout_s:g} s",
                verb=verb,
                hint="look at the disk of the Redis server and its log; set appendfsync always",
            )


def check_status(answer: list[Any], options: RedisOptions, *, subject: str, verb: str) -> None:
    """Raises: what a script's status means, unless it is ``OK``."""
    status = bytes(answer[0]).decode()
    match status:
        case "OK":
            return
        case "GONE":
            raise lost_writes(f"{options.location} is empty: somebody removed what it had confirmed")
        case "FENCED":
            holder = decode_holder(answer[1])
            raise StorageLocked(
                f"{options.location} was taken over by {holder or 'another holder'}; nothing was written",
                subject=subject,
                verb=verb,
                hint="only one process may run this node: stop one of the two",
            )
        case "SEQ":
            raise lost_writes(f"{options.location} is at change {bytes(answer[1]).decode()}, which nobody here made")
        case "DAMAGED":
            raise StorageCorrupt(
                f"the log list at {options.location} does not fit its bounds "
                f"(first, next, length: {', '.join(bytes(a).decode() for a in answer[1:])})",
                subject="log",
                verb=verb,
                hint="nothing was changed; restore the keys from a backup, or rejoin the node",
            )
        case "BROKEN":
            raise StorageCorrupt(
                f"the state at {options.location} is damaged: {bytes(answer[1]).decode()}",
                subject=subject,
                verb=verb,
                hint="nothing was changed; restore the keys from a backup, or rejoin the node",
            )
        case _:
            values = ", ".join(bytes(a).decode("utf-8", "replace") for a in answer[1:])
            raise StorageError(
                {
                    "GAP": f"refused entries that would leave a hole in the log: the next index is {values}",
                    "BEHIND": f"refused a batch that is applied already: the state is at index {values}",
                    "TERM": f"refused a vote of a lower term than the stored one: {values}",
                    "ABSENT": f"refused a read of an index that is not there: the log holds {values} (stop excluded)",
                }.get(status, f"Redis answered {status}: {values}"),
                subject=subject,
                verb=verb,
            )


def _is_same_process(holder: Holder, me: Holder) -> bool:
    return (holder.host, holder.pid, holder.process_start, holder.pid_space, holder.boot_id) == (
        me.host,
        me.pid,
        me.process_start,
        me.pid_space,
        me.boot_id,
    )
