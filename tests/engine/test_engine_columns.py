"""Whether entries come as a list or as columns makes no difference to a follower, which gets its leader's log."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from raftkit_core.engine.commands import AppendInputEntries, Command, Commit, DeleteConflictLog, Respond
from raftkit_core.network.wire import decode_append, encode_append
from raftkit_core.testing.builders import engine_with, log_id, membership, membership_entry, vote
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entries, Entry
from raftkit_core.types.entry_log import EntryLog
from raftkit_core.types.messages import AppendEntriesRequest, Success

THREE = membership("n1 n2 n3")
ZERO = log_id(0, "", 0)
FOUR = membership("n1 n2 n3", learners="n4")


def proposals(term: int, leader: str, first: int, random: Random, may_change: bool) -> list[Entry]:
    """What a leader adds: its blank, some together, some by themselves, perhaps a membership."""
    added = [Entry(log_id(term, leader, first), term, BLANK, b"")]
    for _ in range(random.randrange(4)):
        at = log_id(term, leader, first + len(added))
        payloads = [b"%d" % number for number in range(random.choice([1, 1, 2, 5]))]
        added += Entries(at, term + random.randrange(2), NORMAL, payloads)
        if may_change and random.random() < 0.2:
            may_change = False
            added.append(membership_entry(log_id(term, leader, first + len(added)), random.choice([THREE, FOUR])))
    return added


class Follower:
    """An engine that gets its appends in one of the ways there are, and the log that its orders make."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.engine = engine_with("n1", THREE, log=[ZERO])
        self.log: list[Entry] = [membership_entry(ZERO, THREE)]

    def append(self, request: AppendEntriesRequest, request_id: int, now: float) -> list[Command]:
        if self.way == "wire":
            request = decode_append(encode_append(request))
        elif self.way == "log" and request.entries:
            held: Sequence[Entry] = EntryLog(request.entries)[:]
            request = AppendEntriesRequest(
                request.vote, request.prev_log_id, held, request.leader_commit, request.lease_ms
            )
        self.engine.handle_append_entries(request, request_id, now)
        commands = self.engine.take_commands()
        for command in commands:
            match command:
                case AppendInputEntries(entries=entries):
                    assert [entry.index for entry in entries] == list(
                        range(len(self.log), len(self.log) + len(entries))
                    )
                    self.log += entries
                case DeleteConflictLog(since=since):
                    del self.log[since:]
        return commands


@given(st.integers(0, 2**32))
def test_a_follower_does_the_same_with_columns_as_with_lists(seed: int) -> None:
    random = Random(seed)
    followers = [Follower(way) for way in ("list", "wire", "log")]
    leader_log = [membership_entry(ZERO, THREE)]
    term, committed, now = 0, 0, 0.0
    for request_id in range(random.randrange(1, 40)):
        if term == 0 or random.random() < 0.25:
            term += 1
            leader = random.choice(["n2", "n3"])
            del leader_log[random.randrange(committed, len(leader_log)) + 1 :]
            changed = max(entry.index for entry in leader_log if entry.kind == MEMBERSHIP)
            leader_log += proposals(term, leader, len(leader_log), random, changed <= committed)
        start = random.randrange(len(leader_log) + 1)
        stop = random.randrange(start, len(leader_log)) + 1 if start < len(leader_log) else start
        committed = random.choice([committed, random.randrange(committed, len(leader_log))])
        request = AppendEntriesRequest(
            vote(term, leader, committed=True),
            leader_log[start - 1].log_id if start else None,
            leader_log[start:stop],
            leader_log[committed].log_id,
            500,
        )
        now += 0.01
        said = [follower.append(request, request_id, now) for follower in followers]
        assert said[0] == said[1] == said[2]
        one, two, three = followers
        assert one.log == two.log == three.log
        if any(isinstance(order, Respond) and isinstance(order.response, Success) for order in said[0]):
            assert one.log[:stop] == leader_log[:stop]
        if random.random() < 0.6:
            flushed = []
            for follower in followers:
                follower.engine.on_log_flushed(follower.engine.state.io.last_io, now)
                flushed.append(follower.engine.take_commands())
            assert flushed[0] == flushed[1] == flushed[2]
            said[0] += flushed[0]
        for order in said[0]:
            if isinstance(order, Commit):
                assert one.log[: order.upto.index + 1] == leader_log[: order.upto.index + 1]
        states = [follower.engine.state for follower in followers]
        assert states[0].log.runs == states[1].log.runs == states[2].log.runs
        assert states[0].last_log_id == states[1].last_log_id == states[2].last_log_id
        assert states[0].log_bytes == states[1].log_bytes == states[2].log_bytes
        assert states[0].io.unflushed_bytes == states[1].io.unflushed_bytes == states[2].io.unflushed_bytes
        assert states[0].last_time_ms == states[1].last_time_ms == states[2].last_time_ms
        members = [state.membership.effective for state in states]
        assert members[0] == members[1] == members[2]
