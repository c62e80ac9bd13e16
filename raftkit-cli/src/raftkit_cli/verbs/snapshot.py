"""``raftkit snapshot``: make one, save it to a file, look into the file, begin a new cluster from it."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.client import with_client
from raftkit_cli.completion import members
from raftkit_cli.failures import CliError
from raftkit_cli.offline import (
    Meter,
    check_free,
    log_id_fields,
    parts_of,
    run,
    settings_of,
    snapshot_fields,
    store_options,
)
from raftkit_cli.options import Duration, Invocation, VerbGroup, pass_invocation, split_client
from raftkit_cli.output import human_bytes
from raftkit_cli.verbs.node import DEFAULT_STORAGE

if TYPE_CHECKING:
    from raftkit_cli.verbs.node import NodeSettings
    from raftkit_core.network.client import ClusterClient, NodeStatus
    from raftkit_core.offline.seed import SavedSnapshot

LOOK_EVERY_S = 0.1

_node = click.option(
    "--node", metavar="ID", shell_complete=members, help="Of which member. [default: the one that answers]"
)


@click.group(cls=VerbGroup, name="snapshot", no_args_is_help=True)
def snapshot() -> None:
    """Make, save, look into and restore snapshots."""


@snapshot.command("create")
@_node
@click.option("--wait", type=Duration(), default="60s", show_default=True, help="How long it may take.")
@pass_invocation
def create(invocation: Invocation, node: str | None, wait: float) -> None:
    """Let a node write a snapshot of what it has applied."""

    async def work(client: ClusterClient) -> NodeStatus:
        return await _fresh_snapshot(client, node, wait)

    status = with_client(invocation, work, limit_s=wait + 2 * invocation.timeout_s)
    data = {"node": status.id, "snapshot": status.snapshot, "size_bytes": status.snapshot_size_bytes}
    invocation.out.result(
        "snapshot.create",
        data,
        lambda: invocation.out.line(
            f"{status.id}: snapshot up to {status.snapshot}, {human_bytes(status.snapshot_size_bytes)}"
        ),
    )


async def _fresh_snapshot(client: ClusterClient, node: str | None, wait_s: float) -> NodeStatus:
    """Of everything the node had applied when it was asked."""
    status = await client.status()
    if node is not None and node != status.id:
        member = next((item for item in status.members if item.id == node), None)
        if member is None:
            raise CliError("UNKNOWN_NODE", f"{node} is not a member", hint="raftkit member list")
        status = await client.status_of(member.node.client_address)
    address = _address_of(status)
    goal = status.applied
    if goal is None:
        raise CliError("NOT_FOUND", f"{status.id} has applied nothing yet", hint="raftkit status")
    deadline = asyncio.get_running_loop().time() + wait_s
    asked_at: int | None = None
    while status.snapshot is None or status.snapshot < goal:
        if asked_at is None:
            await client.trigger_snapshot(address)
            asked_at = status.snapshot
        if asyncio.get_running_loop().time() >= deadline:
            raise CliError("TIMEOUT", f"{status.id} wrote no snapshot within {wait_s:g} s", hint="raftkit status")
        await asyncio.sleep(LOOK_EVERY_S)
        status = await client.status() if address is None else await client.status_of(address)
    return status


def _address_of(status: NodeStatus) -> str | None:
    member = next((item for item in status.members if item.id == status.id), None)
    return None if member is None else member.node.client_address


@snapshot.command("save")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_node
@click.option("--wait", type=Duration(), default="10m", show_default=True, help="How long it may take.")
@pass_invocation
def save(invocation: Invocation, file: Path, node: str | None, wait: float) -> None:
    """Save a fresh snapshot of the running cluster to a new FILE, checked byte by byte."""
    from raftkit_core.offline.archive import NewFile
    from raftkit_core.offline.seed import inspect
    from raftkit_core.offline.store import Progress

    check_free(file)
    meter = Meter(invocation.out)

    async def work(client: ClusterClient) -> NodeStatus:
        status = await _fresh_snapshot(client, node, wait)
        with NewFile(file) as new:
            async for chunk in client.read_snapshot(_address_of(status)):
                new.write(chunk)
                meter(Progress("snapshot bytes", new.size_bytes, status.snapshot_size_bytes))
            new.finish()
        return status

    status = with_client(invocation, work, limit_s=wait + 2 * invocation.timeout_s)
    try:
        saved = inspect(file)
    except Exception:
        file.unlink()
        raise
    data = {"file": str(file), "node": status.id, **_saved_fields(saved)}
    invocation.out.result("snapshot.save", data, lambda: _show(invocation, file, saved))


@snapshot.command("inspect")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@pass_invocation
def inspect_file(invocation: Invocation, file: Path) -> None:
    """Read a saved snapshot FILE whole: what it is of, and whether it is sound."""
    from raftkit_core.offline.seed import inspect

    saved = inspect(file, progress=Meter(invocation.out))
    data = {"file": str(file), **_saved_fields(saved)}
    invocation.out.result("snapshot.inspect", data, lambda: _show(invocation, file, saved))


def _saved_fields(saved: SavedSnapshot) -> dict[str, Any]:
    return {
        "snapshot": snapshot_fields(saved.meta),
        "cluster_id": saved.header.cluster_id,
        "state_machine": saved.header.machine,
        "system_bytes": saved.system_bytes,
        "machine_bytes": saved.machine_bytes,
        "machine_chunks": saved.machine_chunks,
        "membership_log_id": log_id_fields(saved.meta.membership.log_id),
    }


def _show(invocation: Invocation, file: Path, saved: SavedSnapshot) -> None:
    out = invocation.out
    out.line(f"{file}: {saved.header.machine} up to {saved.meta.last_log_id}, cluster {saved.header.cluster_id}")
    out.line(f"{human_bytes(saved.meta.size_bytes)}, {human_bytes(saved.machine_bytes)} of them the machine's")
    out.line(f"members {', '.join(sorted(saved.meta.membership.membership.nodes))}")
    out.line(f"sha256 {saved.meta.sha256}")


@snapshot.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--network", metavar="URL", help="Where the node will be reached. [default: http://127.0.0.1:7401]")
@store_options
@pass_invocation
def restore(invocation: Invocation, /, file: Path, network: str | None, **flags: Any) -> None:
    """Begin a NEW cluster of one node from a saved snapshot FILE.

    Without --yes it only says what it would do. The node's folder must hold no store. Nodes of the cluster the
    snapshot was taken from are not harmed, and not admitted. Start the node, then add others: raftkit member add.

    \b
    raftkit snapshot restore state.snapshot --id n1 --cluster copy --yes
    """
    from raftkit_core.offline.seed import inspect, seed_cluster
    from raftkit_core.types.membership import Node

    settings = settings_of(invocation, {**flags, "network": network})
    saved = inspect(file, progress=Meter(invocation.out))
    from raftkit_cli.endpoints import advertised

    peer, client = split_client(settings.network)
    node = Node(advertised(peer), client)
    data: dict[str, Any] = {
        "file": str(file),
        "node": settings.node_id,
        "cluster": settings.config.cluster,
        "address": node.peer,
        "data_dir": str(settings.data_dir),
        "cluster_id": None,
        "applied": False,
        "from": _saved_fields(saved),
    }
    if invocation.yes:
        parts = parts_of(settings, make_folder=True)
        identity = run(
            seed_cluster(
                file,
                saved,
                parts.log,
                parts.snapshots,
                parts.context,
                node=node,
                machine=parts.machine.name,
                single_term_leader=settings.config.single_term_leader,
                new_store_id=secrets.token_hex(16),
                random_hex=secrets.token_hex(16),
                progress=Meter(invocation.out),
            )
        )
        data |= {"cluster_id": identity.cluster_id, "applied": True}

    def human() -> None:
        out = invocation.out
        where = f"{settings.node_id} in {settings.data_dir}, at {node.peer}"
        if not data["applied"]:
            out.line(f"would make a new cluster {settings.config.cluster} of {where}; repeat it with --yes")
            return
        out.line(f"new cluster {data['cluster_id']}: {where}")
        out.note(f"start it: {_start_command(invocation, settings)}\nthen add members: raftkit member add ID URL")

    invocation.out.result("snapshot.restore", data, human)


def _start_command(invocation: Invocation, settings: NodeSettings) -> str:
    """The command line that starts the node on what was made, with what differs from the defaults."""
    if invocation.config_path is not None:
        return f"raftkit node run -c {invocation.config_path}"
    given = {
        "--id": settings.node_id,
        "--cluster": settings.config.cluster,
        "--data-dir": str(settings.data_dir),
        "--storage": settings.storage,
        "--network": settings.network,
        "--state-machine": settings.state_machine,
    }
    usual = {"--cluster": "default", "--storage": DEFAULT_STORAGE, "--state-machine": "kv"}
    return shlex.join(
        ["raftkit", "node", "run", *(part for flag in given.items() if flag not in usual.items() for part in flag)]
    )
