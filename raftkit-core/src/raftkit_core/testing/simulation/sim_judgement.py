"""What can be judged of a simulation at one moment: rules, states, and the histories of its clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zlib import crc32

import msgspec

from raftkit_core.errors import RaftError
from raftkit_core.state_machine.kv_codec import KvCodec
from raftkit_core.testing.linearizability import DurableWrite, Finding, Report, judge
from raftkit_core.testing.linearizability.history import text_of
from raftkit_core.testing.simulation.invariants import InvariantBroken
from raftkit_core.types.entry import decode_envelope
from raftkit_core.types.kv import KV_MACHINE, Delete
from raftkit_core.types.log_id import index_of

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.simulation import Simulation

SEARCH_BUDGET = 400_000
"""Steps of the linearizability search for one key."""


def check(sim: Simulation) -> None:
    """Everything that can be judged at this moment: rules, states, client histories. An undecided history is no
    pass. Raises: InvariantBroken."""
    check_states(sim)
    report = judged(sim)
    if report.findings:
        raise InvariantBroken(f"{rule_of(report.findings[0])} {report.findings[0]} (seed {sim.seed})")
    if report.undecided:
        keys = ", ".join(report.undecided)
        raise InvariantBroken(f"S21 undecided: the history of {keys} is too long to judge (seed {sim.seed})")


def check_states(sim: Simulation) -> None:
    """The rules so far, and what disks and machines hold at this moment. Raises: InvariantBroken."""
    for node_id in sim.ids:
        sim.oracle.check_pointers(node_id)
    for node_id in sim.running:
        life = sim.lives[node_id]
        applied = sim.raft(node_id)._core.worker.applied
        if applied is not None and life.machine.is_at(index_of(applied)):
            sim.oracle.applied(node_id, applied, life.machine.digest())
            sim.oracle.system_applied(node_id, applied, crc32(sim.raft(node_id)._core.worker.system.encode()))
    sim.require_unbroken()


def judged(sim: Simulation, *, first_only: bool = False) -> Report:
    """What the judges say about the client histories so far. ``first_only``: one thing that is wrong is enough."""
    return judge(sim.history, durable=final_log(sim), budget=SEARCH_BUDGET, first_only=first_only)


def final_log(sim: Simulation) -> list[DurableWrite]:
    """The key-value commands that were committed and carried out, purged ones included: repeats under a session,
    and what comes after its end, stand in the log and have no effect."""
    found = []
    reaches = sim.oracle.sessions.reaches
    for index, entry in sorted(sim.oracle.committed.items()):
        if not reaches.get(index, True):
            continue
        write = durable_write(index, entry.payload)
        if write is not None:
            found.append(write)
    return found


def rule_of(finding: Finding) -> str:
    """The number of the rule that a judge found broken."""
    return "S23" if finding.check in ("durability", "sessions") else "S21"


def durable_write(index: int, payload: bytes) -> DurableWrite | None:
    """The key-value command in a committed entry; None if it is none."""
    try:
        envelope = decode_envelope(payload)
        if envelope.machine != KV_MACHINE:
            return None
        command = _CODEC.decode_command(envelope.body)
    except (msgspec.MsgspecError, ValueError, RaftError):
        return None
    kind: Any = command.__struct_config__.tag
    more = {} if isinstance(command, Delete) else {"value": text_of(command.value)}
    return DurableWrite(
        index=index, kind=kind, key=command.key, session=envelope.session, serial=envelope.serial, **more
    )


_CODEC = KvCodec()
