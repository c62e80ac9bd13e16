"""A SQLite log whose process is killed as it enters its first system call that writes or syncs, its second, and so on:
whatever was acknowledged is there, and the store opens. strace does the killing."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raftkit_core.plugins import load_plugins
from raftkit_core.testing.conformance.log_case import context

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace: apt-get install strace"),
]

CALLS = "pwrite64,write,fdatasync,fsync,ftruncate,unlink"
WRITER = "raftkit_core.testing.conformance.log_writer"
BATCHES = 4
"""The sweep ends when a process lived long enough to acknowledge so many."""


def killed_at(number: int, folder: Path) -> int:
    """Run the writer until its ``number``-th write or sync below ``folder``; gives how much it had acknowledged."""
    inject = f"inject={CALLS}:signal=SIGKILL:when={number}"
    words = ["strace", "-f", "-q", "-o", "/dev/null", "-P", str(folder), "-e", f"trace={CALLS}", "-e", inject]
    for name in ("log.db", "log.db-wal", "log.db-journal"):
        words += ["-P", str(folder / name)]
    words += [sys.executable, "-m", WRITER, f"sqlite://{folder}/log.db", str(folder)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if "ptrace" in ran.stderr or "Operation not permitted" in ran.stderr:
        pytest.skip("strace may not look into processes here: allow ptrace (SYS_PTRACE)")
    assert ran.returncode != 0, "the writer lived to its end: nothing killed it"
    told = ran.stdout.split()
    return int(told[-1]) if told else 0


async def everything_acknowledged_is_there(folder: Path, acknowledged: int) -> None:
    storage = load_plugins().log_storage(f"sqlite://{folder}/log.db", context())
    identity = await storage.open(context())
    try:
        if not acknowledged:
            return
        assert identity is not None
        state = await storage.read_state()
        assert state.last_log_id is not None
        assert state.last_log_id.index >= acknowledged - 1
        assert state.vote.leader_id.term >= acknowledged
        held = await storage.read(0, acknowledged, 1 << 20)
        assert [entry.payload for entry in held] == [b"%d" % index for index in range(acknowledged)]
    finally:
        await storage.close()


def test_a_store_survives_a_kill_at_every_write(tmp_path: Path) -> None:
    acknowledged = number = 0
    while acknowledged < BATCHES:
        number += 1
        assert number < 200, f"after {number} calls only {acknowledged} batches were acknowledged"
        folder = tmp_path / str(number)
        folder.mkdir()
        acknowledged = killed_at(number, folder)
        asyncio.run(everything_acknowledged_is_there(folder, acknowledged))
    print(f"killed at {number} system calls, {acknowledged} batches acknowledged at the last")
    assert number > 3 * BATCHES
