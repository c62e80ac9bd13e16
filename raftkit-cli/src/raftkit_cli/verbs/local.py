"""``raftkit local``: a persistent cluster on loopback, to play with and to break."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.completion import local_nodes
from raftkit_cli.endpoints import current_context, forget_directory, save_context
from raftkit_cli.failures import CliError
from raftkit_cli.options import Duration, Invocation, VerbGroup, pass_invocation
from raftkit_cli.plugin_commands import check_schemes

if TYPE_CHECKING:
    from raftkit_cli.cluster.layout import ClusterFolder, LocalNode

DEFAULT_NODES = 3
DEFAULT_BASE_PORT = 7401
CONTEXT = "local"


def default_dir() -> Path:
    """``RAFTKIT_LOCAL_DIR``, else the folder of the current context, else the user's data folder."""
    override = os.environ.get("RAFTKIT_LOCAL_DIR")
    if override:
        return Path(override)
    current = current_context()
    if current is not None and isinstance(current[1].get("dir"), str):
        return Path(current[1]["dir"])
    from platformdirs import user_data_path

    return user_data_path("raftkit", appauthor=False) / "local"


_dir = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder of the cluster. [default: that of the current context, else one in your data folder]",
)


@click.group(cls=VerbGroup, name="local", no_args_is_help=True)
def local() -> None:
    """A persistent cluster on this machine.

    \b
    raftkit local up        three nodes on ports 7401, 7402, 7403
    raftkit local kill n1   kill -9; the others go on
    raftkit local up        starts whatever does not run
    raftkit local down      stops all; the data stays
    """


@local.command("up")
@_dir
@click.option("--nodes", type=click.IntRange(1, 25), help=f"How many. [default: {DEFAULT_NODES}]")
@click.option(
    "--base-port",
    type=click.IntRange(1, 65535),
    help=f"n1, n2, … serve on this port and the next ones. [default: {DEFAULT_BASE_PORT}]",
)
@click.option("--storage", metavar="URL", help="As for node run; {id} stands for the node's id. [default: sqlite]")
@click.option("--network", metavar="SCHEME", help="Transport. [default: http]")
@click.option("--cluster", metavar="NAME", help="Name of the cluster. [default: local]")
@click.option("--wait", type=Duration(), default="30s", show_default=True, help="How long a leader may take.")
@pass_invocation
def up(
    invocation: Invocation,
    directory: Path | None,
    nodes: int | None,
    base_port: int | None,
    storage: str | None,
    network: str | None,
    cluster: str | None,
    wait: float,
) -> None:
    """Start whatever does not run, and return when a leader serves."""
    from raftkit_cli.cluster.layout import ClusterFolder
    from raftkit_cli.cluster.serving import wait_until_served

    path = (directory or default_dir()).absolute()
    wanted = {"nodes": nodes, "base_port": base_port, "storage": storage, "network": network, "cluster": cluster}
    folder = ClusterFolder.load(path)
    if folder is None:
        serves_clients = check_schemes(invocation, storage=storage or "sqlite", network=network or "http")
        folder = _new_folder(path, wanted, serves_clients=serves_clients)
    else:
        _check_same(folder, wanted)
    with folder.locked():
        folder = ClusterFolder.load(path) or folder
        started = _start_missing(invocation, folder)
    try:
        served = wait_until_served(invocation, folder, started, wait_s=wait)
    except KeyboardInterrupt:
        invocation.out.note("the nodes keep running: raftkit local ps, raftkit local down")
        raise
    finally:
        folder.release()
    save_context(CONTEXT, endpoints=folder.cluster.endpoints, directory=path)
    data = {
        "dir": str(path),
        "cluster": folder.cluster.cluster,
        "started": [node.id for node in started],
        "leader": served.leader,
        "term": served.term,
        "endpoints": folder.cluster.endpoints,
        "nodes": [_fields(folder, node) for node in folder.cluster.nodes],
    }

    def human() -> None:
        _table(invocation, folder)
        invocation.out.line(f"{served.leader} leads, term {served.term}. Data in {path}")
        invocation.out.note(
            f"Try:   raftkit status   raftkit ui   raftkit kv put hello world   raftkit local kill {served.leader}"
        )

    invocation.out.result("local.up", data, human)


def _new_folder(path: Path, wanted: dict[str, Any], *, serves_clients: bool) -> ClusterFolder:
    from raftkit_cli.cluster.layout import ClusterFolder, LocalCluster

    count = wanted["nodes"] or DEFAULT_NODES
    first = wanted["base_port"] or DEFAULT_BASE_PORT
    if first + count - 1 > 65535:
        raise click.UsageError(f"--base-port {first} leaves no room for {count} ports")
    return ClusterFolder(
        path,
        LocalCluster.plan(
            cluster=wanted["cluster"] or "local",
            count=count,
            ports=list(range(first, first + count)),
            storage=wanted["storage"] or "sqlite:raft.db",
            network=(wanted["network"] or "http").rstrip(":/"),
            state_machine="kv",
            serves_clients=serves_clients,
        ),
    )


def _check_same(folder: ClusterFolder, wanted: dict[str, Any]) -> None:
    """A cluster keeps its shape: other flags are an error, not silently ignored."""
    has = {
        "nodes": len(folder.cluster.nodes),
        "base_port": folder.cluster.nodes[0].port,
        "storage": folder.cluster.storage,
        "network": folder.cluster.network,
        "cluster": folder.cluster.cluster,
    }
    for name, value in wanted.items():
        if value is not None and value != has[name] and not (name == "network" and value.rstrip(":/") == has[name]):
            flag = f"--{name.replace('_', '-')}"
            raise CliError(
                "CONFIG",
                f"the cluster in {folder.path} has {flag} {has[name]}, not {value}",
                hint=f"leave {flag} out, or begin another cluster: raftkit local up --dir OTHER {flag} {value}",
            )


def _start_missing(invocation: Invocation, folder: ClusterFolder) -> list[LocalNode]:
    from raftkit_cli.cluster.layout import is_port_free

    missing = [node for node in folder.cluster.nodes if folder.state(node) == "gone"]
    for node in missing:
        if not is_port_free(node.port):
            _port_taken(folder, node)
    for node in folder.cluster.nodes:
        if folder.state(node) == "paused":
            invocation.out.warn(f"{node.id} is paused: raftkit local resume {node.id}")
    for node in missing:
        folder.start(node, tied=False)
        invocation.out.note(f"{node.id}  {folder.cluster.url(node)}  pid {node.pid}")
    return missing


def _port_taken(folder: ClusterFolder, node: LocalNode) -> None:
    from raftkit_cli.cluster.layout import STATE_FILE
    from raftkit_core.errors import AddressInUse

    hint = f"choose other ports: raftkit local up --base-port {node.port + 100}"
    if (folder.path / STATE_FILE).exists():  # these nodes are known to each other by their ports
        other = f"raftkit local up --dir OTHER --base-port {node.port + 100}"
        hint = f"stop what listens there, or begin another cluster: {other}"
    raise AddressInUse(
        f"{node.id} cannot listen on 127.0.0.1:{node.port}: the port is taken by another program", hint=hint
    )


@local.command("down")
@_dir
@pass_invocation
def down(invocation: Invocation, directory: Path | None) -> None:
    """Stop every node. Data stays; raftkit local up goes on from there."""
    folder = _existing(directory)
    with folder.locked():
        results = folder.stop_all()
    forget_directory(folder.path)
    stopped = {node_id: how for node_id, how in results.items() if how != "gone"}

    def human() -> None:
        for node_id, how in stopped.items():
            invocation.out.line(f"{node_id} {how}")
        if not stopped:
            invocation.out.line("nothing ran")
        named = "" if folder.path == default_dir() else f" --dir {folder.path}"
        invocation.out.note(f"The data stays in {folder.path}. Start again: raftkit local up{named}")

    invocation.out.result("local.down", {"dir": str(folder.path), "stopped": stopped}, human)


@local.command("ps")
@_dir
@pass_invocation
def ps(invocation: Invocation, directory: Path | None) -> None:
    """The processes: running, paused or gone."""
    folder = _existing(directory)
    data = {
        "dir": str(folder.path),
        "cluster": folder.cluster.cluster,
        "nodes": [_fields(folder, node) for node in folder.cluster.nodes],
    }
    invocation.out.result("local.ps", data, lambda: _table(invocation, folder))


@local.command("kill")
@click.argument("node", shell_complete=local_nodes)
@_dir
@pass_invocation
def kill(invocation: Invocation, node: str, directory: Path | None) -> None:
    """kill -9 NODE: it gets no chance to do anything more."""
    folder = _existing(directory)
    with folder.locked():
        found = folder.cluster.node(node)
        pid = found.pid
        if not folder.kill(found):
            raise _not_running(node)
    _done(invocation, "kill", node, f"{node} (pid {pid}) killed. Bring it back: raftkit local restart {node}", pid)


@local.command("pause")
@click.argument("node", shell_complete=local_nodes)
@_dir
@pass_invocation
def pause(invocation: Invocation, node: str, directory: Path | None) -> None:
    """SIGSTOP NODE: alive, connected, silent."""
    pid = _signal(node, directory, "SIGSTOP")
    _done(invocation, "pause", node, f"{node} (pid {pid}) paused. Wake it: raftkit local resume {node}", pid)


@local.command("resume")
@click.argument("node", shell_complete=local_nodes)
@_dir
@pass_invocation
def resume(invocation: Invocation, node: str, directory: Path | None) -> None:
    """SIGCONT NODE."""
    pid = _signal(node, directory, "SIGCONT")
    _done(invocation, "resume", node, f"{node} (pid {pid}) resumed", pid)


def _signal(node: str, directory: Path | None, name: str) -> int:
    from raftkit_cli.cluster.process import send

    number = getattr(signal, name, None)
    if number is None:
        raise CliError("CONFIG", f"this system has no {name}", hint="use raftkit local kill instead")
    folder = _existing(directory)
    found = folder.cluster.node(node)
    if found.pid is None or not send(found.pid, found.token, number):
        raise _not_running(node)
    return found.pid


@local.command("restart")
@click.argument("node", shell_complete=local_nodes)
@_dir
@click.option("--wait", type=Duration(), default="15s", show_default=True, help="How long it may take to answer.")
@pass_invocation
def restart(invocation: Invocation, node: str, directory: Path | None, wait: float) -> None:
    """Stop NODE if it runs, start it, and wait until it answers."""
    from raftkit_cli.cluster.layout import is_port_free
    from raftkit_cli.cluster.serving import wait_until_answers

    folder = _existing(directory)
    with folder.locked():
        found = folder.cluster.node(node)
        folder.stop(found)
        if not is_port_free(found.port):
            _port_taken(folder, found)
        folder.start(found, tied=False)
    try:
        answer = wait_until_answers(invocation, folder, found, wait_s=wait)
    finally:
        folder.release()
    text = f"{node} (pid {found.pid}) answers: {answer.role}, term {answer.term}, applied {answer.applied or 0}"
    _done(invocation, "restart", node, text, found.pid)


@local.command("logs")
@click.argument("node", required=False, shell_complete=local_nodes)
@_dir
@click.option("-n", "--lines", type=click.IntRange(1), default=50, show_default=True, help="How many lines per node.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@pass_invocation
def logs(invocation: Invocation, node: str | None, directory: Path | None, lines: int, follow: bool) -> None:
    """What NODE (or every node) wrote."""
    folder = _existing(directory)
    nodes = [folder.cluster.node(node)] if node else folder.cluster.nodes
    if follow and invocation.out.as_json:
        raise click.UsageError("--follow and --json do not go together: a log has no last document")
    data = {
        "nodes": [
            {"id": item.id, "path": str(folder.log_path(item)), "lines": folder.log_tail(item, lines)} for item in nodes
        ]
    }

    def human() -> None:
        for item in data["nodes"]:
            if len(nodes) > 1:
                invocation.out.line(f"==> {item['path']}")
            for line in item["lines"]:
                invocation.out.line(str(line))

    if not follow:
        invocation.out.result("local.logs", data, human)
        return
    offsets = {item.id: _size(folder.log_path(item)) for item in nodes}
    human()
    invocation.is_endless = True
    _follow(invocation, folder, nodes, offsets)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _follow(invocation: Invocation, folder: ClusterFolder, nodes: list[LocalNode], offsets: dict[str, int]) -> None:
    """Print what is added to the logs, until interrupted."""
    while True:
        for item in nodes:
            path = folder.log_path(item)
            if _size(path) <= offsets[item.id]:
                continue
            with path.open("rb") as handle:
                handle.seek(offsets[item.id])
                added = handle.read()
            complete = added[: added.rfind(b"\n") + 1]
            offsets[item.id] += len(complete)
            for line in complete.decode("utf-8", "replace").splitlines():
                invocation.out.line(line)
        time.sleep(0.2)


def _existing(directory: Path | None) -> ClusterFolder:
    from raftkit_cli.cluster.layout import ClusterFolder

    path = (directory or default_dir()).absolute()
    folder = ClusterFolder.load(path)
    if folder is None:
        raise CliError(
            "NO_LOCAL_CLUSTER",
            f"there is no local cluster in {path}",
            hint="begin one: raftkit local up" + (f" --dir {directory}" if directory else ""),
        )
    return folder


def _not_running(node: str) -> CliError:
    return CliError("NODE_NOT_RUNNING", f"{node} does not run", hint=f"start it: raftkit local restart {node}")


def _fields(folder: ClusterFolder, node: LocalNode) -> dict[str, Any]:
    return {
        "id": node.id,
        "state": folder.state(node),
        "pid": node.pid if folder.state(node) != "gone" else None,
        "port": node.port,
        "address": folder.cluster.url(node),
        "data_dir": str(folder.data_dir(node)),
        "log": str(folder.log_path(node)),
    }


def _table(invocation: Invocation, folder: ClusterFolder) -> None:
    rows = []
    for node in folder.cluster.nodes:
        fields = _fields(folder, node)
        rows.append((node.id, fields["state"], str(fields["pid"] or "-"), fields["address"]))
    invocation.out.table(("NODE", "STATE", "PID", "ADDRESS"), rows)


def _done(invocation: Invocation, verb: str, node: str, text: str, pid: int | None) -> None:
    invocation.out.result(f"local.{verb}", {"node": node, "pid": pid}, lambda: invocation.out.line(text))
