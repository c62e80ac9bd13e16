"""Real nodes as processes: started, killed, paused and mended by a test, while recorded clients use them.

Whoever starts a process here stops it, by its pid, whatever happens. A trial ends with the books: the recorded history
must be linearizable, all nodes must come to one state, and nothing that was acknowledged may be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType

from raftkit_cli.cluster.layout import free_ports
from raftkit_core.errors import RaftError
from raftkit_core.network.client import Consistency, NodeStatus
from raftkit_core.testing.linearizability import History, Report, judge
from raftkit_core.testing.linearizability.workload import Workload, header_of, record
from raftkit_http.client import HttpClusterClient

SETTLE_S = 60.0
"""How long a mended cluster may take until it serves and all nodes agree; machines that run tests are busy."""

SETTINGS = """
[raft]
snapshot_policy = "logs:400"
max_in_snapshot_log_to_keep = 50
"""
"""Small enough that snapshots are built, sent and installed while a test runs."""


class NodeDied(AssertionError):
    """A node that nobody killed has ended."""


class RealNode:
    """One node: its folder, its addresses, and its process while it has one."""

    def __init__(
        self, node_id: str, folder: Path, *, listen: str, peer: str, storage: str, machine: str, prefix: list[str]
    ) -> None:
        self.id = node_id
        self.folder = folder
        self.listen = listen
        self.peer = peer
        self.storage = storage
        self.machine = machine
        self.prefix = prefix
        self.log = folder.parent / f"{folder.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.is_paused = False

    def start(self, initial_cluster: str, settings: Path) -> None:
        assert self.process is None, f"{self.id} runs already"
        options = "insecure=true" if not self.listen.startswith("http://127.") else ""
        if self.peer != self.listen:
            options = "&".join([f"advertise={self.peer}", *([options] if options else [])])
        network = f"{self.listen}?{options}" if options else self.listen
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    *(sys.executable, "-m", "raftkit_cli", "node", "run", "-c", str(settings)),
                    *("--id", self.id, "--cluster", "faults", "--data-dir", str(self.folder)),
                    *("--storage", self.storage, "--state-machine", self.machine),
                    *("--network", network, "--initial-cluster", initial_cluster),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if not name.startswith("RAFTKIT_")},
            )
        self.is_paused = False

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(10)
        self.is_paused = False

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        if self.process is not None and self.is_paused:
            self.process.send_signal(signal.SIGCONT)
        self.is_paused = False

    @property
    def exit_code(self) -> int | None:
        """How it ended by itself; None while it runs, and for one that was killed."""
        return None if self.process is None else self.process.poll()

    def tail(self, lines: int = 25) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class RealCluster:
    """Nodes ``n1`` … on loopback, or wherever ``listen`` and ``peer`` put them. Nothing runs until :meth:`start`."""

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        storage: str = "sqlite:raft.db",
        machine: str = "kv",
        settings: str = SETTINGS,
        folders: dict[str, Path] | None = None,
        listen: dict[str, str] | None = None,
        peer: dict[str, str] | None = None,
        prefix: Callable[[str], list[str]] = lambda _node_id: [],
    ) -> None:
        names = [f"n{number}" for number in range(1, count + 1)]
        if listen is None:
            listen = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, free_ports(count), strict=True)}
        self.nodes = {
            name: RealNode(
                name,
                (folders or {}).get(name, folder / name),
                listen=listen[name],
                peer=(peer or listen)[name],
                storage=storage,
                machine=machine,
                prefix=prefix(name),
            )
            for name in names
        }
        self._settings = folder / "raftkit.toml"
        self._settings.write_text(settings)
        self.counts: Counter[str] = Counter()
        """What was done to it."""
        self.may_die: set[str] = set()
        """Nodes that are allowed to end by themselves just now."""

    def __enter__(self) -> RealCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            node.kill()
        if error is not None:
            for node in self.nodes.values():
                print(f"--- the last lines of {node.id} ---\n{node.tail()}")

    @property
    def addresses(self) -> list[str]:
        return [node.listen for node in self.nodes.values()]

    def start(self, *node_ids: str) -> None:
        members = ",".join(f"{node.id}={node.peer}" for node in self.nodes.values())
        for node_id in node_ids or self.nodes:
            self.nodes[node_id].start(members, self._settings)

    def kill(self, node_id: str, *, counted_as: str = "kill -9") -> None:
        self.nodes[node_id].kill()
        self.counts[counted_as] += 1

    def pause(self, node_id: str) -> None:
        self.nodes[node_id].pause()
        self.counts["SIGSTOP"] += 1

    async def transfer(self, to: str) -> None:
        """Ask for it; what comes of it is seen elsewhere."""
        async with self.client() as client:
            with contextlib.suppress(RaftError):
                await client.transfer_leader(to)
        self.counts["hand-over"] += 1

    def mend(self) -> None:
        """Everybody runs again."""
        for node in self.nodes.values():
            node.resume()
            if node.exit_code is not None and node.id in self.may_die:
                node.kill()
            if node.process is None:
                self.start(node.id)
        self.may_die.clear()

    def check_alive(self) -> None:
        """Raises: NodeDied."""
        for node in self.nodes.values():
            if node.exit_code is not None and node.id not in self.may_die:
                raise NodeDied(f"{node.id} ended by itself with {node.exit_code}:\n{node.tail()}")

    # --- asking -----------------------------------------------------------------------------------------------------

    def client(self, number: int = 0, *, timeout: float = 2.0) -> HttpClusterClient:
        """A client that enters by the ``number``-th node first."""
        first = number % len(self.addresses)
        return HttpClusterClient(self.addresses[first:] + self.addresses[:first], timeout=timeout)

    async def statuses(self, *, digest: bool = False) -> dict[str, NodeStatus]:
        """What every node that answers says about itself."""

        async def ask(client: HttpClusterClient, node: RealNode) -> NodeStatus | None:
            try:
                return await client.status_of(node.listen, digest=digest)
            except RaftError:
                return None

        async with self.client() as client:
            answers = await asyncio.gather(*(ask(client, node) for node in self.nodes.values()))
        return {answer.id: answer for answer in answers if answer is not None}

    async def leader(self) -> str | None:
        """Who leads, as far as the nodes that answer know."""
        answers = await self.statuses()
        leading = [answer for answer in answers.values() if answer.role == "leader"]
        return max(leading, key=lambda answer: answer.term).id if leading else None

    async def serving(self, limit_s: float = SETTLE_S) -> float:
        """Wait until a write is answered; gives the seconds it took."""
        began = time.monotonic()
        async with self.client() as client:
            while True:
                self.check_alive()
                try:
                    await client.kv_put("serving", b"yes")
                except RaftError as error:
                    if time.monotonic() - began > limit_s:
                        raise AssertionError(f"no write is served within {limit_s} s: {error}") from error
                    await asyncio.sleep(0.1)
                else:
                    return time.monotonic() - began

    async def agreed(self, limit_s: float = SETTLE_S) -> NodeStatus:
        """Wait until all nodes hold one state at one index."""
        deadline = time.monotonic() + limit_s
        while True:
            self.check_alive()
            seen = await self.statuses(digest=True)
            states = {(status.applied, status.digest) for status in seen.values()}
            if len(seen) == len(self.nodes) and len(states) == 1:
                return next(iter(seen.values()))
            by_index: dict[int | None, set[str | None]] = {}
            for status in seen.values():
                by_index.setdefault(status.applied, set()).add(status.digest)
            if time.monotonic() > deadline:
                raise AssertionError(f"the nodes do not agree within {limit_s} s: {states}, by index {by_index}")
            await asyncio.sleep(0.2)


Nemesis = Callable[[RealCluster, random.Random], Awaitable[None]]


class Trial:
    """What a trial showed."""

    def __init__(self, history: History, report: Report, applied: int, recovery_s: float) -> None:
        self.history = history
        self.report = report
        self.applied = applied
        self.recovery_s = recovery_s

    @property
    def acknowledged(self) -> int:
        """Changes that were answered."""
        return sum(o.outcome == "ok" and o.kind != "get" for o in self.history.operations)


async def trial(
    cluster: RealCluster,
    nemesis: Nemesis,
    *,
    seed: int,
    keep: Path,
    clients: int = 5,
    keys: int = 4,
    consistency: Consistency = "linearizable",
) -> Trial:
    """Clients use the cluster while ``nemesis`` breaks it; then it is mended, and the books must balance.

    A history that does not stand is kept in ``keep``.
    """
    chance = random.Random(seed)
    workload = Workload(
        prefix=f"t{seed}/",
        seed=seed,
        clients=clients,
        keys=keys,
        seconds=None,
        think_s_max=0.02,
        final_s=SETTLE_S,
        consistency=consistency,
    )
    history = History(header=header_of(workload))
    await cluster.serving()
    stop = asyncio.Event()
    recording = asyncio.create_task(
        record(workload, lambda name: cluster.client(int(name[1:])), history=history, stop=stop)
    )
    try:
        await nemesis(cluster, chance)
        cluster.check_alive()
        cluster.mend()
        began = time.monotonic()
        await cluster.serving()
        recovery_s = time.monotonic() - began
        stop.set()
        await asyncio.wait_for(recording, 2 * SETTLE_S)
        status = await cluster.agreed()
        report = judge(history, search_all=True)
    except BaseException:
        history.save(keep / f"history-{seed}.jsonl")
        raise
    finally:
        stop.set()
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
    if not report.is_pass:
        history.save(keep / f"history-{seed}.jsonl")
    assert report.is_pass, f"{report}\n(kept in {keep / f'history-{seed}.jsonl'})"
    unread = {o.key for o in history.operations} - {
        o.key for o in history.operations if o.client == "final" and o.outcome == "ok"
    }
    assert not unread, f"never read at the end: {sorted(unread)}"
    return Trial(history, report, status.applied or 0, recovery_s)


def said(trial: Trial) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in sorted(trial.report.outcomes.items()))
    return f"{trial.report.operations} operations ({counts}), {trial.acknowledged} changes acknowledged, 0 lost"


def others(cluster: RealCluster, *node_ids: str | None) -> list[str]:
    return [node_id for node_id in cluster.nodes if node_id not in node_ids]


async def pick_leader_first(cluster: RealCluster, chance: random.Random, candidates: Iterable[str]) -> str:
    """The leader half of the time, where there is one."""
    names = list(candidates)
    leader = await cluster.leader() if chance.random() < 0.5 else None
    return leader if leader in names else chance.choice(names)
