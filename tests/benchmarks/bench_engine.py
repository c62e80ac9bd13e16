"""The engine alone: three of them, a message from one is a call of the other, every write is durable at once. Peers
learn of a commit with the next append, as they mostly do.

    python tests/benchmarks/bench_engine.py                       the engine of this Python
    python tests/benchmarks/bench_engine.py --and PYTHON          and that of another one, in turns

Prints microseconds inside the three engines per committed entry, for batches of 1, 64 and 256. ``--and`` is for the
same version as native code (docs/accelerators.md): the ratio is what that gives.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import msgspec

from raftkit_core.engine import COMPILED
from raftkit_core.engine.commands import (
    AppendInputEntries,
    Command,
    Commit,
    Replicate,
    Respond,
    SendHeartbeat,
)
from raftkit_core.testing.builders import elect, engine_with, flush, log_id, membership
from raftkit_core.types.entry import Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.messages import AppendEntriesRequest, HeartbeatRequest

BATCHES = (1, 64, 256)
PAYLOAD = b"x" * 100
ROUNDS = 5
IDS = ("n1", "n2", "n3")


class Ring:
    """Three engines. The first leads. ``spent`` is the time inside the engines, in nanoseconds, of ``calls``."""

    def __init__(self) -> None:
        members = membership("n1 n2 n3")
        zero = log_id(0, "", 0)
        self.engines = {id: engine_with(id, members, log=[zero], committed=zero, now=0.0) for id in IDS}
        self.logs: dict[str, list[Entry]] = {id: [] for id in IDS}
        self.leader = self.engines["n1"]
        self.now = 10.0
        self.spent = 0
        self.calls = 0
        self.carry_out("n1", elect(self.leader, self.now))
        self.carry_out("n1", flush(self.leader, self.now))
        assert self.leader.state.committed == self.leader.noop_log_id

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        begin = perf_counter_ns()
        result = call(*arguments)
        self.spent += perf_counter_ns() - begin
        self.calls += 1
        return result

    def write(self, payloads: list[bytes]) -> None:
        """One batch, from the proposal to the last apply of all three."""
        leader = self.leader
        first = self._timed(leader.handle_client_write, payloads, self.now)
        assert type(first) is LogId, first
        self.carry_out("n1", self._timed(leader.take_commands))
        self._timed(leader.on_log_flushed, leader.state.io.last_io, self.now)
        self.carry_out("n1", self._timed(leader.take_commands))

    def carry_out(self, id: str, commands: Sequence[Command]) -> None:
        for command in commands:
            kind = type(command)
            if kind is AppendInputEntries:
                self.logs[id].extend(command.entries)
            elif kind is Replicate:
                self._replicate(command)
            elif kind is Commit:
                engine = self.engines[id]
                self._timed(engine.on_applied, command.upto, self.now)
                self.carry_out(id, self._timed(engine.take_commands))
            elif kind is SendHeartbeat:
                self._heartbeat(command)

    def _replicate(self, order: Replicate) -> None:
        prev = order.prev_log_id
        start = 0 if prev is None else prev.index  # the log begins at index 1
        entries = self.logs["n1"][start : order.last_index]
        request = AppendEntriesRequest(order.vote, prev, entries, order.leader_commit, 500)
        peer, leader = self.engines[order.target], self.leader
        self._timed(peer.handle_append_entries, request, 1, self.now)
        answer = self._answer(order.target)
        sent = (order.session, order.target, order.epoch, order.seq, order.sent_at)
        self._timed(leader.on_replication_progress, *sent, answer, self.now)
        self.carry_out("n1", self._timed(leader.take_commands))

    def _heartbeat(self, order: SendHeartbeat) -> None:
        for target, matching in order.peers:
            request = HeartbeatRequest(order.vote, matching, order.leader_commit, 500)
            self._timed(self.engines[target].handle_heartbeat, request, 1, self.now)
            answer = self._answer(target)
            sent = (order.session, target, order.seq, order.sent_at)
            self._timed(self.leader.on_heartbeat_response, *sent, answer, self.now)

    def _answer(self, id: str) -> Any:
        """What the peer says, once everything it wrote is durable."""
        peer = self.engines[id]
        commands = self._timed(peer.take_commands)
        self._timed(peer.on_log_flushed, peer.state.io.last_io, self.now)
        commands += self._timed(peer.take_commands)
        self.carry_out(id, commands)
        return next(command.response for command in commands if type(command) is Respond)


def per_entry_us(batch: int, seconds: float) -> float:
    ring = Ring()
    payloads = [PAYLOAD] * batch
    ring.spent = ring.calls = turns = 0
    begin = perf_counter_ns()
    while perf_counter_ns() - begin < seconds * 1e9:
        for _ in range(20):
            ring.write(payloads)
        ring.now += 0.001
        turns += 20
    spent = ring.spent - ring.calls * _clock_ns(ring)
    assert all(len(log) == turns * batch + 1 for log in ring.logs.values())
    assert ring.leader.state.committed == ring.leader.state.log.last
    return spent / (turns * batch) / 1000


def _clock_ns(ring: Ring) -> float:
    """What taking the time of a call that does nothing seems to take."""
    ring.spent = 0
    for _ in range(10_000):
        ring._timed(_nothing)
    return ring.spent / 10_000


def _nothing() -> None:
    pass


class Figures(msgspec.Struct):
    compiled: bool
    us: dict[int, float]


def measure(seconds: float) -> Figures:
    return Figures(COMPILED, {batch: per_entry_us(batch, seconds) for batch in BATCHES})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--and", dest="other", metavar="PYTHON", help="another Python with raftkit-core, in turns")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one run")
    parser.add_argument("--once", action="store_true", help="one round, as JSON")
    arguments = parser.parse_args()
    if arguments.once:
        sys.stdout.buffer.write(msgspec.json.encode(measure(arguments.seconds)))
        return
    pythons = [sys.executable, *([] if arguments.other is None else [arguments.other])]
    rounds = [[_run(python, arguments.seconds) for python in pythons] for _ in range(ROUNDS)]
    print(f"{'batch':>6}" + "".join(f"{'native' if one.compiled else 'pure Python':>22}" for one in rounds[0]))
    for batch in BATCHES:
        medians = [statistics.median(turn[place].us[batch] for turn in rounds) for place in range(len(pythons))]
        ratio = f"   {medians[0] / medians[1]:.2f} x" if len(medians) > 1 else ""
        print(f"{batch:>6}" + "".join(f"{median:>19.2f} us" for median in medians) + ratio)


def _run(python: str, seconds: float) -> Figures:
    command = [python, __file__, "--once", "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True)
    return msgspec.json.decode(done.stdout, type=Figures)


if __name__ == "__main__":
    main()
