"""``raftkit demo``: the promise, tried out in front of your eyes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from raftkit_cli.cluster.layout import STATE_FILE, ClusterFolder, LocalCluster, free_ports
from raftkit_cli.demo.report import Report
from raftkit_cli.demo.scenario import Scenario
from raftkit_cli.endpoints import save_context
from raftkit_cli.failures import CliError, Terminated
from raftkit_cli.options import Duration, Invocation, Verb, pass_invocation
from raftkit_cli.plugin_commands import check_schemes

CONTEXT = "demo"
TAIL_LINES = 12


@click.command(cls=Verb, name="demo")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="How many.")
@click.option(
    "--storage",
    metavar="SCHEME:",
    default="sqlite:",
    show_default=True,
    help="Where logs live; {id} in a URL stands for the node. With memory: the dead node stays dead.",
)
@click.option("--network", metavar="SCHEME:", default="http:", show_default=True, help="How nodes talk.")
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Put the data into DIR, and leave the cluster running after a PASS.",
)
@click.option("--deadline", type=Duration(), default="60s", show_default=True, help="FAIL after this long.")
@pass_invocation
def demo(invocation: Invocation, nodes: int, storage: str, network: str, keep: Path | None, deadline: float) -> None:
    """Kill the leader of a real cluster and lose nothing.

    Starts real processes with durable storage, elects a leader, writes 200 keys, kills the leader with kill -9
    half-way, keeps writing through the failover, restarts the dead node, reads everything back and compares the
    state of all nodes. PASS (exit 0) only if no acknowledged write is missing; FAIL is exit 5.
    """
    is_durable = storage.partition(":")[0] != "memory"
    if not is_durable and nodes - 1 < nodes // 2 + 1:
        raise click.UsageError(
            f"with memory: storage the killed leader stays dead, and {nodes - 1} of {nodes} nodes are no quorum: "
            "use at least --nodes 3"
        )
    serves_clients = check_schemes(invocation, storage=storage, network=network)
    path = _prepare(keep)
    cluster = LocalCluster.plan(
        cluster="demo",
        count=nodes,
        ports=free_ports(nodes),
        storage=_storage_url(storage),
        network=network.rstrip(":/"),
        state_machine="kv",
        serves_clients=serves_clients,
    )
    folder = ClusterFolder(path, cluster)
    report = Report(nodes=nodes, storage=storage, network=network)
    report.directory = None if keep is None else str(path)
    began = time.monotonic()

    def tell(text: str) -> None:
        invocation.out.note(f"[{time.monotonic() - began:5.2f}s] {text}")

    invocation.out.note(f"Starting {nodes} nodes in {path} ({storage} storage, {network} network, kv state machine)")
    scenario = Scenario(invocation, folder, report, tell, is_durable=is_durable, is_tied=keep is None)
    is_passed = is_failed = False
    try:
        asyncio.run(_within(scenario, deadline))
        is_passed = True
    except Exception as error:
        is_failed = True
        report.seconds = time.monotonic() - began
        raise _failed(folder, report, error) from error
    finally:
        if is_passed and keep is not None:
            folder.release()
        else:
            folder.kill_all()
        if keep is None and not is_failed:
            shutil.rmtree(path, ignore_errors=True)
    report.seconds = time.monotonic() - began
    if keep is not None:
        report.endpoints = cluster.endpoints
        save_context(CONTEXT, endpoints=cluster.endpoints, directory=path)
    _pass(invocation, folder, report, is_kept=keep is not None)


def _prepare(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="raftkit-demo-"))
    path = keep.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise CliError("CONFIG", f"{path} cannot be used: {error}", hint="choose another --keep DIR") from error
    if not is_empty:
        what = "holds a cluster already" if (path / STATE_FILE).exists() else "is not empty"
        raise CliError(
            "CONFIG",
            f"{path} {what}",
            hint=f"choose another --keep DIR; a cluster there is started with raftkit local up --dir {path}",
        )
    return path


def _storage_url(text: str) -> str:
    """``sqlite`` and ``sqlite:`` as a file in each node's folder; a whole URL as it is."""
    scheme, _, rest = text.partition(":")
    if rest or scheme == "memory":
        return text if rest else "memory:"
    return f"{scheme}:raft.db"


async def _within(scenario: Scenario, deadline_s: float) -> None:
    """Run under the deadline, and turn SIGTERM into an end that cleans up."""
    with _sigterm_cancels() as was_terminated:
        try:
            async with asyncio.timeout(deadline_s):
                await scenario.run()
        except asyncio.CancelledError:
            if was_terminated():
                raise Terminated from None
            raise
        except TimeoutError as error:
            raise CliError("DEMO_FAILED", f"not done within {deadline_s:g} s", hint="try --deadline 120s") from error


@contextlib.contextmanager
def _sigterm_cancels() -> Iterator[Callable[[], bool]]:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    seen: list[bool] = []

    def cancel() -> None:
        seen.append(True)
        if task is not None:
            task.cancel()

    try:
        loop.add_signal_handler(signal.SIGTERM, cancel)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(seen)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _failed(folder: ClusterFolder, report: Report, error: Exception) -> CliError:
    """What the boundary is given: a FAIL with figures and the nodes' last words."""
    report.logs = {node.id: folder.log_tail(node, TAIL_LINES) for node in folder.cluster.nodes}
    dead = [node.id for node in folder.cluster.nodes if node.id != report.killed and folder.state(node) == "gone"]
    told = [node_id for node_id in report.logs if node_id in dead] or list(report.logs)
    tails = "\n".join(f"{node_id}: {line}" for node_id in told for line in report.logs[node_id][-TAIL_LINES:])
    message = (
        error.message
        if isinstance(error, CliError) or hasattr(error, "message")
        else f"{type(error).__name__}: {error}"
    )
    lost = f"{len(report.lost)} of {report.acknowledged} acknowledged writes are missing"
    return CliError(
        "DEMO_FAILED",
        f"FAIL  {message}\n{lost}. Last lines of the logs:\n{tails}",
        hint=f"the data and the whole logs stay in {folder.path}",
        data=report.as_data(),
    )


def _pass(invocation: Invocation, folder: ClusterFolder, report: Report, *, is_kept: bool) -> None:
    out = invocation.out

    def human() -> None:
        verdict = out.style("PASS", "green")
        out.line(
            f"{verdict}  {report.acknowledged} writes acknowledged, {len(report.lost)} lost, "
            f"{report.unknown} unknown on the way; {report.failover_s or 0:.2f} s without a leader; "
            f"{report.seconds:.1f} s in all"
        )
        if is_kept:
            out.line(f"The cluster is still running in {folder.path}:")
            out.line("   raftkit status          raftkit kv put hello world")
            out.line(f"   raftkit local kill {report.next_leader}   raftkit local down")

    out.result("demo", report.as_data(), human)
