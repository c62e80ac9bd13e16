"""Every decoder of what others wrote: with valid inputs to begin with, and the one kind of error that may come out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from aiohttp.test_utils import make_mocked_request
from mutate import Maker, packed, written

from raftkit_core.config_file import parse_node_file
from raftkit_core.errors import BadAdapterUrl, BadCommand, BadRequest, ConfigError, ErrorInfo, PluginError, StorageError
from raftkit_core.network import wire
from raftkit_core.network.tokens import parse_tokens
from raftkit_core.network.wire import ANSWER_TYPES, REQUEST_TYPES, FrameError, Kind
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.state_machine.sessions import Sessions
from raftkit_core.state_machine.system_commands import OpenSession, decode_system_command, encode_system_command
from raftkit_core.storage.snapshot_format import SnapshotDecoder, _decode_header
from raftkit_core.types.entry import (
    MEMBERSHIP,
    NORMAL,
    Entry,
    Envelope,
    decode_envelope,
    decode_membership,
    encode_envelope,
    encode_membership,
)
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.kv import CompareAndSet, Delete, Put
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.messages import AppendEntriesRequest
from raftkit_core.types.session import SessionRef
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.units import parse_duration_ms, parse_size_bytes
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_http.api import schema
from raftkit_http.api.decode import Query, check_depth, decode_json
from raftkit_http.api.socket import decode_socket_frame
from raftkit_http.api.write import command_of_data
from raftkit_http.exchange import Lost, NotSent, decode_answer
from raftkit_http.settings import HttpSettings, parse_peer_address
from raftkit_http.watching import SseDecoder, read_event
from raftkit_redis import codec
from raftkit_redis.witness import SLOT_BYTES, Record
from raftkit_redis.witness import _make_slot as encode_slot
from raftkit_redis.witness import _read_slot as read_slot

ROOT = Path(__file__).resolve().parents[2]
LEADER = LeaderId(3, "n1")
LOG_ID = LogId(LEADER, 7)
VOTE = Vote(LEADER, True)
MEMBERS = Membership.of(
    [["n1", "n2"], ["n2"]],
    {name: Node(f"http://{name}:1", "http://c:1", "5" * 32, {"zone": "a"}) for name in ("n1", "n2")},
)
META = SnapshotMeta(LOG_ID, StoredMembership(LOG_ID, MEMBERS), "ab-1", 5, 100, "f" * 64)
_encode = msgspec.msgpack.Encoder().encode


class Target:
    """One decoder. ``decode`` gets bytes; whatever it raises must be of ``allowed``."""

    def __init__(
        self,
        decode: Callable[[bytes], Any],
        seeds: Iterable[bytes],
        allowed: tuple[type[Exception], ...],
        structured: Maker | None = packed,
    ) -> None:
        self.decode = decode
        self.seeds = list(seeds)
        self.allowed = allowed
        self.structured = structured
        assert self.seeds


def sample(type_: Any) -> Any:
    """A valid value of a message type, made from its annotations."""
    info = msgspec.inspect.type_info(type_)
    return _sample(info)


def _sample(info: Any) -> Any:
    kinds = msgspec.inspect
    known = {Vote: VOTE, LogId: LOG_ID, LeaderId: LEADER, SnapshotMeta: META, Membership: MEMBERS}
    if isinstance(info, kinds.StructType):
        if info.cls in known:
            return known[info.cls]
        values = {field.name: _sample_field(field) for field in info.fields}
        return info.cls(**values)
    if isinstance(info, kinds.UnionType):
        present = [one for one in info.types if not isinstance(one, kinds.NoneType)]
        return _sample(present[0])
    if isinstance(info, kinds.IntType):
        return max(1, info.ge or 0)
    if isinstance(info, kinds.BoolType):
        return True
    if isinstance(info, kinds.StrType):
        return "n1"
    if isinstance(info, kinds.BytesType):
        return b"bytes"
    if isinstance(info, kinds.FloatType):
        return 1.0
    if isinstance(info, kinds.LiteralType):
        return info.values[0]
    if isinstance(info, kinds.DictType):
        return {"n1": _sample(info.value_type)}
    if isinstance(info, kinds.ListType):
        return [_sample(info.item_type)]
    if isinstance(info, kinds.VarTupleType):
        return (_sample(info.item_type),)
    if isinstance(info, kinds.TupleType):
        return tuple(_sample(one) for one in info.item_types)
    return None


def _sample_field(field: Any) -> Any:
    return _sample(field.type)


def with_checksum(body_of: Callable[[bytes], bytes], decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Checksums are put right, so that what lies behind them is reached; and now and then left wrong."""

    def decoded(data: bytes) -> Any:
        return decode(data if zlib.crc32(data) % 16 == 0 else body_of(data))

    return decoded


def sealed(place: bytes) -> Callable[[bytes], bytes]:
    return lambda body: zlib.crc32(body, zlib.crc32(place)).to_bytes(4, "big") + body


# --- Wire -----------------------------------------------------------------------------------------------------------


def _wire() -> dict[str, Target]:
    append = AppendEntriesRequest(
        VOTE,
        LogId(LEADER, 6),
        [
            Entry(LOG_ID, 1, NORMAL, b"payload"),
            Entry(LogId(LEADER, 8), 2, MEMBERSHIP, encode_membership(MEMBERS)),
            Entry(LogId(LeaderId(4, "n2"), 9), 2, NORMAL, b""),
        ],
        LOG_ID,
        500,
    )
    body = wire.encode_append(append)
    found = {
        "wire.frame": Target(
            wire.decode_frame,
            [wire.encode_frame(Kind.VOTE, 1, 500, body), wire.encode_frame(0, 2**40, 0, b"\xc0")],
            (FrameError,),
        ),
        "wire.append": Target(wire.decode_append, [body], (FrameError,)),
        "wire.error": Target(
            wire.decode_error,
            [_encode(ErrorInfo("CODE", "message", hint="hint", leader="n1", leader_node=Node("http://n1:1")))],
            (FrameError,),
        ),
    }
    for kind, type_ in REQUEST_TYPES.items():
        if kind is not Kind.APPEND_ENTRIES:
            found[f"wire.request.{kind.name.lower()}"] = Target(
                lambda data, kind=kind: wire.decode_request(kind, data), [_encode(sample(type_))], (FrameError,)
            )
    for kind, type_ in ANSWER_TYPES.items():
        found[f"wire.answer.{kind.name.lower()}"] = Target(
            lambda data, kind=kind: wire.decode_answer(kind, data), [_encode(sample(type_))], (FrameError,)
        )
    return found


# --- Entries, commands, records -------------------------------------------------------------------------------------


def _entries() -> dict[str, Target]:
    kv = KvStateMachine().codec
    commands = [
        kv.encode_command(command) for command in (Put("k", b"v", 3), Delete("k"), CompareAndSet("k", None, b"v"))
    ]
    identity = sample(StoreIdentity)
    entry = Entry(LOG_ID, 1, NORMAL, b"payload")
    return {
        "entry.envelope": Target(
            decode_envelope, [encode_envelope(Envelope(1, "kv/1", 5, 6, 4, commands[0]))], (msgspec.DecodeError,)
        ),
        "entry.membership": Target(decode_membership, [encode_membership(MEMBERS)], (msgspec.DecodeError,)),
        "kv.command": Target(kv.decode_command, commands, (BadCommand,)),
        "system.command": Target(
            decode_system_command, [encode_system_command(sample(OpenSession))], (msgspec.DecodeError,)
        ),
        "sessions.records": Target(_session_records, [_records()], (StorageError,)),
        "redis.entry": Target(
            with_checksum(lambda body: sealed((7).to_bytes(8, "big"))(body), lambda blob: codec.decode_entry(blob, 7)),
            [codec.encode_entry(entry)[4:]],
            (StorageError,),
        ),
        "redis.vote": Target(with_checksum(sealed(b"vote"), codec.decode_vote), [_encode(VOTE)], (StorageError,)),
        "redis.log_id": Target(
            with_checksum(sealed(b"committed"), lambda blob: codec.decode_log_id("committed", blob)),
            [_encode(LOG_ID)],
            (StorageError,),
        ),
        "redis.identity": Target(
            with_checksum(sealed(b"identity"), codec.decode_identity), [_encode(identity)], (StorageError,)
        ),
        "redis.membership": Target(
            with_checksum(sealed(b"membership"), codec.decode_membership),
            [_encode(StoredMembership(LOG_ID, MEMBERS))],
            (StorageError,),
        ),
        "redis.witness": Target(_witness, [encode_slot(3, Record("5" * 32, 3, b"v", b"l", b"p"))], ()),
        "session.token": Target(lambda data: SessionRef.parse(_text(data)), [b"a" * 32 + b"-7"], (ValueError,), None),
        "snapshot.container": Target(_snapshot, [_golden("raftkit-snapshot-1.hex")], (StorageError,), None),
        "snapshot.header": Target(_decode_header, [_header()], (StorageError,)),
        "kv.snapshot": Target(_kv_stream, [_golden("kv-1-stream.hex")], (StorageError,), None),
    }


def _golden(name: str) -> bytes:
    lines = (ROOT / "tests/golden" / name).read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _records() -> bytes:
    records = msgspec.msgpack.decode(_golden("system-1-sessions.hex"))["records"]
    return _encode(sorted(records.items()))


def _session_records(data: bytes) -> object:
    try:
        pairs = msgspec.msgpack.decode(data, type=list[tuple[bytes, bytes]])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pairs = [(data[:9], data[9:])]
    return Sessions.from_records(dict(pairs))


def _witness(data: bytes) -> object:
    body = data[12:]
    fixed = data[:4] + len(body).to_bytes(4, "big") + zlib.crc32(body).to_bytes(4, "big") + body
    return read_slot(fixed[:SLOT_BYTES], 0), read_slot(data, 0), read_slot(data, 1)


def _header() -> bytes:
    decoder = SnapshotDecoder()
    decoder.feed(_golden("raftkit-snapshot-1.hex"))
    return _encode(decoder.header)


def _snapshot(data: bytes) -> object:
    decoder = SnapshotDecoder()
    cut = zlib.crc32(data) % (len(data) + 1)
    found = [*decoder.feed(data[:cut]), *decoder.feed(data[cut:])]
    decoder.finish()
    return found


def _kv_stream(data: bytes) -> object:
    async def chunks() -> Any:
        yield data

    machine = KvStateMachine()
    coroutine = machine.restore(META, chunks())
    try:
        coroutine.send(None)
    except StopIteration:
        return machine
    raise AssertionError("restoring from memory waits for nothing")


# --- HTTP -----------------------------------------------------------------------------------------------------------

_BODIES: dict[str, list[bytes]] = {
    "PutRequest": [b'{"key": "k", "value": "v", "if_revision": 3}', b'{"key": "k", "value_b64": "aGk="}'],
    "ReadRequest": [
        b'{"get": {"key": "k"}}',
        b'{"list": {"prefix": "a", "limit": 10, "after": "b"}, "consistency": "lease"}',
    ],
    "WriteRequest": [
        b'{"put": {"key": "k", "value": "v"}}',
        b'{"cas": {"key": "k", "expected": null, "value": "v"}}',
        b'{"command": {"put": {"key": "k", "value": "v"}}}',
        b'{"command_b64": "aGk="}',
    ],
    "InitializeRequest": [b'{"members": {"n1": {"peer": "http://n1:1", "tags": {"a": "b"}}}}'],
    "AddLearnerRequest": [b'{"id": "n4", "node": {"peer": "http://n4:1"}, "blocking": true}'],
    "ChangeMembersRequest": [b'{"voters": ["n1", "n2"], "retain": false, "force": false}'],
    "RemoveMembersRequest": [b'{"ids": ["n1"]}'],
    "TransferRequest": [b'{"to": "n2"}', b"{}"],
    "EmptyRequest": [b"{}"],
}


def _body(type_: Any) -> Callable[[bytes], Any]:
    return lambda data: decode_json(data, type_)


def _http() -> dict[str, Target]:
    found = {
        f"api.{name}": Target(_body(getattr(schema, name)), seeds, (BadRequest,), written)
        for name, seeds in _BODIES.items()
        if hasattr(schema, name)
    }
    raft: Any = SimpleNamespace(machine=KvStateMachine(), config=SimpleNamespace(max_entry_bytes=2**20))
    found |= {
        "api.query": Target(
            _query, [b"prefix=a&limit=10&consistency=lease&timeout_ms=100&if_revision=3"], (BadRequest,), None
        ),
        "api.command": Target(
            lambda data: command_of_data(raft, _tree(data)),
            [_encode({"put": {"key": "k", "value": "v"}})],
            (BadRequest, BadCommand),
        ),
        "socket.frame": Target(
            decode_socket_frame,
            [_encode([1, "write", b"command"]), _encode([2, "read", {"get": {"key": "k"}}])],
            (BadRequest,),
        ),
        "client.watch": Target(
            lambda data: [read_event(*event) for event in SseDecoder().feed(data)],
            [
                b'id: 2\nevent: put\ndata: {"type":"put","key":"k","revision":2,"value":"v","previous_revision":0}\n\n',
                b'id: 3\nevent: progress\ndata: {"revision":3}\n\n',
                b'event: end\ndata: {"code":"COMPACTED","message":"m","oldest":4}\n\n: comment\n\n',
            ],
            (Lost,),
        ),
        "client.answer": Target(
            lambda data: decode_answer(SimpleNamespace(status=200 + zlib.crc32(data) % 400), data, dict),  # type: ignore[arg-type]
            [
                b'{"schema": "raftkit.kv/1", "ok": true, "data": {}}',
                b'{"schema": "e", "ok": false, "error": {"code": "X", "message": "m"}}',
            ],
            (Lost, NotSent),
            written,
        ),
    }
    return found


def _tree(data: bytes) -> Any:
    try:
        tree = msgspec.msgpack.decode(data)
        check_depth(tree)
        return tree
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadRequest("not MessagePack") from error


def _query(data: bytes) -> object:
    text = "".join(char if "!" <= char <= "~" and char != "#" else "%00" for char in data.decode("latin-1"))
    request = make_mocked_request("GET", f"/v1/kv?{text}")
    query = Query(request, "prefix", "limit", "after", "consistency", "if_revision")
    return query.limit(), query.consistency(), query.revision(), query.integer("timeout_ms", minimum=1, maximum=2**31)


# --- Configuration --------------------------------------------------------------------------------------------------


def _configuration() -> dict[str, Target]:
    page = (ROOT / "docs/configuration.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0].encode()
    urls = [
        b"redis://user:pw@host:6379/0?prefix=n1",
        b"http://0.0.0.0:7401?advertise=https://n1:7401&insecure=true",
        b"sqlite:///abs/n1.db",
        b"import:pkg.module:Attr",
    ]
    network = [
        b"http://127.0.0.1:7401?advertise=http://n1:7401&clients=http://[::1]:1&insecure=true",
        b"http://[::1]:7401",
    ]
    return {
        "config.file": Target(lambda data: parse_node_file(_text(data)), [example], (ConfigError,), None),
        "config.url": Target(lambda data: AdapterUrl.parse(_text(data)), urls, (BadAdapterUrl,), None),
        "config.network": Target(
            lambda data: HttpSettings.parse(_text(data)), network, (ConfigError, PluginError), None
        ),
        "config.peer": Target(
            lambda data: parse_peer_address(_text(data)), [b"https://n1.example:7401"], (ConfigError,), None
        ),
        "config.tokens": Target(
            lambda data: parse_tokens(_text(data)),
            [b"# c\nops admin sha256:" + b"0f" * 32 + b"\n"],
            (ConfigError,),
            None,
        ),
        "config.duration": Target(lambda data: parse_duration_ms(_text(data)), [b"250ms", b"5s"], (ValueError,), None),
        "config.size": Target(lambda data: parse_size_bytes(_text(data)), [b"64MiB", b"1024"], (ValueError,), None),
    }


TARGETS: dict[str, Target] = {**_wire(), **_entries(), **_http(), **_configuration()}
