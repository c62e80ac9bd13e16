"""Stores of nodes that do not run, as the command line names them: the same settings as ``raftkit node run``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.output import Output, human_bytes

if TYPE_CHECKING:
    from raftkit_cli.verbs.node import NodeSettings
    from raftkit_core.offline.store import Progress
    from raftkit_core.state_machine.interface import RaftStateMachine
    from raftkit_core.storage.interface import LogState, RaftLogStorage, RaftSnapshotStorage
    from raftkit_core.types.adapter import AdapterContext
    from raftkit_core.types.identity import StoreIdentity
    from raftkit_core.types.log_id import LogId
    from raftkit_core.types.snapshot import SnapshotMeta

T = TypeVar("T")
Verb = TypeVar("Verb", bound=Callable[..., Any])

TELL_EVERY_S = 1.0


class Parts(NamedTuple):
    """The adapters of one node. Nothing is opened yet."""

    log: RaftLogStorage
    snapshots: RaftSnapshotStorage
    machine: RaftStateMachine
    context: AdapterContext


def store_options(verb: Verb) -> Verb:
    """Which node's store is meant."""
    for option in reversed(
        (
            click.option("--id", "node_id", metavar="ID", help="The node's name. [default: as in -c raftkit.toml]"),
            click.option(
                "--data-dir",
                type=click.Path(path_type=Path, file_okay=False),
                help="Its folder. [default: raftkit-data/ID]",
            ),
            click.option("--storage", metavar="URL", help="Where its log is. [default: sqlite:raft.db, in the folder]"),
            click.option("--cluster", metavar="NAME", help="Name of the cluster. [default: default]"),
            click.option("--state-machine", metavar="NAME", help="What the log drives. [default: kv]"),
        )
    ):
        verb = option(verb)
    return verb


def settings_of(invocation: Invocation, flags: dict[str, Any]) -> NodeSettings:
    """Raises: ConfigError."""
    from raftkit_cli.verbs.node import NodeSettings

    return NodeSettings.of(invocation, _Flags(flags))


class _Flags(dict[str, Any]):
    """Options of ``node run`` that these verbs do not have were not given."""

    def __missing__(self, name: str) -> None:
        return None


def parts_of(settings: NodeSettings, *, make_folder: bool = False) -> Parts:
    """Raises: CliError if there is no such folder; PluginError."""
    from raftkit_core.assembly import snapshot_storage_of
    from raftkit_core.clock import SystemClock
    from raftkit_core.types.adapter import AdapterContext

    folder = settings.data_dir
    if make_folder:
        from raftkit_core.offline.archive import translated

        with translated(folder, "make"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise CliError(
            "STORAGE",
            f"there is no folder {folder}",
            hint=f"name the folder of node {settings.node_id}: --data-dir DIR",
        )
    context = AdapterContext(
        settings.node_id,
        clock=SystemClock(),
        cluster=settings.config.cluster,
        data_dir=folder.resolve(),
        creates=make_folder,
    )
    plugins = settings.plugins
    return Parts(
        plugins.log_storage(settings.storage, context),
        snapshot_storage_of(plugins, settings.storage, settings.snapshots, context),
        plugins.state_machine(settings.state_machine, context),
        context,
    )


def check_free(file: Path) -> None:
    """Raises: CliError if there is something: nothing is overwritten."""
    if file.exists():
        raise CliError("FILE_EXISTS", f"{file} exists already: nothing is overwritten")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Raises: CliError at Ctrl-C: what these verbs say about it is not what a request to a cluster says."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt as error:
        raise CliError(
            "INTERRUPTED",
            "interrupted; no store was left half written without saying so of itself",
            hint="run the same command again: it goes on, or begins anew",
        ) from error


class Meter:
    """Tells progress on stderr: once a second, and the end."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._told_at = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        if progress.what.endswith("bytes"):
            done, total = human_bytes(progress.done), human_bytes(progress.total)
        else:
            done, total = str(progress.done), str(progress.total)
        of = f" of {total}" if progress.total else ""
        self._out.note(f"{progress.what}: {done}{of}")


# --- as JSON and as words -------------------------------------------------------------------------------------------


def log_id_fields(log_id: LogId | None) -> dict[str, Any] | None:
    if log_id is None:
        return None
    return {"term": log_id.term, "node": log_id.leader_id.node_id, "index": log_id.index}


def identity_fields(identity: StoreIdentity | None) -> dict[str, Any] | None:
    if identity is None:
        return None
    return {
        "node": identity.node_id,
        "store_id": identity.store_id,
        "cluster": identity.cluster,
        "cluster_id": identity.cluster_id,
        "group": identity.group,
        "single_term_leader": identity.single_term_leader,
        "state_machine": identity.machine,
        "largest_lease_ms": identity.largest_lease_ms,
        "retired": identity.retired or None,
        "format": identity.format,
    }


def state_fields(state: LogState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    vote = state.vote
    return {
        "vote": None if vote is None else {"term": vote.term, "node": vote.node_id, "committed": vote.committed},
        "last": log_id_fields(state.last_log_id),
        "committed": log_id_fields(state.committed),
        "purged": log_id_fields(state.last_purged),
    }


def snapshot_fields(meta: SnapshotMeta | None) -> dict[str, Any] | None:
    if meta is None:
        return None
    return {
        "id": meta.snapshot_id,
        "last": log_id_fields(meta.last_log_id),
        "time_ms": meta.time_ms,
        "size_bytes": meta.size_bytes,
        "sha256": meta.sha256,
        "members": sorted(meta.membership.membership.nodes),
    }


def snapshot_words(meta: SnapshotMeta | None) -> str:
    if meta is None:
        return "none"
    return f"up to {meta.last_log_id}, {human_bytes(meta.size_bytes)}, sha256 {meta.sha256[:16]}…"
