"""Ctrl-C on ``raftkit sim``: what was done is told, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the processes of another")
def test_ctrl_c_tells_what_was_done_and_leaves_no_process() -> None:
    command = [sys.executable, "-m", "raftkit_cli", "sim", "--ring", "engine", "--minutes", "5", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while len(workers := _children(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert '"code": "INTERRUPTED"' in out
    assert "interrupted after" in out
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
