"""Watches one simulation from outside: what is durable, what leaves a node, what is applied. Never asks an engine.

Every check has the number of the rule it proves (S1 … S30, docs/simulation.md). A check looks only at what one step
changed; what was promised is remembered for the whole run, across crashes (``oracle_records``). The rules stand by what
they look at: ``oracle_disks``, ``oracle_wire``, ``oracle_commits``; what clients are told is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from raftkit_core.errors import RaftError
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.testing.simulation.oracle_disks import DiskRules
from raftkit_core.testing.simulation.oracle_wire import WireRules
from raftkit_core.types.entry import NORMAL, Entry, decode_envelope
from raftkit_core.types.ids import NodeId
from raftkit_core.types.kv import KV_MACHINE, CompareAndSet, Put


class Oracle(DiskRules, WireRules):
    """All rules on one record of the run."""

    def leases(self, holders: Sequence[NodeId]) -> None:
        """S22: ``holders`` would answer reads by lease at this moment."""
        if len(holders) > 1:
            self.breach("S22", holders[0], f"{holders} hold a read lease at one moment")

    def failed_for_certain(self, node: NodeId, key: str, value: bytes) -> None:
        """A client is told that ``value``, which is written once only, never takes effect. S23: no disk holds its
        entry, or another one is committed in its place."""
        for disk in self._disks.values():
            for entry in disk.entries:
                if entry.kind != NORMAL or value not in entry.payload or not _writes(entry, key, value):
                    continue
                known = self.committed.get(entry.index)
                if known is None or known.log_id == entry.log_id:
                    what = "which may still be committed" if known is None else "which is committed"
                    detail = f"says that {key}={value.decode()} failed; {disk.node_id} holds {entry.log_id}, {what}"
                    self.breach("S23", node, detail)
                    return

    def succeeded(self, node: NodeId, key: str, value: bytes, revision: int | None) -> None:
        """A client is told that ``value`` was written. S23: it is committed, at the index it was told."""
        known = None if revision is None else self.committed.get(revision)
        if known is None or not _writes(known, key, value):
            at = None if known is None else known.log_id
            self.breach("S23", node, f"says that {key}={value.decode()} was written at {revision}; committed is {at}")


def _writes(entry: Entry, key: str, value: bytes) -> bool:
    """Whether ``entry`` is a command of the key-value machine that writes ``value`` to ``key``."""
    try:
        envelope = decode_envelope(entry.payload)
        command = _CODEC.decode_command(envelope.body) if envelope.machine == KV_MACHINE else None
    except (msgspec.MsgspecError, ValueError, RaftError):
        return False
    return isinstance(command, Put | CompareAndSet) and command.key == key and bytes(command.value) == value


_CODEC = KvCodec()
