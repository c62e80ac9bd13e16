"""Each rule can say no: the oracle is shown one thing that is wrong, and one like it that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from raftkit_core.errors import StorageError
from raftkit_core.network.wire import Kind
from raftkit_core.testing.builders import membership
from raftkit_core.testing.simulation.oracle import Oracle
from raftkit_core.testing.simulation.sim_disk import SimDisk
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entry, encode_membership
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    Conflict,
    HeartbeatRequest,
    HigherVote,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    Success,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

MEMBERS = membership(["n1", "n2", "n3"])


def log_id(term: int, index: int, node: str = "n1") -> LogId:
    return LogId(LeaderId(term, node), index)


def entry(term: int, index: int, payload: bytes = b"", node: str = "n1", kind: int = BLANK) -> Entry:
    return Entry(log_id(term, index, node), 0, kind, payload)


def vote(term: int, node: str = "n1", *, granted: bool = False) -> Vote:
    return Vote(LeaderId(term, node), granted)


def meta(at: LogId | None) -> SnapshotMeta:
    return SnapshotMeta(at, StoredMembership(log_id(0, 0, ""), MEMBERS), "a")


class World:
    """Three disks with one log of three entries of n1, who leads in term 1, and what was said about it."""

    def __init__(self, *, single_term: bool = False) -> None:
        self.disks: dict[str, SimDisk] = {}
        self.members = dict.fromkeys(("n1", "n2", "n3"), MEMBERS)
        self.oracle = Oracle(
            self.disks,
            Trace(),
            single_term_leader=single_term,
            effective=lambda node: StoredMembership(log_id(0, 0, ""), self.members[node]),
        )
        for node in self.members:
            self.disks[node] = SimDisk(node, observer=self.oracle)
            self.write(node, ("vote", vote(1)))
            first = Entry(LogId(LeaderId(0, ""), 0), 0, MEMBERSHIP, encode_membership(MEMBERS))
            self.write(node, ("entry", first))
        self.grants("n2")
        self.leads("n1", 1)
        for node in self.members:
            self.write(node, ("vote", vote(1, granted=True)))
            self.write(node, *(("entry", entry(1, index, kind=NORMAL)) for index in (1, 2, 3)))
            self.acknowledges(node, 3)
        self.leads("n1", 1, commit=log_id(1, 3))
        assert self.broken == []

    @property
    def broken(self) -> list[str]:
        return [breach.rule for breach in self.oracle.breaches]

    def write(self, node: str, *parts: tuple[str, object]) -> None:
        self.disks[node]._apply(parts)

    def leads(self, node: str, term: int, *, commit: LogId | None = None, matching: LogId | None = None) -> None:
        spoken = vote(term, node, granted=True)
        self.oracle.asks(node, "n3", Kind.APPEND_ENTRIES, AppendEntriesRequest(spoken, None, [], commit, 0))
        if matching is not None:
            self.oracle.asks(node, "n2", Kind.HEARTBEAT, HeartbeatRequest(spoken, matching, commit, 0))

    def grants(self, node: str, term: int = 1, candidate: str = "n1", last: LogId | None = None) -> None:
        request = VoteRequest(vote(term, candidate), last or log_id(0, 0, ""))
        self.oracle.answers(node, candidate, Kind.VOTE, request, VoteResponse("", request.vote, True, None))

    def acknowledges(self, node: str, index: int, term: int = 1) -> None:
        request = AppendEntriesRequest(vote(term, granted=True), None, [], None, 0)
        self.oracle.answers(node, "n1", Kind.APPEND_ENTRIES, request, Success("", log_id(term, index)))

    def elect(self, node: str, term: int, last: LogId | None = None) -> None:
        """A fair election in ``term``."""
        for each in self.members:
            self.write(each, ("vote", vote(term, node)))
        for each in self.members:
            self.grants(each, term, node, last or log_id(1, 3))
        self.leads(node, term)
        for each in self.members:
            self.write(each, ("vote", vote(term, node, granted=True)))


def another_leader_id(world: World) -> None:
    for node in world.members:
        world.write(node, ("vote", vote(2)))
    world.oracle.asks("n2", "n3", Kind.APPEND_ENTRIES, AppendEntriesRequest(vote(2, granted=True), None, [], None, 0))


def no_quorum_of_grants(world: World) -> None:
    world.write("n2", ("vote", vote(2, "n2")))
    world.leads("n2", 2)


def vote_falls(world: World) -> None:
    world.write("n1", ("vote", vote(0)))


def grants_to_a_shorter_log(world: World) -> None:
    world.write("n3", ("vote", vote(2, "n2")))
    world.grants("n3", 2, "n2", log_id(1, 2))


def granted_by_nobody(world: World) -> None:
    world.write("n3", ("vote", vote(5, "n2", granted=True)))


def commits_what_one_disk_holds(world: World) -> None:
    world.write("n1", ("entry", entry(1, 4)))
    world.leads("n1", 1, commit=log_id(1, 4))


def applies_what_one_disk_holds(world: World) -> None:
    """It is the leader, and tells nobody of the commit before it applies."""
    world.write("n1", ("entry", entry(1, 4, kind=NORMAL)))
    world.oracle.applying("n1", 3, [entry(1, 4, kind=NORMAL)], {4: None})


def applies_what_no_leader_committed(world: World) -> None:
    for node in world.members:
        world.write(node, ("entry", entry(1, 4, kind=NORMAL)))
    world.oracle.applying("n2", 3, [entry(1, 4, kind=NORMAL)], {4: None})


def saves_as_committed_what_nobody_told_it(world: World) -> None:
    for node in world.members:
        world.write(node, ("entry", entry(1, 4, kind=NORMAL)))
    world.write("n2", ("committed", log_id(1, 4)))


def goes_by_an_old_membership(world: World) -> None:
    """It says that three voters are in force; its own disk holds an entry that makes them four."""
    joint = membership(["n1", "n2", "n3"], ["n1", "n3", "n4", "n5"])
    for node in ("n1", "n2"):
        world.write(node, ("entry", entry(1, 4, encode_membership(joint), kind=MEMBERSHIP)))
    world.leads("n1", 1, commit=log_id(1, 4))


def is_elected_by_an_old_membership(world: World) -> None:
    joint = membership(["n1", "n2", "n3"], ["n1", "n3", "n4", "n5"])
    world.write("n2", ("entry", entry(1, 4, encode_membership(joint), kind=MEMBERSHIP)))
    world.elect("n2", 2)


def commits_of_an_earlier_leader(world: World) -> None:
    for node in world.members:
        world.write(node, ("entry", entry(1, 4)))
    world.elect("n2", 2)
    world.leads("n2", 2, commit=log_id(1, 4))


def commits_another_entry(world: World) -> None:
    world.oracle.applying("n2", 1, [entry(1, 2, b"other", kind=NORMAL)], {})


def leads_without_what_is_committed(world: World) -> None:
    disk = world.disks["n2"]
    del disk.entries[3:]
    for node in world.members:
        world.write(node, ("vote", vote(2, "n2")))
    for node in ("n1", "n3"):
        world.oracle.grants.setdefault(LeaderId(2, "n2"), {})[node] = None
    world.leads("n2", 2)


def one_id_for_two_entries(world: World) -> None:
    world.write("n1", ("entry", entry(1, 4, b"a")))
    world.write("n2", ("entry", entry(1, 4, b"b")))


def a_hole(world: World) -> None:
    world.write("n1", ("entry", entry(1, 5)))


def an_entry_of_an_earlier_leader(world: World) -> None:
    world.write("n1", ("entry", entry(0, 4)))


def a_leader_truncates(world: World) -> None:
    world.write("n1", ("vote", vote(1, granted=True)), ("entry", entry(1, 4)), ("truncate", 4))


def truncates_what_is_committed(world: World) -> None:
    world.write("n3", ("vote", vote(2, "n2")), ("truncate", 3))


def applies_twice(world: World) -> None:
    world.oracle.applying("n2", 3, [world.disks["n2"].entries[3]], {})


def results_differ(world: World) -> None:
    entries = world.disks["n2"].entries[1:4]
    world.oracle.applying("n2", 0, entries, {1: "a", 2: "b", 3: "c"})
    world.oracle.applying("n3", 0, entries, {1: "a", 2: "b", 3: "d"})


def states_differ(world: World) -> None:
    world.oracle.applied("n1", log_id(1, 3), "aa")
    world.oracle.applied("n2", log_id(1, 3), "bb")


def committed_beyond_the_log(world: World) -> None:
    world.write("n1", ("committed", log_id(1, 9)))


def committed_falls(world: World) -> None:
    world.write("n1", ("committed", log_id(1, 3)), ("committed", log_id(1, 2)))


def grants_before_it_is_durable(world: World) -> None:
    world.grants("n3", 2, "n2", log_id(1, 3))


def acknowledges_before_it_is_durable(world: World) -> None:
    world.acknowledges("n3", 4)


def leads_before_it_is_durable(world: World) -> None:
    for node in ("n2", "n3"):
        world.write(node, ("vote", vote(2, "n2")))
        world.grants(node, 2, "n2", log_id(1, 3))
    world.disks["n2"].vote = vote(1)
    world.leads("n2", 2)


def answers(world: World, answer: Any) -> None:
    request = AppendEntriesRequest(vote(2, "n2", granted=True), None, [], None, 0)
    world.oracle.answers("n3", "n2", Kind.APPEND_ENTRIES, request, answer)


def has_a_conflict_before_it_is_durable(world: World) -> None:
    answers(world, Conflict("", 3, log_id(1, 3)))


def is_busy_before_it_is_durable(world: World) -> None:
    answers(world, Busy(""))


def refuses_before_it_is_durable(world: World) -> None:
    answers(world, HigherVote("", vote(3, "n3")))


def refuses_a_snapshot_before_it_is_durable(world: World) -> None:
    request = InstallSnapshotRequest(vote(2, "n2", granted=True), meta(log_id(1, 3)))
    answer = InstallSnapshotResponse("", vote(3, "n3"))
    world.oracle.answers("n3", "n2", Kind.INSTALL_SNAPSHOT, request, answer)


def applies_what_is_not_durable(world: World) -> None:
    world.oracle.applying("n2", 3, [entry(1, 4, kind=NORMAL)], {4: None})


def writes_overlap(world: World) -> None:
    world.oracle.disk_overlap(world.disks["n1"])


def loses_what_it_acknowledged(world: World) -> None:
    for node in world.members:
        world.write(node, ("entry", entry(1, 4)))
    world.acknowledges("n3", 4)
    world.write("n3", ("truncate", 4))


def two_voters_at_once(world: World) -> None:
    members = membership(["n1", "n2", "n4"])
    world.write("n1", ("entry", entry(1, 4, encode_membership(members), kind=MEMBERSHIP)))


def a_change_while_one_is_open(world: World) -> None:
    joint = membership(["n1", "n2", "n3"], ["n1", "n2"])
    after = membership(["n1", "n2"])
    world.write(
        "n1",
        ("entry", entry(1, 4, encode_membership(joint), kind=MEMBERSHIP)),
        ("entry", entry(1, 5, encode_membership(after), kind=MEMBERSHIP)),
    )


def a_learner_campaigns(world: World) -> None:
    world.members["n3"] = membership(["n1", "n2"], learners=["n3"])
    disk = world.disks["n3"]
    disk.memberships = [(log_id(1, 2), world.members["n3"])]
    world.write("n3", ("vote", vote(2, "n3")))
    world.oracle.asks("n3", "n1", Kind.VOTE, VoteRequest(vote(2, "n3"), log_id(1, 3)))


def a_leader_counts_itself_outside(world: World) -> None:
    outside = membership(["n2", "n3"])
    world.members["n1"] = outside
    world.write("n1", ("entry", entry(1, 4, encode_membership(outside), kind=MEMBERSHIP)))
    world.write("n2", ("entry", entry(1, 4, encode_membership(outside), kind=MEMBERSHIP)))
    world.disks["n1"].memberships[-1] = (log_id(1, 4), outside)
    world.oracle.breaches.clear()  # the change itself is not the point
    world.leads("n1", 1, commit=log_id(1, 4))


def two_leases(world: World) -> None:
    world.oracle.leases(["n1"])
    assert world.broken == []
    world.oracle.leases(["n1", "n2"])


def a_snapshot_of_another_history(world: World) -> None:
    world.write("n1", ("snapshot", (meta(log_id(2, 3, "n2")), b"")))


def a_snapshot_falls(world: World) -> None:
    world.write("n1", ("snapshot", (meta(log_id(1, 3)), b"")))
    world.oracle.disk_snapshot(world.disks["n1"], meta(log_id(1, 2)))


def purges_beyond_the_snapshot(world: World) -> None:
    world.write("n1", ("snapshot", (meta(log_id(1, 1)), b"")), ("purge", log_id(1, 2)))


def believes_more_than_was_said(world: World) -> None:
    world.write("n2", ("entry", entry(1, 4)))
    world.leads("n1", 1, matching=log_id(1, 4))


def speaks_after_a_failed_write(world: World) -> None:
    world.disks["n2"].failed, world.disks["n2"].failed_at = StorageError("I/O error"), -1.0
    world.acknowledges("n2", 3)


PLANTED: list[tuple[str, Callable[[World], None]]] = [
    ("S1", another_leader_id),
    ("S2", no_quorum_of_grants),
    ("S3", vote_falls),
    ("S3", grants_to_a_shorter_log),
    ("S4", granted_by_nobody),
    ("S5", commits_what_one_disk_holds),
    ("S5", applies_what_one_disk_holds),
    ("S5", applies_what_no_leader_committed),
    ("S5", saves_as_committed_what_nobody_told_it),
    ("S5", goes_by_an_old_membership),
    ("S2", is_elected_by_an_old_membership),
    ("S5", commits_of_an_earlier_leader),
    ("S6", commits_another_entry),
    ("S7", leads_without_what_is_committed),
    ("S8", one_id_for_two_entries),
    ("S9", a_hole),
    ("S9", an_entry_of_an_earlier_leader),
    ("S10", a_leader_truncates),
    ("S11", truncates_what_is_committed),
    ("S12", applies_twice),
    ("S12", results_differ),
    ("S12", states_differ),
    ("S13", committed_beyond_the_log),
    ("S14", committed_falls),
    ("S14", a_snapshot_falls),
    ("S15", grants_before_it_is_durable),
    ("S15", acknowledges_before_it_is_durable),
    ("S15", leads_before_it_is_durable),
    ("S15", has_a_conflict_before_it_is_durable),
    ("S15", is_busy_before_it_is_durable),
    ("S15", refuses_before_it_is_durable),
    ("S15", refuses_a_snapshot_before_it_is_durable),
    ("S15", applies_what_is_not_durable),
    ("S16", writes_overlap),
    ("S17", loses_what_it_acknowledged),
    ("S18", two_voters_at_once),
    ("S18", a_change_while_one_is_open),
    ("S19", a_learner_campaigns),
    ("S5", a_leader_counts_itself_outside),
    ("S22", two_leases),
    ("S24", a_snapshot_of_another_history),
    ("S25", purges_beyond_the_snapshot),
    ("S26", believes_more_than_was_said),
    ("S28", speaks_after_a_failed_write),
]


@pytest.mark.parametrize(("rule", "plant"), PLANTED, ids=[f"{rule}-{plant.__name__}" for rule, plant in PLANTED])
def test_the_oracle_says_no(rule: str, plant: Callable[[World], None]) -> None:
    world = World()
    plant(world)
    assert rule in world.broken, world.broken


def test_in_single_term_mode_a_term_has_one_leader() -> None:
    world = World(single_term=True)
    for node in world.members:
        world.disks[node].vote = vote(1, "n2")
        world.grants(node, 1, "n2", log_id(1, 3))
    world.leads("n2", 1)
    assert "S1" in world.broken


def test_what_is_right_is_not_noticed() -> None:
    world = World()
    world.elect("n2", 2)
    for node in world.members:
        world.write(node, ("entry", entry(2, 4, b"next", node="n2", kind=NORMAL)))
    world.write("n2", ("committed", log_id(2, 4, "n2")))
    for node in ("n2", "n1", "n3"):
        world.oracle.applying(node, 0, world.disks[node].entries[1:], dict.fromkeys(range(1, 5)))
    joint = membership(["n1", "n2", "n3"], ["n1", "n2"])
    world.write("n1", ("entry", entry(2, 5, encode_membership(joint), node="n2", kind=MEMBERSHIP)))
    world.write("n1", ("snapshot", (msgspec.structs.replace(meta(log_id(1, 3))), b"")), ("purge", log_id(1, 3)))
    world.oracle.check_pointers("n1")
    assert world.broken == []


def test_what_was_committed_and_not_told_may_be_told_in_a_later_term() -> None:
    world = World()
    for node in world.members:
        world.write(node, ("entry", entry(1, 4, kind=NORMAL)))
        world.acknowledges(node, 4)
    world.elect("n1", 2, log_id(1, 4))
    world.leads("n1", 2, commit=log_id(1, 4))
    world.write("n3", ("committed", log_id(1, 4)))
    assert world.broken == []
