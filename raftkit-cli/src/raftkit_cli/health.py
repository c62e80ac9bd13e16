"""What ``raftkit doctor`` looks at: packages, plugins, a node's folder, and what plugins want looked at."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from raftkit_cli.output import human_bytes
from raftkit_core.plugins import DoctorCheck, DoctorFinding

if TYPE_CHECKING:
    from raftkit_core.plugins import LoadedPlugins

PACKAGES = ("raftkit-core", "raftkit-cli", "raftkit-sqlite", "raftkit-redis", "raftkit-http")
FOREIGN = "raftkit"
SYNCS = 21
SLOW_SYNC_MS = 20.0
"""Every write waits for one at a quorum; half the heartbeat interval is left for the rest."""
FREE_BYTES_MIN = 1024**3


def examine(plugins: LoadedPlugins, data_dir: Path | None) -> list[tuple[str, DoctorFinding]]:
    """Every finding, with the name of its check. A check that breaks is a finding too."""
    plugins.load_all()
    checks = [
        DoctorCheck("packages", lambda _: _packages()),
        DoctorCheck("plugins", lambda _: _plugins(plugins)),
        *([] if data_dir is None else [DoctorCheck("folder", lambda _: _folder(data_dir))]),
        *plugins.doctor_checks(),
    ]
    found: list[tuple[str, DoctorFinding]] = []
    for check in checks:
        try:
            found += [(check.name, finding) for finding in check.run(data_dir)]
        except Exception as error:
            text = f"the check itself failed: {type(error).__name__}: {error}"
            found.append((check.name, DoctorFinding("error", text, hint="report it to the plugin's author")))
    return found


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[DoctorFinding]:
    found = {name: number for name in PACKAGES if (number := installed(name)) is not None}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {number}" for name, number in found.items())
        yield DoctorFinding(
            "error", f"versions differ: {told}", hint=f"pip install --upgrade {' '.join(found)}: all of one version"
        )
    else:
        yield DoctorFinding("ok", f"{', '.join(found)}: {next(iter(found.values()))}")
    foreign = installed(FOREIGN)
    if foreign is not None:
        yield DoctorFinding(
            "warning", f"the package {FOREIGN} {foreign} is another project", hint=f"pip uninstall {FOREIGN}"
        )


def _plugins(plugins: LoadedPlugins) -> Iterator[DoctorFinding]:
    known = plugins.plugins()
    for info in known:
        if info.state == "broken":
            yield DoctorFinding("error", f"{info.name} is broken: {info.reason}", hint="raftkit plugins trace")
        elif info.reason:
            yield DoctorFinding("warning", f"{info.name}: {info.reason}", hint="raftkit plugins list")
    active = [info for info in known if info.state == "active"]
    yield DoctorFinding("ok", f"active: {', '.join(info.name for info in active)}")
    if not any(info.storage for info in active if info.name != "core"):
        yield DoctorFinding("warning", "no storage keeps anything on a disk", hint="pip install raftkit-sqlite")
    if not any(info.network for info in active if info.name != "core"):
        yield DoctorFinding("warning", "no network reaches other processes", hint="pip install raftkit-http")


def _folder(folder: Path) -> Iterable[DoctorFinding]:
    """Whether a node can keep its data there, and how long the disk takes to have it."""
    place = folder.absolute()
    while not place.is_dir():
        place = place.parent
    try:
        sync_ms = _sync_ms(place)
    except OSError as error:
        hint = "give this user the right to write there, or choose another --data-dir"
        return [DoctorFinding("error", f"{place} cannot be written: {error.strerror or error}", hint=hint)]
    sync = f"a sync in {place} takes {sync_ms:.2g} ms (the middle of {SYNCS})"
    slow = "raise heartbeats and election timeouts together: docs/configuration.md"
    free = shutil.disk_usage(place).free
    room = f"{human_bytes(free)} free"
    findings = [
        DoctorFinding("ok", sync) if sync_ms < SLOW_SYNC_MS else DoctorFinding("warning", sync, hint=slow),
        DoctorFinding("ok", room)
        if free >= FREE_BYTES_MIN
        else DoctorFinding("warning", f"only {room}", hint="a full disk stops a node: make room"),
    ]
    if os.name == "posix" and place == folder.absolute() and stat.S_IMODE(place.stat().st_mode) & 0o077:
        hint = f"chmod 700 {folder}"
        findings.append(DoctorFinding("warning", f"others on this machine can look into {folder}", hint=hint))
    return findings


def _sync_ms(place: Path) -> float:
    """The middle of some syncs of 4 KiB, in a file that is gone afterwards. Raises: OSError."""
    took = []
    with tempfile.TemporaryFile(dir=place, prefix=".raftkit-doctor-") as file:
        for _ in range(SYNCS):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return sorted(took)[SYNCS // 2]
