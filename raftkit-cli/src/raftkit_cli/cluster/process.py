"""One operating-system process, so named that a recycled pid is never mistaken for it.

A pid alone may belong to somebody else after a while; with the start time of the process it is unique until the next
boot. Where the system does not tell start times, the pid has to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

ProcessState = Literal["running", "paused", "gone"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def start_token(pid: int) -> str | None:
    """What tells this process from a later one with its pid; None if it is gone or nobody can tell."""
    stat = _linux_stat(pid)
    if stat is not None:
        # Field 22 counts ticks since boot, so it needs the boot it counts from.
        return f"{stat[19]}@{_boot_id()}"
    if Path("/proc/self/stat").exists() or os.name != "posix":
        return None
    return _ps(pid, "lstart")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _linux_stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on (the second may hold spaces and brackets)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _ps(pid: int, field: str) -> str | None:
    try:
        done = subprocess.run(
            ["ps", "-o", f"{field}=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def state_of(pid: int | None, token: str | None) -> ProcessState:
    """What the process that had ``token`` is doing; a zombie and a stranger with its pid count as gone."""
    if pid is None:
        return "gone"
    stat = _linux_stat(pid)
    if stat is not None:
        if stat[0] in ("Z", "X") or (token is not None and start_token(pid) != token):
            return "gone"
        return "paused" if stat[0] in ("T", "t") else "running"
    if os.name != "posix":
        return _state_elsewhere(pid)
    letters = _ps(pid, "stat")
    if letters is None or letters.startswith("Z") or (token is not None and start_token(pid) != token):
        return "gone"
    return "paused" if letters.startswith("T") else "running"


def _state_elsewhere(pid: int) -> ProcessState:
    try:
        done = subprocess.run(
            ["tasklist", "/FI", f"PID eq {pid}", "/NH"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "gone"
    return "running" if str(pid) in done.stdout else "gone"


def send(pid: int, token: str | None, number: int) -> bool:
    """Send a signal to exactly that process. False if it is gone."""
    if state_of(pid, token) == "gone":
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_now(pid: int, token: str | None) -> bool:
    """``kill -9``: the process has no chance to do anything more. False if it was gone."""
    return send(pid, token, getattr(signal, "SIGKILL", signal.SIGTERM))


def wait_gone(pid: int, token: str | None, *, timeout_s: float) -> bool:
    """Wait until the process is gone. False if it is still there when the time is over."""
    deadline = time.monotonic() + timeout_s
    while state_of(pid, token) != "gone":
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def stop(pid: int, token: str | None, *, grace_s: float) -> Literal["stopped", "killed", "gone"]:
    """SIGTERM, then SIGKILL after ``grace_s``. A paused process is woken first, or it would never notice."""
    if state_of(pid, token) == "gone":
        return "gone"
    send(pid, token, signal.SIGTERM)
    if hasattr(signal, "SIGCONT"):
        send(pid, token, signal.SIGCONT)
    if wait_gone(pid, token, timeout_s=grace_s):
        return "stopped"
    kill_now(pid, token)
    wait_gone(pid, token, timeout_s=5.0)
    return "killed"
