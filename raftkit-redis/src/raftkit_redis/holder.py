"""Who holds a store, and whether that process is dead.

Redis cannot tell a crashed holder from a slow one, so a claim is not a lease: it stays until released. A claim may be
taken only if its process is *known* to be gone, which is so on this machine alone (pid and start time, or a reboot
since). Everything else is the operator's word, ``takeover=true``. Either way the fence keeps a holder that lives on
from writing.
"""

from __future__ import annotations

import datetime
import os
import socket
from pathlib import Path

import msgspec

from raftkit_core.types.adapter import AdapterContext


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """A handle that holds a store. ``since`` is wall time, for people. Empty fields are unknown on that system.

    ``process_start`` is in clock ticks since boot; ``pid_space`` tells containers of one machine apart, in which equal
    pids are different processes.
    """

    node: str
    pid: int
    host: str
    since: str
    process_start: str = ""
    boot_id: str = ""
    machine_id: str = ""
    pid_space: str = ""

    def __str__(self) -> str:
        return f"node {self.node}, process {self.pid} on {self.host}, since {self.since}"


def this_process(context: AdapterContext) -> Holder:
    pid = os.getpid()
    since = datetime.datetime.fromtimestamp(context.clock.wall(), datetime.UTC)
    return Holder(
        node=context.node_id,
        pid=pid,
        host=socket.gethostname(),
        since=since.isoformat(timespec="seconds").replace("+00:00", "Z"),
        process_start=_process_start(pid),
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
        machine_id=_first_line("/etc/machine-id"),
        pid_space=_pid_space(),
    )


def encode_holder(holder: Holder) -> bytes:
    return msgspec.json.encode(holder)


def decode_holder(blob: bytes) -> Holder | None:
    """None if nobody can read it: it is never the reason for an error, only part of one."""
    try:
        return msgspec.json.decode(blob, type=Holder)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def is_known_dead(holder: Holder, me: Holder) -> bool:
    """Whether the process of ``holder`` certainly no longer runs. When in doubt, no."""
    if holder.host != me.host or holder.machine_id != me.machine_id:
        return False
    if holder.boot_id != me.boot_id:
        return bool(me.machine_id and holder.boot_id and me.boot_id)
    if holder.pid_space != me.pid_space:
        return False
    if not _is_running(holder.pid):
        return True
    started = _process_start(holder.pid)
    return bool(started and holder.process_start and started != holder.process_start)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return _process_state(pid) != "Z"  # a zombie holds no connection any more


def _stat_fields(pid: int) -> list[str]:
    """From ``/proc/PID/stat``, after the name, which may hold spaces and brackets."""
    return _first_line(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _process_state(pid: int) -> str:
    fields = _stat_fields(pid)
    return fields[0] if fields else ""


def _process_start(pid: int) -> str:
    fields = _stat_fields(pid)
    return fields[19] if len(fields) > 19 else ""


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
