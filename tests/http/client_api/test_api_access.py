"""Who may ask for what: every route with every role, wrong tokens, other hosts, and what is written down."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest

from raftkit_core.errors import (
    BrokenPlugin,
    ConfigError,
    Fatal,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumNotEnough,
    RaftError,
    RemoteError,
    StorageFull,
)
from raftkit_core.network import tokens as tokens_module
from raftkit_core.network.client import NodeStatus, PeerStatus, StorageStatus
from raftkit_core.network.tokens import new_token, parse_tokens, read_tokens, revoke_token
from raftkit_core.types.kv import Put
from raftkit_core.types.metrics import NodeEvent
from raftkit_core.types.security import Security
from raftkit_http.access import ADDRESSES_MAX, FAILURES_BURST, Access, FailureLimit, host_of
from raftkit_http.api.discretion import without_paths
from raftkit_http.api.routes import route_defs, routes

ROLES = ("read", "write", "admin")
OPEN = {"/livez", "/readyz", "/v1", "/openapi.json", "/ui"}
"""The only routes that ask for no token: they show no data."""


class Secured:
    """A served node that asks for tokens."""

    def __init__(self, node: Any, secrets: dict[str, str], access: Access, tokens: Path) -> None:
        self.node = node
        self.secrets = secrets
        self.access = access
        self.tokens = tokens

    def bearer(self, role: str | None) -> dict[str, str]:
        return {} if role is None else {"Authorization": f"Bearer {self.secrets[role]}"}

    async def status(self, method: str, path: str, headers: dict[str, str]) -> int:
        async with self.node.http.request(method, self.node.url + path, headers=headers) as response:
            return int(response.status)


@asynccontextmanager
async def secured(api_node: Any, folder: Path, **settings: Any) -> AsyncIterator[Secured]:
    tokens = folder / "tokens"
    secrets = {role: new_token(tokens, f"{role}er", role) for role in ROLES}  # type: ignore[arg-type]
    access = Access(Security(tokens=tokens, **settings), names=frozenset({"n1.example"}))
    async with api_node(access=access) as node:
        yield Secured(node, secrets, access, tokens)


def example(path: str) -> str:
    """A path that a route's pattern matches."""
    return re.sub(r"\{\w+(:[^}]*)?\}", "n9", path)


async def test_every_route_with_every_role(api_node: Any, tmp_path: Path) -> None:
    """T18. A route that is added appears here by itself; one that asks for no token must be listed above."""
    assert {route.path for route in routes() if route.role == "open"} <= OPEN
    rank = {"open": -1, "read": 0, "write": 1, "admin": 2}
    assert {route.role for route in routes()} == set(rank)
    async with secured(api_node, tmp_path) as s:
        for route in routes():
            for given in (None, *ROLES):
                path = example(route.path)
                if route.long_lived and rank[given or "open"] >= rank[route.role]:
                    continue  # a stream that would be served; /v1/ws has its own test below
                status = await s.status(route.method, path, s.bearer(given))
                allowed = rank[given or "open"] >= rank[route.role]
                expected = None if allowed else (401 if given is None else 403)
                assert (status in (401, 403)) is (expected is not None), (route.method, path, given, status)
                if expected is not None:
                    assert status == expected, (route.method, path, given)
        assert s.node.raft.operations == [] or all("n9" in str(done) for done in s.node.raft.operations)


def test_every_path_that_is_served_stands_in_the_table() -> None:
    api = SimpleNamespace(guarded=lambda route: route)
    served = {(definition.method, definition.path) for definition in route_defs(api)}  # type: ignore[arg-type]
    assert served - {(route.method, route.path) for route in routes()} == {("*", "/{tail:.*}")}


async def test_unknown_paths_say_nothing_more_to_strangers(api_node: Any, tmp_path: Path) -> None:
    async with secured(api_node, tmp_path) as s:
        assert await s.status("GET", "/v1/nothing", {}) == 404
        assert await s.status("PATCH", "/v1/status", {}) == 405


async def test_on_a_socket_each_write_needs_the_role(api_node: Any, tmp_path: Path) -> None:
    async with secured(api_node, tmp_path) as s:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await s.node.http.ws_connect(s.node.url + "/v1/ws")
        assert refused.value.status == 401
        async with s.node.http.ws_connect(s.node.url + "/v1/ws", headers=s.bearer("read")) as socket:
            await socket.send_bytes(msgspec.msgpack.encode([1, "write", b"x"]))
            answer = msgspec.msgpack.decode((await socket.receive(5)).data)
            assert answer[:2] == [1, False]
            assert answer[2]["code"] == "ACCESS_DENIED"
            await socket.send_bytes(msgspec.msgpack.encode([2, "read", {"get": {"key": "k"}}]))
            assert msgspec.msgpack.decode((await socket.receive(5)).data)[:2] == [2, True]
        assert s.node.raft.written == []


async def test_a_revoked_token_is_refused_with_the_next_request_of_an_open_socket(
    api_node: Any, tmp_path: Path
) -> None:
    async with (
        secured(api_node, tmp_path) as s,
        s.node.http.ws_connect(s.node.url + "/v1/ws", headers=s.bearer("write")) as socket,
    ):
        for number, ok in ((1, True), (2, False)):
            await socket.send_bytes(msgspec.msgpack.encode([number, "read", {"get": {"key": "k"}}]))
            answer = msgspec.msgpack.decode((await socket.receive(5)).data)
            assert answer[:2] == [number, ok]
            if ok:
                revoke_token(s.tokens, "writeer")
                s.access.refresh()
        assert answer[2]["code"] == "ACCESS_DENIED"
        assert answer[2]["outcome"] == "not_applied"
        new_token(s.tokens, "writeer", "write")  # the same name is not the same token
        s.access.refresh()
        await socket.send_bytes(msgspec.msgpack.encode([3, "read", {"get": {"key": "k"}}]))
        assert msgspec.msgpack.decode((await socket.receive(5)).data)[:2] == [3, False]


async def test_strangers_cannot_fill_the_record_of_admin_actions(
    api_node: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "raftkit.audit")
    async with secured(api_node, tmp_path) as s:
        for _ in range(3 * FAILURES_BURST):
            assert await s.status("POST", "/v1/snapshot", {}) == 401
        refused = [record for record in caplog.records if record.name == "raftkit.audit"]
        assert FAILURES_BURST <= len(refused) < 2 * FAILURES_BURST
        assert await s.status("POST", "/v1/snapshot", s.bearer("read")) == 403
        assert caplog.records[-1].getMessage().startswith("reader from")


PRIVATE = "/var/lib/secret/n1.db"


async def test_why_a_node_stopped_is_for_admins(api_node: Any, tmp_path: Path) -> None:
    """It may name files of the machine."""
    async with secured(api_node, tmp_path) as s:
        s.node.raft.fatal = f"{PRIVATE}: the disk is full"
        for path, status in (("/livez", 500), ("/readyz", 503)):
            for role, told in ((None, False), ("read", False), ("write", False), ("admin", True)):
                async with s.node.http.get(s.node.url + path, headers=s.bearer(role)) as response:
                    assert response.status == status
                    assert (PRIVATE in await response.text()) is told


@pytest.mark.parametrize(
    "error",
    [
        Fatal(f"n1 has stopped: {PRIVATE}: the disk is full"),
        StorageFull(f"{PRIVATE} cannot grow", hint=f"make room on the disk of {PRIVATE}"),
        BrokenPlugin(f"plugin of {PRIVATE} broke"),
        RemoteError(f"n2: {PRIVATE} cannot grow"),
        OutcomeUnknown(f"n2 failed: {PRIVATE} cannot grow"),
        QuorumNotEnough(f"no leader was confirmed in time: sqlite://{PRIVATE} is slow", hint=f"look at {PRIVATE}"),
    ],
    ids=lambda error: error.code,
)
async def test_below_admin_nobody_is_told_of_files_but_everybody_what_to_do(
    api_node: Any, tmp_path: Path, error: RaftError
) -> None:
    async with secured(api_node, tmp_path) as s:
        s.node.raft.failure = error
        pack = msgspec.msgpack.encode
        for role, told in (("read", False), ("write", False), ("admin", True)):
            said = []
            for method, path in (
                ("GET", "/v1/kv/a"),
                ("PUT", "/v1/kv/a"),
                ("GET", "/v1/cluster"),
                ("GET", "/v1/watch"),
            ):
                if method == "GET" or role != "read":
                    async with s.node.http.request(
                        method, s.node.url + path, headers=s.bearer(role), data=b"v" if method == "PUT" else None
                    ) as response:
                        body = await response.json()
                        assert (body["error"]["code"], body["error"]["outcome"]) == (error.code, error.outcome)
                        said.append(body["error"])
            async with s.node.http.ws_connect(s.node.url + "/v1/ws", headers=s.bearer(role)) as socket:
                await socket.send_bytes(pack([1, "read", {"get": {"key": "k"}}]))
                said.append(msgspec.msgpack.decode((await socket.receive(5)).data)[2])
            for answer in said:
                assert (PRIVATE in answer["message"]) is told
                assert "secret" not in answer["message"] + (answer["hint"] or "") or told


async def test_status_and_events_name_no_files_below_admin(api_node: Any, tmp_path: Path) -> None:
    async with secured(api_node, tmp_path) as s:
        raft = s.node.raft
        plain = raft.status

        async def status(digest: bool = False) -> NodeStatus:
            return msgspec.structs.replace(
                await plain(digest),
                fatal=f"{PRIVATE}: the disk is full",
                storage=StorageStatus(adapter="sqlite", location=PRIVATE, size_bytes=4096),
                replication={"n2": PeerStatus(last_error=f"n2: data/secret/n2.db is damaged, and {PRIVATE}")},
            )

        raft.status = status
        raft.told.append(NodeEvent(4, 1004, 1, "fatal", f"n1 stopped for good: {PRIVATE} is full"))
        for role, told in (("read", False), ("write", False), ("admin", True)):
            for path in ("/v1/status", "/v1/cluster", "/v1/events"):
                async with s.node.http.get(s.node.url + path, headers=s.bearer(role)) as response:
                    assert response.status == 200
                    text = await response.text()
                    assert ("secret" in text) is told, (role, path)
                    assert "stopped for good" in text or told, "that it stopped is for everybody"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot write /srv/raft/n1.db: disk full", "cannot write …: disk full"),
        ("'/srv/raft/n1.db' and sqlite:///srv/n1.db, or C:\\raft\\n1.db", "'…' and …, or …"),
        ("data/n1/log.db is damaged", "… is damaged"),
        ("n2 at http://n2.example:7401 refused POST /v1", "n2 at http://n2.example:7401 refused POST /v1"),
        ("belongs to default/default, 3/5 voters, and/or both", "belongs to default/default, 3/5 voters, and/or both"),
    ],
)
def test_paths_are_told_apart_from_addresses(text: str, told: str) -> None:
    assert without_paths(text) == told


async def test_a_key_that_looks_like_a_path_is_named_to_whoever_used_it(api_node: Any, tmp_path: Path) -> None:
    async with secured(api_node, tmp_path) as s:
        s.node.raft.failure = PreconditionFailed("/etc/app/key has revision 5")
        async with s.node.http.put(s.node.url + "/v1/kv/a", headers=s.bearer("write"), data=b"v") as response:
            assert "/etc/app/key" in await response.text()


async def test_a_watch_ends_when_its_token_is_revoked(api_node: Any, tmp_path: Path) -> None:
    async with secured(api_node, tmp_path) as s:
        async with s.node.http.get(s.node.url + "/v1/watch", headers=s.bearer("read")) as response:
            assert b"progress" in await response.content.readuntil(b"\n\n")
            revoke_token(s.tokens, "reader")
            s.access.refresh()
            await s.node.raft.write(Put("k", b"secret"))
            said = await asyncio.wait_for(response.content.read(), 60)
        assert b"secret" not in said
        assert b"event: end" in said
        assert b"ACCESS_DENIED" in said


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer x", "Bearer \u00e9", "Bearer " + "x" * 600, "bearer raftkit_"],
)
async def test_what_is_no_token_is_401_without_detail(api_node: Any, tmp_path: Path, header: str) -> None:
    async with (
        secured(api_node, tmp_path) as s,
        s.node.http.get(s.node.url + "/v1/status", headers={"Authorization": header}) as response,
    ):
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        document = await response.json()
        assert document["error"]["message"] == "a valid token is needed"
        assert document["error"]["outcome"] == "not_applied"


async def test_ten_thousand_wrong_tokens_are_cheap_quiet_and_lock_nobody_out(
    api_node: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """T20: through the door a few times, then at the counter itself, where 10,000 are quick."""
    async with secured(api_node, tmp_path) as s:
        wrong = {"Authorization": "Bearer raftkit_wrong"}
        statuses = [await s.status("GET", "/v1/status", wrong) for _ in range(FAILURES_BURST + 5)]
        assert statuses == [401] * FAILURES_BURST + [429] * 5
        assert await s.status("GET", "/v1/status", s.bearer("read")) == 200
        for _ in range(10_000):
            s.access.failures.take("127.0.0.1", asyncio.get_running_loop().time())
        assert await s.status("GET", "/v1/status", s.bearer("read")) == 200
        assert await s.status("GET", "/livez", wrong) == 200
    assert len([record for record in caplog.records if "wrong token" in record.message]) < FAILURES_BURST + 5
    assert "raftkit_wrong" not in caplog.text


def test_failures_are_forgiven_in_time_and_remembered_for_a_bounded_number_of_addresses() -> None:
    limit = FailureLimit()
    assert [limit.take("a", 0.0) for _ in range(FAILURES_BURST + 1)] == [True] * FAILURES_BURST + [False]
    assert limit.take("b", 0.0)
    assert limit.take("a", 1.5)
    assert not limit.take("a", 1.5)
    for number in range(ADDRESSES_MAX + 10):
        limit.take(f"x{number}", 2.0)
    assert len(limit._left) == ADDRESSES_MAX


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7401", 200),
        ("127.0.0.1", 200),
        ("[::1]:7401", 200),
        ("n1.example:7401", 200),
        ("N1.EXAMPLE.", 200),
        ("raft.example", 200),
        ("evil.example", 403),
        ("evil.example:7401", 403),
        ("localhost.evil.example", 403),
        ("", 403),
        ("user@localhost:x", 403),
    ],
)
async def test_a_page_whose_name_was_rebound_to_this_machine_gets_nothing(
    api_node: Any, host: str, status: int
) -> None:
    """T26. Without tokens the name in Host is all there is to know it by."""
    access = Access(Security(allowed_hosts=("raft.example",)), names=frozenset({"n1.example"}))
    async with api_node(access=access) as node:
        async with node.http.get(node.url + "/v1/status", headers={"Host": host}) as response:
            assert response.status == status
        async with node.http.put(node.url + "/v1/kv/k", data=b"1", headers={"Host": host}) as response:
            assert response.status == status
            assert "Access-Control-Allow-Origin" not in response.headers
        assert len(node.raft.written) == (status == 200)


async def test_with_a_token_any_host_will_do_but_no_other_origin(api_node: Any, tmp_path: Path) -> None:
    async with secured(api_node, tmp_path) as s:
        behind_a_proxy = {**s.bearer("write"), "Host": "proxy.example"}
        assert await s.status("GET", "/v1/status", behind_a_proxy) == 200
        assert await s.status("GET", "/v1/status", {**behind_a_proxy, "Origin": "http://evil.example"}) == 403
        assert await s.status("OPTIONS", "/v1/kv/k", {"Origin": "http://evil.example"}) in (403, 405)


async def test_admin_actions_are_written_down_done_or_refused_and_nothing_else(
    api_node: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="raftkit.audit")
    async with secured(api_node, tmp_path) as s:
        await s.status("DELETE", "/v1/members/n9", s.bearer("admin"))
        await s.status("DELETE", "/v1/members/n9", s.bearer("write"))
        await s.status("DELETE", "/v1/members/%0aforged%20line", {})
        await s.status("GET", "/v1/status", s.bearer("admin"))
        secrets = list(s.secrets.values())
    lines = [record.getMessage() for record in caplog.records if record.name == "raftkit.audit"]
    assert lines[0].startswith("adminer from 127.0.0.1: DELETE /v1/members/n9 ")
    assert lines[1] == "writeer from 127.0.0.1: DELETE /v1/members/n9 403"
    assert lines[2].endswith(" 401")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert not any(secret in line for line in lines for secret in secrets)


# --- The file -------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_as_a_hash_in_a_file_of_the_owner_and_compared_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T19."""
    path = tmp_path / "tokens"
    secrets = [new_token(path, name, "read") for name in ("a", "b", "c")]
    assert path.stat().st_mode & 0o777 == 0o600
    assert not any(secret in path.read_text() for secret in secrets)
    assert all(len(secret) > 40 for secret in secrets)
    compared: list[tuple[bytes, bytes]] = []
    compare = tokens_module.hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(tokens_module.hmac, "compare_digest", counting)
    table = read_tokens(path)
    for secret in (*secrets, "wrong"):
        compared.clear()
        found = table.find(secret)
        assert (found is None) == (secret == "wrong")
        assert len(compared) == 3, "every token is compared, whichever it is"
    assert "digest" not in repr(table.tokens)


def test_a_revoked_token_is_gone_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# ours\n")
    first, second = new_token(path, "first", "read"), new_token(path, "second", "admin")
    revoke_token(path, "first")
    assert path.read_text().startswith("# ours\n")
    assert read_tokens(path).find(first) is None
    found = read_tokens(path).find(second)
    assert found is not None
    assert found.role == "admin"
    with pytest.raises(ConfigError, match="has no token 'first'"):
        revoke_token(path, "first")


@pytest.mark.parametrize(
    "text",
    ["ops admin", "ops root sha256:" + "0" * 64, "ops admin sha256:xyz", "raftkit_secret-in-the-wrong-file", "\x00"],
)
def test_a_line_that_is_wrong_is_named_by_number_and_never_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="line 2") as caught:
        parse_tokens("# fine\n" + text)
    assert text not in str(caught.value)
    hash_ = "sha256:" + "0" * 64
    with pytest.raises(ConfigError, match="already"):
        parse_tokens(f"a read {hash_}\na admin {hash_}")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_tokens(tmp_path / "missing")
    with pytest.raises(ConfigError, match="no name for a token"):
        new_token(tmp_path / "tokens", "a b", "read")


def test_a_tokens_file_that_breaks_leaves_the_former_tokens_in_force(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    new_token(path, "a", "read")
    access = Access(Security(tokens=path))
    assert not access.refresh()
    path.write_text("half a li")
    with pytest.raises(ConfigError):
        access.refresh()
    assert access._table is not None
    assert [token.name for token in access._table.tokens] == ["a"]


def test_hosts_are_read_from_headers_without_trust() -> None:
    assert host_of("[::1]:80") == "::1"
    assert host_of("[::1") == ""
    assert host_of("A.b:99") == "a.b"


async def test_two_tokens_in_one_request_are_none(api_node: Any, tmp_path: Path) -> None:
    """Whoever stands before the node may have judged the one, and the node would take the other."""
    async with secured(api_node, tmp_path) as s:
        good = s.bearer("admin")["Authorization"]
        for values in ((good, good), (good, "Bearer x"), ("Bearer x", good)):
            headers = [("Authorization", value) for value in values]
            async with s.node.http.get(f"{s.node.url}/v1/status", headers=headers) as response:
                assert response.status == 401
