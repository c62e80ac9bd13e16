"""An idle cluster of processes on SQLite syncs nothing: run with ``-m process``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raftkit_cli.cluster.layout import ClusterFolder, LocalCluster, free_ports

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

IDLE_S = 60.0


def written_bytes(pid: int) -> int:
    """What the process has caused to be written to a disk."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes:")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc/PID/io (Linux)")
def test_a_minute_of_an_idle_cluster_syncs_and_writes_nothing(tmp_path: Path) -> None:
    plan = LocalCluster.plan(
        cluster="idle", count=3, ports=free_ports(3), storage="sqlite:raft.db", network="http", state_machine="kv"
    )
    folder = ClusterFolder(tmp_path / "cluster", plan)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAFTKIT_")}
    tracers: list[tuple[subprocess.Popen[bytes], Path]] = []
    try:
        for node in plan.nodes:
            folder.start(node, tied=True)
        command = [sys.executable, "-m", "raftkit_cli", "-e", plan.url(plan.nodes[0]), "kv", "put", "k", "v"]
        deadline = time.monotonic() + 40
        while subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline, folder.log_tail(plan.nodes[0], 20)
            time.sleep(0.3)
        time.sleep(3)
        pids = [node.pid for node in plan.nodes if node.pid is not None]
        assert len(pids) == 3
        before = [written_bytes(pid) for pid in pids]
        if shutil.which("strace") is not None:  # sees a sync of nothing too; else only what was written counts
            for pid in pids:
                told = tmp_path / f"{pid}.strace"
                words = ["strace", "-f", "-q", "-e", "trace=fsync,fdatasync,sync_file_range,msync", "-o", str(told)]
                tracers.append((subprocess.Popen([*words, "-p", str(pid)], stderr=subprocess.DEVNULL), told))
        time.sleep(IDLE_S)
        assert [written_bytes(pid) for pid in pids] == before
        for tracer, told in tracers:
            if tracer.poll() is None:  # where tracing is not allowed it has ended by itself
                calls = [line for line in told.read_text().splitlines() if "sync" in line]
                assert calls == []
    finally:
        for tracer, _ in tracers:
            tracer.terminate()
            tracer.wait(10)
        folder.kill_all()
