"""A cluster on this machine as a folder: one subfolder, log file and line in ``cluster.json`` per node.

The state file is written after every change, so that whoever comes next finds exactly the processes that were started.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from raftkit_cli.cluster.process import ProcessState, kill_now, start_token, state_of, stop
from raftkit_cli.endpoints import write_atomically
from raftkit_cli.failures import CliError

STATE_FILE = "cluster.json"
STOP_GRACE_S = 7.0
"""A node closes within 5 s; after this it is killed."""


class LocalNode(msgspec.Struct, kw_only=True):
    """One node. ``pid`` None: stopped; ``token`` guards against a recycled pid.

    ``port`` is where clients reach it. ``peer_port`` None: its peers too.
    """

    id: str
    port: int
    peer_port: int | None = None
    pid: int | None = None
    token: str | None = None


class LocalCluster(msgspec.Struct, kw_only=True):
    """What was started and how; ``storage`` and ``state_machine`` as ``node run`` takes them."""

    format: int = 1
    cluster: str
    storage: str
    network: str
    state_machine: str
    nodes: list[LocalNode]

    @classmethod
    def plan(
        cls,
        *,
        cluster: str,
        count: int,
        ports: list[int],
        storage: str,
        network: str,
        state_machine: str,
        serves_clients: bool = True,
    ) -> LocalCluster:
        """n1, n2, … on ``ports``. A network that does not serve clients gets a port of its own for each node."""
        nodes = [LocalNode(id=f"n{number}", port=port) for number, port in zip(range(1, count + 1), ports, strict=True)]
        if not serves_clients:
            for node, port in zip(nodes, free_ports(count, but_not=ports), strict=True):
                node.peer_port = port
        return cls(cluster=cluster, storage=storage, network=network, state_machine=state_machine, nodes=nodes)

    def node(self, node_id: str) -> LocalNode:
        """Raises: CliError when there is no such node."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        known = ", ".join(node.id for node in self.nodes)
        raise CliError("UNKNOWN_NODE", f"there is no node {node_id!r} here; known: {known}", hint="raftkit local ps")

    def url(self, node: LocalNode) -> str:
        """Where clients reach ``node``."""
        return f"{self.network if node.peer_port is None else 'http'}://127.0.0.1:{node.port}"

    def network_url(self, node: LocalNode) -> str:
        """What ``node`` is told about its network, and the others about ``node``."""
        if node.peer_port is None:
            return self.url(node)
        return f"{self.network}://127.0.0.1:{node.peer_port}?client={self.url(node)}"

    @property
    def endpoints(self) -> list[str]:
        return [self.url(node) for node in self.nodes]


class ClusterFolder:
    """The folder of a cluster: starting, finding and stopping its processes."""

    def __init__(self, path: Path, cluster: LocalCluster) -> None:
        self.path = path
        self.cluster = cluster
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        """Our own children: reaped here, or they would stay as zombies."""

    # --- the state file -----------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: Path) -> ClusterFolder | None:
        """The cluster in ``path``, or None. Raises: CliError for a state file that cannot be read."""
        state_file = path / STATE_FILE
        try:
            raw = state_file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CliError("CONFIG", f"{state_file} cannot be read: {error}", hint="choose another --dir") from error
        try:
            return cls(path, msgspec.json.decode(raw, type=LocalCluster))
        except msgspec.DecodeError as error:
            raise CliError(
                "CONFIG",
                f"{state_file} is not the state of a local cluster: {error}",
                hint=f"choose another --dir, or delete {path}",
            ) from error

    def save(self) -> None:
        """Write the state file."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(self.cluster), indent=2).decode()
        write_atomically(self.path / STATE_FILE, text + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second ``raftkit local`` out of this folder meanwhile (where the system has file locks)."""
        try:
            import fcntl
        except ImportError:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as handle:
            deadline = time.monotonic() + 15.0
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= deadline:
                        raise CliError(
                            "TIMEOUT",
                            f"another raftkit command is at work in {self.path}",
                            hint="wait until it is done, then run the same command again",
                        ) from None
                    time.sleep(0.05)
            yield

    # --- processes ----------------------------------------------------------------------------------------------

    def state(self, node: LocalNode) -> ProcessState:
        """What the process of ``node`` does."""
        child = self._children.get(node.id)
        if child is not None and child.poll() is not None:
            return "gone"
        return state_of(node.pid, node.token)

    def log_path(self, node: LocalNode) -> Path:
        return self.path / node.id / "node.log"

    def data_dir(self, node: LocalNode) -> Path:
        return self.path / node.id / "data"

    def start(self, node: LocalNode, *, tied: bool) -> None:
        """Start ``node``: the same command for the first and every later time.

        ``tied`` nodes end with this process, however it ends: their standard input is a pipe from here.
        """
        self.data_dir(node).mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log_path(node).open("ab") as log:
            child = self._spawn(node, log, tied)
        self._children[node.id] = child
        node.pid, node.token = child.pid, start_token(child.pid)
        self.save()

    def _spawn(self, node: LocalNode, log: IO[bytes], tied: bool) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "raftkit_cli", "node", "run", *self.arguments(node)]
        if tied:
            command.append("--tied")
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        # A session of its own: Ctrl-C in the terminal is for us, who then stop the nodes in order.
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self.path,
            env=environment,
        )

    def arguments(self, node: LocalNode) -> list[str]:
        """What ``raftkit node run`` is given for ``node``."""
        cluster = self.cluster
        members = ",".join(f"{other.id}={cluster.network_url(other)}" for other in cluster.nodes)
        return [
            *("--id", node.id),
            *("--data-dir", str(self.data_dir(node))),
            *("--storage", cluster.storage.replace("{id}", node.id)),
            *("--network", cluster.network_url(node)),
            *("--cluster", cluster.cluster),
            *("--state-machine", cluster.state_machine),
            *("--initial-cluster", members),
        ]

    def kill(self, node: LocalNode) -> bool:
        """``kill -9``. False if it did not run."""
        if node.pid is None or self.state(node) == "gone":
            return False
        killed = kill_now(node.pid, node.token)
        self._reap(node, timeout_s=5.0)
        self._forget(node)
        return killed

    def kill_all(self) -> None:
        """``kill -9`` every node: for what is thrown away anyway."""
        for node in self.cluster.nodes:
            self.kill(node)

    def stop(self, node: LocalNode) -> str:
        """SIGTERM, then SIGKILL."""
        if node.pid is None or self.state(node) == "gone":
            self._forget(node)
            return "gone"
        how = stop(node.pid, node.token, grace_s=STOP_GRACE_S)
        self._reap(node, timeout_s=1.0)
        self._forget(node)
        return how

    def stop_all(self) -> dict[str, str]:
        """Stop every node, all at the same time."""
        import concurrent.futures

        nodes = [node for node in self.cluster.nodes if node.pid is not None]
        if not nodes:
            return {}
        with concurrent.futures.ThreadPoolExecutor(len(nodes)) as pool:
            results = dict(zip((node.id for node in nodes), pool.map(self._stop_one, nodes), strict=True))
        for node in nodes:
            self._reap(node, timeout_s=1.0)
            node.pid = node.token = None
        self.save()
        return results

    def _stop_one(self, node: LocalNode) -> str:
        assert node.pid is not None  # filtered by the caller
        return stop(node.pid, node.token, grace_s=STOP_GRACE_S)

    def _reap(self, node: LocalNode, *, timeout_s: float) -> None:
        child = self._children.pop(node.id, None)
        if child is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout_s)
        if child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()

    def _forget(self, node: LocalNode) -> None:
        node.pid = node.token = None
        self.save()

    def release(self) -> None:
        """Let the children live on without us."""
        for child in self._children.values():
            child.returncode = 0  # or Popen warns that a child it does not wait for still runs
        self._children.clear()

    def log_tail(self, node: LocalNode, lines: int) -> list[str]:
        """The last lines a node wrote."""
        return tail(self.log_path(node), lines)


_NOT_INHERITED = ("RAFTKIT_ENDPOINTS", "RAFTKIT_CONTEXT", "RAFTKIT_TOKEN_FILE", "RAFTKIT_COLOR", "FORCE_COLOR")
"""Settings of the person at the terminal, not of a node."""


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` of a text file; reads its last MiB at most."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, os.SEEK_END)
            handle.seek(max(0, handle.tell() - 1024 * 1024))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[-lines:] if lines > 0 else []


def is_port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # what servers do, so that a port of just ended connections counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int, *, but_not: Sequence[int] = ()) -> list[int]:
    """Ports nobody listens on, all different.

    Below the range that systems give to outgoing connections: a node that is down for a while must not find its port
    taken by the other end of somebody's connection.
    """
    import random

    candidates = random.SystemRandom().sample(range(20_000, 32_000), 400)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if port not in but_not and is_port_free(port):
            found.append(port)
    if len(found) < count:
        raise CliError("ADDRESS_IN_USE", "no free ports between 20000 and 32000", hint="stop other programs first")
    return sorted(found)
