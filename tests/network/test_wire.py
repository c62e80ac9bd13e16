"""Frames: golden bytes, round trips, and nothing but ``FrameError`` for garbage."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkit_core.errors import ErrorInfo, PayloadTooLarge
from raftkit_core.network import wire
from raftkit_core.network.wire import FrameError, Kind
from raftkit_core.types.entry import BLANK, MEMBERSHIP, NORMAL, Entries, Entry, encode_membership
from raftkit_core.types.entry_log import EntryLog
from raftkit_core.types.ids import MAX_ENTRY_BYTES, MAX_FRAME_BYTES
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    Busy,
    Conflict,
    ForwardRequest,
    ForwardResponse,
    HeartbeatRequest,
    HelloRequest,
    HelloResponse,
    HigherVote,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    Success,
    TransferLeaderRequest,
    TransferLeaderResponse,
    VoteRequest,
    VoteResponse,
)
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

T1, T2 = LeaderId(1, "n1"), LeaderId(2, "n2")
VOTE = Vote(T2, True)
PREV = LogId(T1, 6)
ENTRIES = [
    Entry(LogId(T1, 7), 5, NORMAL, b"a"),
    Entry(LogId(T2, 8), 6, BLANK, b""),
    Entry(LogId(T2, 9), 7, NORMAL, b"b"),
    Entry(LogId(T2, 10), 7, NORMAL, b"c"),
]
APPEND = AppendEntriesRequest(VOTE, PREV, ENTRIES, PREV, 500)
META = SnapshotMeta(
    PREV, StoredMembership(PREV, Membership.of([["n1"]], {"n1": Node("memory:/n1")})), "ab12-01", 9, 100, "ff" * 32
)

REQUESTS: list[tuple[Kind, Any]] = [
    (Kind.HELLO, HelloRequest("demo", None, "default", "n1", "s1", "n2", None, False)),
    (Kind.APPEND_ENTRIES, APPEND),
    (Kind.HEARTBEAT, HeartbeatRequest(VOTE, PREV, None, 500)),
    (Kind.VOTE, VoteRequest(VOTE, PREV, None)),
    (Kind.PRE_VOTE, VoteRequest(VOTE, None, VOTE)),
    (Kind.TRANSFER_LEADER, TransferLeaderRequest(VOTE, PREV)),
    (Kind.READ_INDEX, ReadIndexRequest("linearizable", 100)),
    (Kind.FORWARD, ForwardRequest("write", b"\x00body", 100)),
    (Kind.SNAPSHOT_OFFSET, InstallSnapshotRequest(VOTE, META)),
    (Kind.INSTALL_SNAPSHOT, InstallSnapshotRequest(VOTE, META)),
]
ANSWERS: list[tuple[Kind, Any]] = [
    (Kind.HELLO, HelloResponse("demo", "c1", "default", "n2", "s2", False)),
    (Kind.APPEND_ENTRIES, Success("s2", PREV)),
    (Kind.APPEND_ENTRIES, Conflict("s2", 7, None)),
    (Kind.APPEND_ENTRIES, HigherVote("s2", VOTE)),
    (Kind.HEARTBEAT, Busy("s2")),
    (Kind.VOTE, VoteResponse("s2", VOTE, True, PREV)),
    (Kind.TRANSFER_LEADER, TransferLeaderResponse("s2", False)),
    (Kind.READ_INDEX, ReadIndexResponse(PREV)),
    (Kind.FORWARD, ForwardResponse(b"x")),
    (Kind.SNAPSHOT_OFFSET, wire.SnapshotOffer(7, "t")),
    (Kind.INSTALL_SNAPSHOT, InstallSnapshotResponse("s2", VOTE)),
]

GOLDEN_APPEND = (
    "95" + "92" + "9202a26e32" + "c3"  # vote T2-n2, committed
    "92" + "9201a26e31" + "06"  # prev log id
    "92" + "9201a26e31" + "06"  # leader commit
    "cd01f4"  # lease
    "93"  # three runs
    "94" + "92" + "9201a26e31" + "07" + "0501" + "91" + "c40161"
    "94" + "92" + "9202a26e32" + "08" + "0600" + "91" + "c400"
    "94" + "92" + "9202a26e32" + "09" + "0701" + "92" + "c40162" + "c40163"
)


def test_the_bytes_of_an_append_are_pinned() -> None:
    assert wire.encode_append(APPEND).hex() == GOLDEN_APPEND
    assert wire.decode_append(bytes.fromhex(GOLDEN_APPEND)) == APPEND


def test_the_bytes_of_frames_and_small_messages_are_pinned() -> None:
    heartbeat = wire.encode_request(Kind.HEARTBEAT, HeartbeatRequest(VOTE, PREV, None, 500))
    assert wire.encode_frame(Kind.HEARTBEAT, 7, 100, heartbeat).hex() == (
        "94" + "04" + "07" + "64" + "95" + "929202a26e32c3" + "929201a26e3106" + "c0" + "cd01f4" + "c0"
    )
    success = wire.encode_answer(Success("s2", PREV))
    assert wire.encode_frame(Kind.ANSWER, 7, 0, success).hex() == "9400" + "0700" + "9300a27332929201a26e3106"
    assert [int(kind) for kind in Kind] == list(range(12))


@pytest.mark.parametrize("around", [-2, -1, 0, 1, 60_000])
def test_a_frame_is_the_same_bytes_however_large(around: int) -> None:
    body = msgspec.msgpack.encode(b"x" * (wire.JOINED_BYTES_MIN + around))
    for request_id, timeout_ms in ((0, 0), (300, 70_000), (wire.INT_MAX, wire.INT_MAX)):
        whole = msgspec.msgpack.encode((3, request_id, timeout_ms, msgspec.Raw(body)))
        assert wire.encode_frame(3, request_id, timeout_ms, body) == whole


def test_what_is_decoded_keeps_nothing_of_the_frame() -> None:
    forward = ForwardRequest("write", b"command" * 100, 5)
    for kind, message in ((Kind.APPEND_ENTRIES, APPEND), (Kind.FORWARD, forward)):
        memory = bytearray(wire.encode_frame(kind, 5, 100, wire.encode_request(kind, message)))
        decoded = wire.decode_request(kind, wire.decode_frame(memoryview(memory)).body)
        memory[:] = bytes(len(memory))  # the next read
        assert decoded == message


@pytest.mark.parametrize(("kind", "message"), REQUESTS, ids=[kind.name for kind, _ in REQUESTS])
def test_every_request_survives_a_frame(kind: Kind, message: Any) -> None:
    frame = wire.decode_frame(wire.encode_frame(kind, 5, 100, wire.encode_request(kind, message)))
    assert (frame.kind, frame.request_id, frame.timeout_ms) == (kind, 5, 100)
    assert wire.decode_request(wire.request_kind(frame.kind), frame.body) == message


@pytest.mark.parametrize(("kind", "message"), ANSWERS, ids=[type(message).__name__ for _, message in ANSWERS])
def test_every_answer_survives_a_frame(kind: Kind, message: Any) -> None:
    frame = wire.decode_frame(wire.encode_frame(Kind.ANSWER, 5, 0, wire.encode_answer(message)))
    assert wire.decode_answer(kind, frame.body) == message


def test_an_error_answer_is_shortened_until_it_fits_its_lane() -> None:
    info = ErrorInfo("FORWARD_TO_LEADER", "x" * 10_000, hint="y" * 10_000, leader="n1", leader_node=Node("p" * 9000))
    body = wire.encode_error(info, 4000)
    assert len(body) <= 4000
    assert wire.decode_error(body).leader == "n1"
    assert wire.decode_error(wire.encode_error(info)).code == "FORWARD_TO_LEADER"


MEMBERS = encode_membership(Membership.of([["n1"]], {"n1": Node("http://n1:1")}))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"\x82\xa7configs\x91\x91\xa2n1\xa5nodes\x80",  # a voter without a node
        b"\x82\xa7configs\x91\x90\xa5nodes\x80",  # nobody votes
        MEMBERS.replace(b"n1", b"\xff1", 1),
    ],
)
def test_an_entry_of_membership_that_is_none_is_refused_before_it_can_count(payload: bytes) -> None:
    """A membership is in force as soon as it is appended: the engine must be able to rely on what it finds."""
    entries = [Entry(LogId(T1, 7), 0, MEMBERSHIP, MEMBERS), Entry(LogId(T1, 8), 0, MEMBERSHIP, payload)]
    body = wire.encode_append(AppendEntriesRequest(VOTE, PREV, entries, None, 500))
    with pytest.raises(wire.FrameError):
        wire.decode_append(body)


entries_strategy = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.binary(max_size=20)), max_size=30)


@given(steps=entries_strategy, start=st.none() | st.integers(0, 2**40), lease=st.integers(0, 2**63 - 1))
def test_any_append_round_trips(steps: list[tuple[int, int, bytes]], start: int | None, lease: int) -> None:
    prev = None if start is None else LogId(LeaderId(1, "n1"), start)
    term, index, entries = 1, 0 if start is None else start + 1, []
    for jump, kind, payload in steps:
        term += jump
        payload = MEMBERS if kind == MEMBERSHIP else payload
        entries.append(Entry(LogId(LeaderId(term, "n1"), index), 2**40 + index, kind, payload))
        index += 1
    request = AppendEntriesRequest(VOTE, prev, entries, None, lease)
    body = wire.encode_append(request)
    assert wire.decode_append(body) == request
    read_back = AppendEntriesRequest(VOTE, prev, EntryLog(entries)[:], None, lease)
    assert wire.encode_append(read_back) == body, "what a log gives is written as what was put in"


def test_what_was_proposed_together_is_encoded_as_the_list_it_is() -> None:
    proposed = Entries(LogId(T1, 7), 5, NORMAL, [b"a", b"", b"ccc"])
    assert (proposed.size_bytes, proposed) == (
        4,
        [Entry(LogId(T1, 7 + at), 5, NORMAL, b) for at, b in enumerate([b"a", b"", b"ccc"])],
    )
    together = AppendEntriesRequest(VOTE, PREV, proposed, PREV, 500)
    one_by_one = AppendEntriesRequest(VOTE, PREV, list(proposed), PREV, 500)
    assert wire.encode_append(together) == wire.encode_append(one_by_one)
    decoded = wire.decode_append(wire.encode_append(together))
    assert decoded == together
    assert isinstance(decoded.entries, Entries)
    late = Entries(LogId(T1, 8), 5, NORMAL, [b"a"])
    with pytest.raises(ValueError, match=r"T1-n1\.8 where index 7 was due"):
        wire.encode_append(AppendEntriesRequest(VOTE, PREV, late, None, 1))


def test_one_append_is_encoded_once_for_all_peers() -> None:
    encoder = wire.AppendEncoder()
    first = encoder.encode(APPEND)
    assert encoder.encode(APPEND) is first
    encoder.encode(AppendEntriesRequest(VOTE, None, [], None, 1))
    assert encoder.encode(APPEND) is not first, "the newest only: streams at one place share one request"
    assert encoder.encode(APPEND) == first


def test_entries_that_are_not_consecutive_are_not_encoded() -> None:
    with pytest.raises(ValueError, match=r"T1-n1\.9 where index 7 was due"):
        wire.encode_append(AppendEntriesRequest(VOTE, PREV, [Entry(LogId(T1, 9), 0, BLANK, b"")], None, 1))


def _append(**changes: Any) -> bytes:
    parts: dict[str, Any] = {
        "vote": [[2, "n2"], True],
        "prev": [[1, "n1"], 6],
        "commit": None,
        "lease": 500,
        "runs": [[[[1, "n1"], 7], 0, 1, [b"x"]]],
    }
    parts |= changes
    return msgspec.msgpack.encode(list(parts.values()))


BAD_APPENDS = {
    "a gap": {"runs": [[[[1, "n1"], 8], 0, 1, [b""]]]},
    "a gap between runs": {"runs": [[[[1, "n1"], 7], 0, 1, [b""]], [[[2, "n2"], 9], 0, 1, [b""]]]},
    "entries before prev": {"runs": [[[[1, "n1"], 6], 0, 1, [b""]]]},
    "not from zero": {"prev": None, "runs": [[[[1, "n1"], 1], 0, 1, [b""]]]},
    "an empty run": {"runs": [[[[1, "n1"], 7], 0, 1, []]]},
    "falling leader ids": {"runs": [[[[0, "n1"], 7], 0, 1, [b""]]]},
    "an unknown entry kind": {"runs": [[[[1, "n1"], 7], 0, MEMBERSHIP + 1, [b""]]]},
    "a negative time": {"runs": [[[[1, "n1"], 7], -1, 1, [b""]]]},
    "a text payload": {"runs": [[[[1, "n1"], 7], 0, 1, ["text"]]]},
    "a bool for an int": {"lease": True},
    "a float for an int": {"lease": 1.0},
    "an int of 64 bits": {"lease": 2**63},
    "a negative term": {"vote": [[-1, "n2"], True]},
    "a huge term": {"vote": [[2**63, "n2"], True]},
    "a bad node id": {"vote": [[1, "../n2"], True]},
    "an int for a bool": {"vote": [[1, "n2"], 1]},
    "an index beyond all": {"prev": [[1, "n1"], 2**63 - 1], "runs": [[[[1, "n1"], 2**63 - 1], 0, 1, [b""]]]},
    "no vote": {"vote": None},
}


@pytest.mark.parametrize("changes", BAD_APPENDS.values(), ids=BAD_APPENDS)
def test_a_wrong_append_is_refused(changes: dict[str, Any]) -> None:
    assert wire.decode_append(_append()).entries[0].payload == b"x"
    with pytest.raises(FrameError):
        wire.decode_append(_append(**changes))


def test_an_oversized_entry_is_refused() -> None:
    with pytest.raises(FrameError):
        wire.decode_append(_append(runs=[[[[1, "n1"], 7], 0, 1, [bytes(MAX_ENTRY_BYTES + 1)]]]))
    wire.decode_append(_append(runs=[[[[1, "n1"], 7], 0, 1, [bytes(MAX_ENTRY_BYTES)]]]))


def test_an_oversized_frame_is_neither_made_nor_read() -> None:
    with pytest.raises(PayloadTooLarge):
        wire.encode_frame(Kind.FORWARD, 1, 0, bytes(MAX_FRAME_BYTES))
    with pytest.raises(FrameError, match="larger than"):
        wire.decode_frame(bytes(MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize("kind", [0, 1, 12, 255, -1])
def test_an_unknown_kind_is_no_request(kind: int) -> None:
    with pytest.raises(FrameError):
        wire.request_kind(kind)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x94\x03",
        b"\x94\x03\xff\x00\xc0",
        b"\x94\x03\x01\xcf" + b"\xff" * 8 + b"\xc0",
        b"\x94\x03\x01\x01\xc0\xc0",
        b"\x92\x01" + b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\x94\xa2\xff\xfe\x01\x01\xc0",
    ],
)
def test_garbage_is_no_frame(data: bytes) -> None:
    with pytest.raises(FrameError):
        wire.decode_frame(data)


def test_a_snapshot_id_that_could_be_a_path_is_refused() -> None:
    for bad in ("../../etc", "a/b", "", "a\x00", "A" * 8, "a" * 200):
        meta = msgspec.structs.replace(META, snapshot_id=bad)
        with pytest.raises(FrameError, match="no snapshot id"):
            wire.decode_request(
                Kind.SNAPSHOT_OFFSET, wire.encode_request(Kind.SNAPSHOT_OFFSET, InstallSnapshotRequest(VOTE, meta))
            )


def _decode_all(data: bytes) -> None:
    """Every decoder on the same bytes: each either answers or raises FrameError."""
    for decode in (wire.decode_frame, wire.decode_append, wire.decode_error):
        try:
            decode(data)
        except FrameError:
            continue
    for kind in wire.REQUEST_TYPES:
        try:
            wire.decode_request(kind, data)
        except FrameError:
            continue
    for kind in wire.ANSWER_TYPES:
        try:
            wire.decode_answer(kind, data)
        except FrameError:
            continue


def test_every_truncation_of_every_message_is_refused() -> None:
    for kind, message in REQUESTS:
        body = wire.encode_request(kind, message)
        for size in range(len(body)):
            with pytest.raises(FrameError):
                wire.decode_request(kind, body[:size])
    for kind, message in ANSWERS:
        body = wire.encode_answer(message)
        for size in range(len(body)):
            with pytest.raises(FrameError):
                wire.decode_answer(kind, body[:size])


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_frame_errors(data: bytes) -> None:
    _decode_all(data)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(plain)
@settings(max_examples=200)
def test_random_structures_raise_nothing_but_frame_errors(value: Any) -> None:
    _decode_all(msgspec.msgpack.encode(value))


def test_flipped_bytes_raise_nothing_but_frame_errors() -> None:
    rng = random.Random(7)
    bodies = [wire.encode_request(kind, message) for kind, message in REQUESTS]
    bodies += [wire.encode_answer(message) for _, message in ANSWERS]
    for _ in range(300):
        for body in bodies:
            broken = bytearray(body)
            for _ in range(rng.randint(1, 3)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            _decode_all(bytes(broken))
