"""A whole cluster with TLS and tokens: operated, certificates exchanged under load, and no secret in what it says."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import Config, Node, open_raft
from raftkit_core.errors import AccessDenied, ConfigError
from raftkit_core.network.client import MemberStatus
from raftkit_core.network.tokens import new_token, revoke_token
from raftkit_core.testing.ports import free_ports
from raftkit_core.types.kv import Put
from raftkit_http import Client
from raftkit_http import network as network_module

NODES = ("n1", "n2", "n3")


async def test_certificates_are_exchanged_under_writes_without_one_that_fails(
    authority: Any, other_authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """T28, and T15 in one process: with debug logging, neither tokens nor keys are in the log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(network_module, "RELOAD_INTERVAL", 0.05)
    tokens = tmp_path / "tokens"
    secrets = {role: new_token(tokens, f"{role}er", role) for role in ("read", "write", "admin")}  # type: ignore[arg-type]
    urls = [f"https://127.0.0.1:{port}" for port in free_ports(3)]
    members = {node_id: Node(url) for node_id, url in zip(NODES, urls, strict=True)}
    import msgspec

    async with AsyncExitStack() as stack:
        rafts = {}
        for node_id in NODES:
            security = msgspec.structs.replace(authority.node(node_id), tokens=tokens)
            rafts[node_id] = await stack.enter_async_context(
                open_raft(
                    node_id,
                    storage="memory:",
                    network=members[node_id].peer,
                    security=security,
                    config=Config(),
                    data_dir=tmp_path / node_id,
                )
            )
        await rafts["n1"].initialize(members)
        old, new = authority.ca_file.read_bytes(), other_authority.ca_file.read_bytes()
        both = tmp_path / "both.pem"
        both.write_bytes(old + new)
        writer = await stack.enter_async_context(Client(urls, token=secrets["write"], ca=both))
        reader = await stack.enter_async_context(Client(urls, token=secrets["read"], ca=both))
        await rafts["n1"].wait(10).any_leader()
        stop = asyncio.Event()
        counts = [0, 0]

        async def write(name: str) -> None:
            while not stop.is_set():
                await writer.kv_put(name, b"x")
                counts[0] += 1

        async def elsewhere() -> None:
            """New connections all the time: a fresh client for each write."""
            while not stop.is_set():
                async with Client(urls, token=secrets["write"], ca=both) as fresh:
                    await fresh.kv_put("fresh", b"x")
                    counts[1] += 1

        async def more_writes() -> None:
            """Both go on: not one of them failed, or the tasks would be over."""
            goal = [count + 2 for count in counts]
            async with asyncio.timeout(30):
                while counts[0] < goal[0] or counts[1] < goal[1]:
                    assert not any(task.done() for task in running), [task for task in running if task.done()]
                    await asyncio.sleep(0.005)

        running = [asyncio.create_task(write("a")), asyncio.create_task(elsewhere())]
        steps = [
            lambda: authority.ca_file.write_bytes(old + new),
            lambda: [other_authority.node(node_id, file=node_id) for node_id in NODES],
            lambda: authority.ca_file.write_bytes(new),
        ]
        for step in steps:
            await more_writes()
            step()
            for raft in rafts.values():
                raft.reload()
            await more_writes()
        stop.set()
        await asyncio.gather(*running)
        # Roles hold over the client library, and a revoked token is out without a restart.
        with pytest.raises(AccessDenied, match="read"):
            await reader.kv_put("a", b"y")
        with pytest.raises(AccessDenied, match="needs admin"):
            await writer.transfer_leader()
        assert (await reader.status()).leader is not None
        revoke_token(tokens, "reader")
        async with asyncio.timeout(30):
            while caplog.text.count("read new tokens") < 3:  # noqa: ASYNC110 (by themselves, without being told)
                await asyncio.sleep(0.01)
        with pytest.raises(AccessDenied, match="a valid token is needed"):
            await reader.status()
        await rafts["n1"].write(Put("b", b"x"))
    said = caplog.text
    assert all(secret not in said for secret in secrets.values())
    assert "read new certificates" in said
    assert "PRIVATE KEY" not in said
    for node_id in NODES:
        assert (tmp_path / f"{node_id}.key").read_text().split("\n")[1] not in said


def test_a_token_is_not_sent_in_plain_text_over_a_network() -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        Client(["http://n1.example:7401"], token="t")
    client = Client(["https://n1.example:7401"], token="canary-1")
    client._endpoints.prefer("http://n2.example:7401")
    assert client._endpoints.order() == ["https://n1.example:7401"]
    assert "canary" not in repr(client)


async def test_a_token_is_not_sent_where_a_node_on_this_machine_says_the_others_are() -> None:
    """A client beside its node speaks plain text with it; the members it hears of are on the network."""
    client = Client(["http://127.0.0.1:7401"], token="t")
    client._endpoints.prefer("http://10.0.0.2:7401")
    client._endpoints.learn([MemberStatus(id="n2", node=Node("http://10.0.0.2:7401"), voter=True)])
    client._endpoints.learn([MemberStatus(id="n3", node=Node("https://10.0.0.3:7401"), voter=True)])
    assert client._endpoints.order() == ["http://127.0.0.1:7401", "https://10.0.0.3:7401"]
    async with client:
        with pytest.raises(ConfigError, match="unencrypted"):
            await client.status_of("http://10.0.0.2:7401")
        with pytest.raises(ConfigError, match="unencrypted"):
            await anext(client.read_snapshot("http://10.0.0.2:7401"))
    client = Client(["http://127.0.0.1:7401"])
    client._endpoints.prefer("http://10.0.0.2:7401")
    assert client._endpoints.order() == ["http://10.0.0.2:7401", "http://127.0.0.1:7401"]


# --- With processes -------------------------------------------------------------------------------------------------


class Processes:
    """Three nodes as ``raftkit node run`` starts them, and everything they and the command line ever said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.ports = free_ports(6)
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, "RAFTKIT_CONFIG_DIR": str(folder / "config"), "NO_COLOR": "1"}
        for name in ("RAFTKIT_ENDPOINTS", "RAFTKIT_CONTEXT", "RAFTKIT_TOKEN_FILE", "RAFTKIT_CACERT"):
            self.environment.pop(name, None)

    def run(self, *arguments: str, status: int = 0) -> str:
        """One command of the command line, also with -vv and --json."""
        done = subprocess.run(
            [sys.executable, "-m", "raftkit_cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.said.append(done.stdout + done.stderr)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def start(self, number: int) -> None:
        node_id = NODES[number]
        members = ",".join(
            f"{name}={self._url(place)}?client={self._client(place)}" for place, name in enumerate(NODES)
        )
        (self.folder / f"{node_id}.toml").write_text(
            f"""
            [node]
            id = "{node_id}"
            data_dir = "data/{node_id}"
            [network]
            url = "{self._url(number)}?clients={self._client(number)}"
            [security]
            ca = "certs/ca.pem"
            cert = "certs/{node_id}.pem"
            key = "certs/{node_id}.key"
            tokens = "tokens"
            """
        )
        with (self.folder / f"{node_id}.log").open("ab") as log:
            self.nodes[node_id] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "raftkit_cli", "-vv", "node", "run", "-c", f"{node_id}.toml"),
                    *("--initial-cluster", members),
                ],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _url(self, number: int) -> str:
        return f"https://127.0.0.1:{self.ports[number]}"

    def _client(self, number: int) -> str:
        return f"https://127.0.0.1:{self.ports[number + 3]}"

    @property
    def endpoints(self) -> str:
        return ",".join(self._client(number) for number in range(3))

    def log(self, node_id: str) -> str:
        return (self.folder / f"{node_id}.log").read_text(errors="replace")


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    made = Processes(folder)
    try:
        yield made
    finally:
        for process in made.nodes.values():
            process.kill()
            process.wait()


@pytest.mark.process
@pytest.mark.timeout(300)
def test_a_full_run_of_a_secure_cluster_shows_its_secrets_nowhere(tmp_path: Path) -> None:
    with processes(tmp_path) as p:
        p.run("certs", "dev", *NODES)
        p.run("token", "new", "ops", "--role", "admin")
        p.run("token", "new", "app", "--role", "write", "--json")
        p.run("token", "list", "-vv")
        for number in range(3):
            p.start(number)
        p.run("context", "set", "secure", "-e", p.endpoints, "--cacert", "certs/ca.pem", "--token-file", "ops.token")
        deadline = time.monotonic() + 60
        while True:
            try:
                p.run("kv", "put", "greeting", "hello", "-vv")
                break
            except AssertionError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert "hello" in p.run("kv", "get", "greeting")
        for arguments in (
            ("status",),
            ("status", "--json"),
            ("member", "list", "--json"),
            ("leader", "show", "-vv"),
            ("context", "list", "--json"),
            ("version", "--all"),
            ("plugins", "list", "--json"),
            ("certs", "show", "certs/n1.pem"),
        ):
            p.run(*arguments)
        p.run("kv", "put", "a", "1", "--token-file", "app.token")
        p.run("leader", "transfer", "--token-file", "app.token", status=7)
        p.run("leader", "transfer", "-vv")
        (tmp_path / "wrong.token").write_text("raftkit_wrong-one")
        p.run("status", "--token-file", "wrong.token", "-vv", status=7)
        p.run("status", "--cacert", "certs/n1.pem", "-vv", status=4)
        # SIGHUP reads new certificates; SIGTERM hands leadership over and ends with status 0.
        p.run("certs", "dev", "n1", "n2", "n3")
        for node_id, process in p.nodes.items():
            process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while "read new certificates" not in p.log(node_id):
                assert time.monotonic() < deadline, p.log(node_id)
                time.sleep(0.05)
        p.run("kv", "put", "b", "2")
        for process in p.nodes.values():
            process.send_signal(signal.SIGTERM)
        assert [process.wait(20) for process in p.nodes.values()] == [0, 0, 0]
        secrets = [(tmp_path / f"{name}.token").read_text().strip() for name in ("ops", "app", "wrong")]
        for key in (tmp_path / "certs").glob("*.key"):
            secrets.append(key.read_text().split("\n")[1])
        said = "\n".join([*p.said, *(p.log(node_id) for node_id in NODES)])
        assert [secret for secret in secrets if secret in said] == []
        assert re.search(r"raftkit\.audit: ops from 127\.0\.0\.1: POST /v1/leader/transfer 200", said)
        assert re.search(r"raftkit\.audit: app from 127\.0\.0\.1: POST /v1/leader/transfer 403", said)
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "certs").iterdir())
