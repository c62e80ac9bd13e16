"""Only a node with a certificate of the CA, for its own id, that is a member, is heard; and it hears only such."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import msgspec
import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import AccessDenied, ConfigError, RPCError, Unreachable
from raftkit_core.plugins import load_plugins
from raftkit_core.testing.recording_service import BytesSource, RecordingService
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Node, StoredMembership
from raftkit_core.types.messages import (
    AppendEntriesRequest,
    ForwardRequest,
    HeartbeatRequest,
    InstallSnapshotRequest,
    ReadIndexRequest,
    TransferLeaderRequest,
    VoteRequest,
)
from raftkit_core.types.security import Security
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_http.frames import UPGRADE_HEADERS
from raftkit_http.network import HttpNetwork, HttpNetworkFactory
from raftkit_http.settings import HttpSettings
from raftkit_http.tls import certified_ids, check_own

LEADER = LeaderId(1, "n1")
VOTE = Vote(LEADER, True)
BEAT = HeartbeatRequest(VOTE, None, None, 500)
REQUEST = "GET /raft/v1/default/control HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"


def make_factory(security: Security, url: str = "https://127.0.0.1:0") -> HttpNetworkFactory:
    return HttpNetworkFactory(HttpSettings.parse(url, security))


class Pair:
    """n1 calls n2."""

    def __init__(self, source: HttpNetworkFactory, target: HttpNetworkFactory) -> None:
        self.source, self.target = source, target
        self.caller, self.service = RecordingService("n1"), RecordingService("n2")
        self.net: HttpNetwork

    def connect(self, node: Node | None = None) -> HttpNetwork:
        return self.source.connect("n2", node or self.target.advertised(), self.caller)


@asynccontextmanager
async def pair(caller: Security, listener: Security, url: str = "https://127.0.0.1:0") -> AsyncIterator[Pair]:
    made = Pair(make_factory(caller), make_factory(listener, url))
    try:
        await made.target.serve("default", made.service)
        made.net = made.connect()
        yield made
    finally:
        await made.source.close()
        await made.target.close()


def heard(p: Pair) -> list[str]:
    return [kind for kind, _, _ in p.service.calls]


async def test_peers_with_certificates_of_one_ca_talk_also_with_a_listener_for_clients_beside(authority: Any) -> None:
    n1, n2 = authority.node("n1"), authority.node("n2")
    for url in ("https://127.0.0.1:0", "https://127.0.0.1:0?clients=http://127.0.0.1:0"):
        async with pair(n1, n2, url) as p:
            await p.net.heartbeat(BEAT, 5)
            assert (await p.net.vote(VoteRequest(VOTE, None), 5)).granted
            node = p.target.advertised()
            assert node.peer.startswith("https://")
            assert (node.client or "").startswith("http://") == ("clients" in url)
            assert heard(p)[:3] == ["hello", "heartbeat", "vote"]


async def refused(p: Pair, words: str) -> None:
    with pytest.raises(RPCError) as caught:
        await p.net.heartbeat(BEAT, 3)
    assert words in str(caught.value)
    assert isinstance(caught.value, Unreachable)
    assert "heartbeat" not in heard(p)


async def test_a_certificate_of_another_ca_opens_no_connection(authority: Any, other_authority: Any) -> None:
    stranger = msgspec.structs.replace(other_authority.node("n1"), ca=authority.ca_file)
    async with pair(stranger, authority.node("n2")) as p:
        with pytest.raises(RPCError):
            await p.net.heartbeat(BEAT, 3)
        assert not p.service.calls


async def test_a_peer_whose_certificate_is_of_another_ca_is_not_called(authority: Any, other_authority: Any) -> None:
    imposter = msgspec.structs.replace(other_authority.node("n2"), ca=authority.ca_file)
    async with pair(authority.node("n1"), imposter) as p:
        await refused(p, "no TLS with n2")
        assert not p.service.calls


async def test_a_node_cannot_speak_for_another(authority: Any) -> None:
    async with pair(authority.node("n3"), authority.node("n2")) as p:  # says n1, is n3
        await refused(p, "the certificate is that of n3, not of n1")
        assert not p.service.calls


async def test_a_node_at_the_address_of_another_is_not_believed(authority: Any) -> None:
    async with pair(authority.node("n1"), authority.node("n3")) as p:  # n2 was called, n3 has the certificate
        await refused(p, "not of n2")
        assert not p.service.calls


async def test_the_host_name_of_a_certificate_is_checked(authority: Any) -> None:
    async with pair(authority.node("n1"), authority.node("n2", "n2", "n2.example")) as p:
        await refused(p, "no TLS with n2")


async def test_a_caller_without_a_certificate_is_refused_on_a_shared_listener_and_shut_out_of_one_for_peers(
    authority: Any,
) -> None:
    context = ssl.create_default_context(cafile=authority.ca_file)
    for url, status in (("https://127.0.0.1:0", 403), ("https://127.0.0.1:0?clients=http://127.0.0.1:0", None)):
        async with pair(authority.node("n1"), authority.node("n2"), url) as p, aiohttp.ClientSession() as http:
            asked = f"{p.target.server.url}/raft/v1/default/control"
            if status is None:
                with pytest.raises(aiohttp.ClientError):
                    await http.get(asked, ssl=context)
            else:
                async with http.get(asked, ssl=context) as response:
                    assert response.status == status
            assert not p.service.calls


async def test_who_is_no_member_is_refused_and_who_was_removed_gets_no_votes(authority: Any) -> None:
    async with pair(authority.node("n1"), authority.node("n2")) as p:
        await p.net.heartbeat(BEAT, 5)
        p.service.shut_out.add("n1")
        with pytest.raises(RPCError, match="n1 is no member"):
            await p.net.vote(VoteRequest(VOTE, None), 3)
        assert "vote" not in heard(p)
        again = p.connect()
        with pytest.raises(Unreachable, match="n1 is no member"):
            await again.heartbeat(BEAT, 3)


async def test_who_was_removed_neither_writes_nor_reads_over_a_connection_it_still_has(authority: Any) -> None:
    async with pair(authority.node("n1"), authority.node("n2")) as p:
        await p.net.heartbeat(BEAT, 5)
        assert (await p.net.forward(ForwardRequest("write", b"1", 5000), 5)).body == b"1"
        p.service.shut_out.add("n1")
        with pytest.raises(AccessDenied, match="n1 is no member"):
            await p.net.forward(ForwardRequest("write", b"2", 5000), 5)
        with pytest.raises(AccessDenied, match="n1 is no member"):
            await p.net.read_index(ReadIndexRequest("lease", 5000), 5)
        await p.net.heartbeat(BEAT, 5)  # a leader that removes itself must still be able to say so
        assert heard(p).count("forward") == 1
        assert "read_index" not in heard(p)


async def test_who_was_removed_cannot_depose_over_a_connection_it_still_has(authority: Any) -> None:
    """What it began as leader it may end, a new leadership it may not claim."""
    entry = Entry(LogId(LEADER, 0), 0, NORMAL, b"x")
    async with pair(authority.node("n1"), authority.node("n2")) as p:
        await p.net.heartbeat(BEAT, 5)
        await p.net.append_entries(AppendEntriesRequest(VOTE, None, [entry], None, 500), 5)
        p.service.shut_out.add("n1")
        await p.net.heartbeat(BEAT, 5)
        await p.net.append_entries(AppendEntriesRequest(VOTE, None, [entry], None, 500), 5)
        higher = Vote(LeaderId(7, "n1"), True)
        for call in (
            p.net.heartbeat(HeartbeatRequest(higher, None, None, 500), 5),
            p.net.append_entries(AppendEntriesRequest(higher, None, [], None, 500), 5),
            p.net.transfer_leader(TransferLeaderRequest(higher, None), 5),
        ):
            with pytest.raises(RPCError, match="n1 is no member"):
                await call
        assert heard(p).count("heartbeat") == 2
        assert heard(p).count("append_entries") == 2
        assert "transfer_leader" not in heard(p)


def test_a_certificate_that_names_its_node_speaks_for_no_host_of_that_name() -> None:
    """Hosts are often named like nodes, and ``raftkit certs dev --host`` gives every certificate all of them."""
    names = (("URI", "raftkit:node:n1"), ("DNS", "n1"), ("DNS", "n2"), ("DNS", "localhost"))
    assert certified_ids({"subjectAltName": names}) == {"n1"}
    assert certified_ids({"subjectAltName": names[1:]}) == {"n1", "n2"}


async def test_a_resumed_session_of_tls_1_2_is_no_proof(authority: Any) -> None:
    """Its certificate is not looked at again, and may have been taken out of trust since."""
    n1 = authority.node("n1")
    context = ssl.create_default_context(cafile=authority.ca_file)
    context.load_cert_chain(n1.cert, n1.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    request = REQUEST.format(headers="".join(f"{name}: {value}\r\n" for name, value in UPGRADE_HEADERS.items()))

    def ask(port: int, session: ssl.SSLSession | None) -> tuple[bool, str, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as wrapped,
        ):
            wrapped.sendall(request.encode())
            answer = bool(wrapped.session_reused), wrapped.recv(4096).decode()[:12], wrapped.session
            with suppress(OSError):
                wrapped.unwrap()  # only a session that ended in order can be resumed
            return answer

    async with pair(n1, authority.node("n2")) as p:
        reused, answer, session = await asyncio.to_thread(ask, p.target.server.port, None)
        assert (reused, answer) == (False, "HTTP/1.1 101")
        reused, answer, _ = await asyncio.to_thread(ask, p.target.server.port, session)
        assert not reused or answer == "HTTP/1.1 403"


async def test_a_snapshot_with_another_nodes_certificate_is_refused(authority: Any) -> None:
    """The ticket alone is not enough: n3 may have seen it."""
    request = InstallSnapshotRequest(VOTE, SnapshotMeta(LogId(LEADER, 1), StoredMembership(), "ab-1", 0, 3, ""))
    async with pair(authority.node("n1"), authority.node("n2")) as p:
        ticket = p.target._endpoint._snapshots.announce("default", request, PeerIdentity("n1", p.caller.store_id, 1))
        async with aiohttp.ClientSession() as http:
            for security, status in ((authority.node("n3"), 403), (authority.node("n1"), 403)):
                context = ssl.create_default_context(cafile=authority.ca_file)
                context.load_cert_chain(security.cert, security.key)
                url = f"{p.target.server.url}/raft/v1/default/snapshot/ab-1?offset=0"
                async with http.put(url, ssl=context, data=b"abc", headers={"Raftkit-Ticket": ticket}) as response:
                    assert response.status == status  # the second time the ticket is spent
        assert "install_snapshot" not in heard(p)


async def test_there_is_no_way_back_to_plain_text(authority: Any) -> None:
    n1, n2 = authority.node("n1"), authority.node("n2")
    with pytest.raises(ConfigError, match="not https://"):
        make_factory(n1, "http://127.0.0.1:0")  # a forgotten "s"
    with pytest.raises(ConfigError, match="needs ca, cert, key"):
        HttpSettings.parse("https://127.0.0.1:0")
    async with pair(n1, n2) as p:
        with pytest.raises(ConfigError, match="not https://"):
            p.connect(Node(p.target.advertised().peer.replace("https", "http")))
        reader, writer = await asyncio.open_connection("127.0.0.1", p.target.server.port)
        writer.write(b"GET /raft/v1/default/control HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP")
        writer.close()
        assert not p.service.calls


async def test_tls_below_1_2_and_broken_files_are_refused(authority: Any) -> None:
    n1, n2 = authority.node("n1"), authority.node("n2")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with pair(n1, n2) as p:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", p.target.server.port, ssl=old)
    for broken, words in (
        (msgspec.structs.replace(n1, key=n2.key), "cannot be used"),
        (msgspec.structs.replace(n1, key=n1.key.with_name("missing")), "No such file"),
        (msgspec.structs.replace(n1, ca=n1.key), "the CA file"),
    ):
        with pytest.raises(ConfigError, match=words):
            make_factory(broken)


async def test_new_certificates_are_used_without_a_restart_and_a_ca_can_be_taken_out(
    authority: Any, other_authority: Any
) -> None:
    n1, n2 = authority.node("n1"), authority.node("n2")
    async with pair(n1, n2) as p:
        await p.net.heartbeat(BEAT, 5)
        # Both CAs in overlap, then a new certificate for each node, then the old CA is taken out: one step at a time.
        old, new = authority.ca_file.read_bytes(), other_authority.ca_file.read_bytes()
        authority.ca_file.write_bytes(old + new)
        await _reload(p)
        other_authority.node("n2", file="n2")
        p.target.reload()
        await _reload(p)
        other_authority.node("n1", file="n1")
        await _reload(p)
        authority.ca_file.write_bytes(new)
        await _reload(p)
        # Who still has a certificate of the old CA is out; half a pair of files changes nothing.
        late = authority.node("n1", file="late")
        stale = HttpNetworkFactory(HttpSettings.parse("https://127.0.0.1:0", late))
        outsider = stale.connect("n2", p.target.advertised(), p.caller)
        with pytest.raises(RPCError):
            await outsider.heartbeat(BEAT, 3)
        await stale.close()
        n2.cert.write_text("half")
        p.target.reload()
        await _reload(p)


async def _reload(p: Pair) -> None:
    """Both sides read their files; a connection made before still works, and so does a new one."""
    p.source.reload()
    p.target.reload()
    await p.net.heartbeat(BEAT, 5)
    fresh = p.connect()
    await fresh.heartbeat(BEAT, 5)
    await fresh.close()


async def test_a_snapshot_is_streamed_over_tls(authority: Any) -> None:
    content = bytes(range(256)) * 4096
    meta = SnapshotMeta(LogId(LEADER, 9), StoredMembership(), "ab-1", 0, len(content), "")
    async with pair(authority.node("n1"), authority.node("n2")) as p:
        await p.net.install_snapshot(InstallSnapshotRequest(VOTE, meta), BytesSource(meta, content), 10)
        assert bytes(p.service.snapshot_bytes["ab-1"]) == content


def test_a_node_does_not_begin_with_the_certificate_of_another(authority: Any) -> None:
    check_own(authority.node("n1"), "n1")
    context = AdapterContext("n1", clock=SystemClock(), security=authority.node("n2"))
    with pytest.raises(ConfigError, match=r"is that of .*n2, not of n1") as refused:
        load_plugins().network("https://127.0.0.1:0", context)
    assert "raftkit certs dev n1" in str(refused.value.hint)


def test_a_certificate_that_the_own_ca_does_not_know_is_warned_of(
    authority: Any, other_authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = msgspec.structs.replace(other_authority.node("n1", file="mixed"), ca=authority.ca_file)
    check_own(mixed, "n1")
    assert "peers will refuse it" in caplog.text
