"""The folder of a local cluster: its shape is kept, and a recycled pid is nobody's node."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.cluster.layout import ClusterFolder, LocalCluster, free_ports, is_port_free, tail
from raftkit_cli.cluster.process import kill_now, send, start_token, state_of, wait_gone
from raftkit_cli.failures import CliError

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def make_folder(path: Path, ports: list[int] | None = None) -> ClusterFolder:
    plan = LocalCluster.plan(
        cluster="local",
        count=3,
        ports=ports or [7501, 7502, 7503],
        storage="sqlite:{id}.db",
        network="http",
        state_machine="kv",
    )
    return ClusterFolder(path, plan)


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.cluster.nodes[1].pid, folder.cluster.nodes[1].token = 4711, "token"
    folder.save()
    loaded = ClusterFolder.load(tmp_path)
    assert loaded is not None
    assert loaded.cluster == folder.cluster
    assert ClusterFolder.load(tmp_path / "elsewhere") is None


def test_every_start_of_a_node_is_the_same_command(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    assert folder.arguments(folder.cluster.nodes[1]) == [
        *("--id", "n2", "--data-dir", str(tmp_path / "n2" / "data"), "--storage", "sqlite:n2.db"),
        *("--network", "http://127.0.0.1:7502", "--cluster", "local", "--state-machine", "kv"),
        *("--initial-cluster", "n1=http://127.0.0.1:7501,n2=http://127.0.0.1:7502,n3=http://127.0.0.1:7503"),
    ]


def test_a_damaged_state_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"nodes": 3}')
    with pytest.raises(CliError, match="is not the state of a local cluster"):
        ClusterFolder.load(tmp_path)


def test_an_unknown_node_lists_the_known_ones(raftkit: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "local").save()
    document = raftkit.json("local", "kill", "n9", code=3, endpoint=None)
    assert document["error"]["message"] == "there is no node 'n9' here; known: n1, n2, n3"


def test_killing_what_does_not_run_says_how_to_start_it(raftkit: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "local").save()
    document = raftkit.json("local", "kill", "n2", code=8, endpoint=None)
    assert "raftkit local restart n2" in document["error"]["hint"]


@pytest.mark.parametrize(
    "flags", [["--nodes", "5"], ["--base-port", "9000"], ["--storage", "memory:"], ["--cluster", "x"]]
)
def test_up_with_another_shape_is_refused(flags: list[str], raftkit: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "local").save()
    document = raftkit.json("local", "up", *flags, code=9, endpoint=None)
    assert flags[0] in document["error"]["message"]
    assert "--dir" in document["error"]["hint"]


def test_up_on_a_taken_port_starts_nothing_and_names_another(raftkit: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = raftkit("local", "up", "--base-port", str(port), endpoint=None)
    assert result.exit_code == 9, result.stderr
    assert f"127.0.0.1:{port}: the port is taken" in result.stderr
    assert "--base-port" in result.stderr.partition("Try:")[2]
    assert not (tmp_path / "local" / "cluster.json").exists()


def test_logs_show_the_end_of_each_file(raftkit: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "local")
    folder.save()
    log = folder.log_path(folder.cluster.nodes[0])
    log.parent.mkdir()
    log.write_text("\n".join(f"line {number}" for number in range(100)) + "\n")
    assert raftkit("local", "logs", "n1", "-n", "2", endpoint=None).stdout == "line 98\nline 99\n"
    assert tail(tmp_path / "absent", 5) == []


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(is_port_free(port) for port in ports)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@needs_proc
def test_a_process_is_known_by_pid_and_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    token = start_token(sleeper.pid)
    assert state_of(sleeper.pid, token) == "running"
    assert state_of(sleeper.pid, "another start") == "gone"
    assert not kill_now(sleeper.pid, "another start")
    assert sleeper.poll() is None
    assert state_of(None, None) == "gone"


@needs_proc
def test_a_paused_process_is_told_from_a_running_one_and_a_zombie_is_gone(sleeper: subprocess.Popen[bytes]) -> None:
    token = start_token(sleeper.pid)
    assert send(sleeper.pid, token, signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert state_of(sleeper.pid, token) == "paused"
    assert send(sleeper.pid, token, signal.SIGCONT)
    assert kill_now(sleeper.pid, token)
    assert wait_gone(sleeper.pid, token, timeout_s=60)  # nobody has reaped it yet
    assert not send(sleeper.pid, token, signal.SIGTERM)
