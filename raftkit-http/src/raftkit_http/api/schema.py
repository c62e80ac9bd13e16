"""What travels between a client and a node: request bodies, answers, and their limits. No behaviour but conversion.

Requests refuse unknown fields and inexact types. Integers stay below 2**53, because JavaScript and jq round above it.
Bytes are ``value`` when they are UTF-8 text and ``value_b64`` (standard base64, padded) when not, or when JSON would
make them six times as long: control characters are no text.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from raftkit_core.errors import BadRequest
from raftkit_core.network.client import MemberStatus, NodeStatus
from raftkit_core.types.kv import CompareAndSet, Delete, KeyValue, KvCommand, KvEvent, Put
from raftkit_core.types.membership import Membership, Node
from raftkit_core.types.metrics import NodeEvent
from raftkit_core.types.session import DEFAULT_TTL_MS, MAX_TTL_MS, MIN_TTL_MS

JSON_TYPE = "application/json"
MSGPACK_TYPE = "application/msgpack"

MAX_LIST_KEYS = 1000
"""Keys in one answer of a list; ask again with ``after`` for more."""
MAX_LIST_BYTES = 8 * 1024 * 1024
"""Bytes of keys and values after which a list is cut (never before its first item)."""
MAX_MEMBERS = 256
MAX_SAFE_INT = 2**53

Revision = Annotated[int, Meta(ge=0, lt=MAX_SAFE_INT)]
NodeIdText = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
Address = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+\Z")]
"""Printable ASCII without spaces: an address with a line break in it would be a forged header or log line later."""
TagText = Annotated[str, Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*\Z")]


SessionText = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}-[1-9][0-9]{0,15}\Z")]
Serial = Annotated[int, Meta(ge=1, lt=MAX_SAFE_INT)]
COMMANDS = ("put", "delete", "cas", "command", "command_b64")
"""The forms a write has in JSON."""


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of every request body."""


# --- Key-value ------------------------------------------------------------------------------------------------------


class PutRequest(Request):
    key: str
    value: str | UnsetType = UNSET
    value_b64: bytes | UnsetType = UNSET
    if_revision: Revision | None = None

    def command(self) -> Put:
        value = one_of_bytes("value", self.value, self.value_b64)
        return Put(self.key, value, self.if_revision)


class PutValueRequest(Request):
    """Body of ``PUT /v1/kv/{key}``, whose key and precondition are in the URL."""

    value: str | UnsetType = UNSET
    value_b64: bytes | UnsetType = UNSET

    def value_bytes(self) -> bytes:
        return one_of_bytes("value", self.value, self.value_b64)


class DeleteRequest(Request):
    key: str
    if_revision: Revision | None = None

    def command(self) -> Delete:
        return Delete(self.key, self.if_revision)


class CasValueRequest(Request):
    """Body of ``POST /v1/kv/{key}/cas``. ``expected`` null: the key must not exist."""

    expected: str | UnsetType | None = UNSET
    expected_b64: bytes | UnsetType = UNSET
    value: str | UnsetType = UNSET
    value_b64: bytes | UnsetType = UNSET

    def command_for(self, key: str) -> CompareAndSet:
        if self.expected is not None:
            expected: bytes | None = one_of_bytes("expected", self.expected, self.expected_b64)
        elif isinstance(self.expected_b64, UnsetType):
            expected = None
        else:
            raise BadRequest("expected is null and expected_b64 is given: give one of them")
        return CompareAndSet(key, expected, one_of_bytes("value", self.value, self.value_b64))


class CasRequest(CasValueRequest, kw_only=True):
    key: str

    def command(self) -> CompareAndSet:
        return self.command_for(self.key)


class WriteRequest(Request):
    """Body of ``POST /v1/write``: exactly one of the commands. ``put``, ``delete`` and ``cas`` need the kv machine.

    With ``session`` and ``serial`` the command has one effect however often it is sent; results up to
    ``acknowledged_floor`` may be forgotten.
    """

    session: SessionText | UnsetType = UNSET
    serial: Serial | UnsetType = UNSET
    acknowledged_floor: Annotated[int, Meta(ge=0, lt=MAX_SAFE_INT)] = 0
    put: PutRequest | UnsetType = UNSET
    delete: DeleteRequest | UnsetType = UNSET
    cas: CasRequest | UnsetType = UNSET
    command: Any | UnsetType = UNSET
    command_b64: bytes | UnsetType = UNSET


class KvWriteRequest(Request):
    """A kv command as JSON: one of its forms."""

    put: PutRequest | UnsetType = UNSET
    delete: DeleteRequest | UnsetType = UNSET
    cas: CasRequest | UnsetType = UNSET

    def to_command(self) -> KvCommand:
        return kv_command(self.put, self.delete, self.cas)


ConsistencyName: TypeAlias = Literal["linearizable", "lease", "stale"]


class GetRequest(Request):
    key: str


class ListRequest(Request):
    prefix: str = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_LIST_KEYS)] = MAX_LIST_KEYS
    after: str | None = None


class ReadRequest(Request):
    """Body of ``POST /v1/read``: exactly one of ``get`` and ``list``. Any key can be asked for, whatever is in it."""

    get: GetRequest | UnsetType = UNSET
    list: ListRequest | UnsetType = UNSET
    consistency: ConsistencyName = "linearizable"


class KeyValueBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key as it travels."""

    key: str
    revision: int
    value: str | UnsetType = UNSET
    value_b64: bytes | UnsetType = UNSET

    @classmethod
    def of(cls, item: KeyValue) -> KeyValueBody:
        text = text_of(item.value)
        if text is None:
            return cls(key=item.key, revision=item.revision, value_b64=item.value)
        return cls(key=item.key, revision=item.revision, value=text)

    def to_key_value(self) -> KeyValue:
        return KeyValue(key=self.key, value=one_of_bytes("value", self.value, self.value_b64), revision=self.revision)


class KvEventBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of a key as ``/v1/watch`` sends it; a delete has no value."""

    type: Literal["put", "delete"]
    key: str
    revision: Revision
    value: str | UnsetType = UNSET
    value_b64: bytes | UnsetType = UNSET
    previous_revision: Revision

    @classmethod
    def of(cls, event: KvEvent) -> KvEventBody:
        value: str | UnsetType = UNSET
        value_b64: bytes | UnsetType = UNSET
        if event.value is not None:
            text = text_of(event.value)
            value, value_b64 = (UNSET, event.value) if text is None else (text, UNSET)
        return cls(
            type="delete" if event.value is None else "put",
            key=event.key,
            revision=event.revision,
            value=value,
            value_b64=value_b64,
            previous_revision=event.previous_revision,
        )

    def to_event(self) -> KvEvent:
        value = None if self.type == "delete" else one_of_bytes("value", self.value, self.value_b64)
        return KvEvent(key=self.key, value=value, revision=self.revision, previous_revision=self.previous_revision)


class KeyValueAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``item`` null: the key does not exist."""

    item: KeyValueBody | None = None


class ListAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``more``: there may be keys after the last one here; ask for them with ``after`` set to that.

    ``revision``: the list shows everything up to this one, perhaps more. A watch from the next one misses nothing.
    """

    items: list[KeyValueBody]
    more: bool
    revision: int = 0


class WriteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``result`` is what the state machine said, as JSON-like data."""

    log_index: int
    term: int
    result: Any = None


class OpenSessionRequest(Request):
    ttl_ms: Annotated[int, Meta(ge=MIN_TTL_MS, le=MAX_TTL_MS)] = DEFAULT_TTL_MS
    nonce: Annotated[str, Meta(max_length=64)] = ""
    """Of one opening: sent again after a lost answer it gives the same session."""


class SessionRequest(Request):
    """Body of a keep-alive and of a close."""

    session: SessionText


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The session lasts ``valid_ms`` from the moment the request was *sent*: its time to live, less what clocks may
    drift."""

    session: str
    ttl_ms: int
    valid_ms: int


class SessionClosedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    existed: bool


# --- Cluster --------------------------------------------------------------------------------------------------------


class NodeBody(Request):
    """A :class:`~raftkit_core.types.membership.Node` as a client writes it."""

    peer: Address
    client: Address | None = None
    store_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")] | None = None
    tags: Annotated[dict[TagText, TagText], Meta(max_length=32)] = {}

    def to_node(self) -> Node:
        return Node(self.peer, self.client, self.store_id, dict(self.tags))


class InitializeRequest(Request):
    members: Annotated[dict[NodeIdText, NodeBody], Meta(min_length=1, max_length=MAX_MEMBERS)]


class AddLearnerRequest(Request):
    """``blocking``: answer when the learner has caught up. ``bind``: to the store id it shows now."""

    id: NodeIdText
    node: NodeBody
    blocking: bool = True
    bind: bool = True


class ChangeMembersRequest(Request):
    """``retain``: voters that leave stay as learners. ``force``: even if the reachable voters could not survive it."""

    voters: Annotated[list[NodeIdText], Meta(min_length=1, max_length=MAX_MEMBERS)]
    retain: bool = False
    force: bool = False


class PromoteRequest(Request):
    """Learners that become voters."""

    ids: Annotated[list[NodeIdText], Meta(min_length=1, max_length=MAX_MEMBERS)]


class SetMembersRequest(Request):
    """The voters there should be, with the address of each. ``retain``: voters that leave stay as learners."""

    members: Annotated[dict[NodeIdText, NodeBody], Meta(min_length=1, max_length=MAX_MEMBERS)]
    retain: bool = False


class RemoveMembersRequest(Request):
    ids: Annotated[list[NodeIdText], Meta(min_length=1, max_length=MAX_MEMBERS)]


class TransferRequest(Request):
    to: NodeIdText | None = None


class EmptyRequest(Request):
    """Nothing to say: ``{}`` or no body at all."""


class MembersAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The effective membership as this node knows it."""

    members: list[MemberStatus]
    joint: bool
    log_index: int | None
    id: str
    leader: str | None
    term: int


class LeaderAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``leader`` null: this node knows of none."""

    leader: str | None
    node: Node | None
    term: int


class Quorum(msgspec.Struct, frozen=True, kw_only=True):
    """Voters that answer and work, how many are needed, and how many there are."""

    working: int
    needed: int
    voters: int


class ClusterNode(msgspec.Struct, frozen=True, kw_only=True):
    """A member as the node that was asked sees it. ``status`` null: it does not answer, and ``error`` says how."""

    id: str
    node: Node | None
    voter: bool
    error: str | None
    lag_entries: int | None
    last_contact_ms: int | None
    status: NodeStatus | None
    events: list[NodeEvent]


class ClusterAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``state``: healthy, degraded, no leader, no quorum or not initialized; ``verdict`` and ``next_step`` in words."""

    asked: str
    cluster: str
    cluster_id: str | None
    state: str
    verdict: str
    next_step: str | None
    leader: str | None
    term: int
    joint: bool
    quorum: Quorum
    nodes: list[ClusterNode]


class EventsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to the node that was asked, oldest first."""

    id: str
    events: list[NodeEvent]


class InitializeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    members: list[str]


class SnapshotAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The node that has a snapshot of everything it had applied."""

    node: str


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of ``alive`` and ``ready``, as asked."""

    node: str
    alive: bool | UnsetType = UNSET
    ready: bool | UnsetType = UNSET


class RouteAnswer(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    path: str
    summary: str
    role: str


class IndexAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to ask for."""

    node: str
    routes: list[RouteAnswer]


class TransferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    leader: str


# --- Conversions ----------------------------------------------------------------------------------------------------


_NO_TEXT = re.compile(rb"[\x00-\x07\x0b\x0e-\x1f]")
"""What JSON writes as six characters each. All else takes two at most."""


def text_of(data: bytes) -> str | None:
    """``data`` as text, if it is some."""
    if _NO_TEXT.search(data) is not None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def one_of_bytes(name: str, text: str | UnsetType, data: bytes | UnsetType) -> bytes:
    """The bytes given as text or as base64. Raises: BadRequest unless exactly one is there."""
    if isinstance(text, str) and isinstance(data, UnsetType):
        return text.encode()
    if isinstance(data, bytes) and isinstance(text, UnsetType):
        return data
    what = "not both" if isinstance(text, str) else "one of them is needed"
    raise BadRequest(f"give {name} (text) or {name}_b64 (base64 bytes): {what}")


def kv_command(
    put: PutRequest | UnsetType, delete: DeleteRequest | UnsetType, cas: CasRequest | UnsetType
) -> KvCommand:
    """The one command given. Raises: BadRequest unless it is exactly one."""
    given = [form for form in (put, delete, cas) if not isinstance(form, UnsetType)]
    if len(given) != 1:
        raise BadRequest(
            f"a kv command is exactly one of put, delete and cas, not {len(given)}",
            hint='for example {"put": {"key": "hello", "value": "world"}}',
        )
    return given[0].command()


def member_list(membership: Membership) -> list[MemberStatus]:
    """Members in the order of their ids."""
    return [
        MemberStatus(id=node_id, node=node, voter=membership.is_voter(node_id))
        for node_id, node in membership.nodes.items()
    ]
