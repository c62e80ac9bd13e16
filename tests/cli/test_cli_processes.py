"""The command line with real node processes: run with ``-m process``."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.cluster.layout import free_ports

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Shell:
    """Runs ``raftkit`` as a user would, with contexts of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dir = folder / "cluster"
        folder.mkdir(exist_ok=True)
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("RAFTKIT_")}
        self._environment |= {"RAFTKIT_CONFIG_DIR": str(folder / "config"), "NO_COLOR": "1", "TMPDIR": str(folder)}

    def __call__(
        self, *arguments: str, stdin: bytes | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=self._environment,
            cwd=self.folder,
            timeout=timeout,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "raftkit_cli", *arguments]

    def json(self, *arguments: str, code: int = 0, **keywords: Any) -> dict[str, Any]:
        done = self(*arguments, "--json", **keywords)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self._environment,
            cwd=self.folder,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "shell")
    yield shell
    if (shell.dir / "cluster.json").exists():
        shell("local", "down", "--dir", str(shell.dir))


def base_port(count: int) -> int:
    """A port with ``count - 1`` free ones behind it."""
    from raftkit_cli.cluster.layout import is_port_free

    while True:
        first = random.SystemRandom().randrange(20_000, 31_000)
        if all(is_port_free(first + offset) for offset in range(count)):
            return first


def up(shell: Shell, *flags: str, nodes: int = 3) -> dict[str, Any]:
    port = base_port(nodes)
    arguments = ["local", "up", "--dir", str(shell.dir), "--base-port", str(port), "--nodes", str(nodes), *flags]
    data: dict[str, Any] = shell.json(*arguments)["data"]
    assert [node["port"] for node in data["nodes"]] == list(range(port, port + nodes))
    return data


def until_ready(process: subprocess.Popen[str]) -> list[str]:
    """Lines up to the ready line."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if " ready: " in line:
            return lines
    raise AssertionError("".join(lines))


# --- demo -----------------------------------------------------------------------------------------------------------


def test_demo_passes_and_ends_with_one_document(shell: Shell) -> None:
    began = time.monotonic()
    done = shell("demo", "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    document = json.loads(done.stdout)
    data = document["data"]
    assert document["schema"] == "raftkit.demo/1"
    assert document["ok"] is True
    assert (data["acknowledged"], data["lost"], data["nodes"]) == (200, 0, 3)
    assert data["digests_equal"] is True
    assert set(data["digests"]) == {"n1", "n2", "n3"}
    assert data["restarted"] is True
    assert data["killed"] != data["next_leader"]
    assert time.monotonic() - began < 15


def test_demo_tells_its_story_and_says_pass(shell: Shell) -> None:
    done = shell("demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PASS  200 writes acknowledged, 0 lost")
    for word in ("elected LEADER", "kill -9", "acknowledged", "restarted", "same state at index"):
        assert word in done.stderr


def test_demo_on_memory_leaves_the_dead_node_dead(shell: Shell) -> None:
    data = shell.json("demo", "--storage", "memory:")["data"]
    assert data["restarted"] is False
    assert len(data["digests"]) == 2
    assert (data["acknowledged"], data["lost"]) == (200, 0)


@pytest.mark.parametrize("nodes", ["1", "2", "5"])
def test_demo_with_other_numbers_of_nodes(nodes: str, shell: Shell) -> None:
    data = shell.json("demo", "--nodes", nodes)["data"]
    assert (data["acknowledged"], data["lost"], data["digests_equal"]) == (200, 0, True)


def test_demo_keep_leaves_a_cluster_that_answers_without_an_endpoint(shell: Shell) -> None:
    data = shell.json("demo", "--keep", str(shell.dir))["data"]
    assert data["dir"] == str(shell.dir)
    status = shell.json("status")["data"]
    assert status["state"] == "healthy"
    assert shell.json("kv", "get", "demo/0001")["data"]["value"].startswith("value 1 ")
    assert len(shell.json("local", "down")["data"]["stopped"]) == 3
    assert shell("demo", "--keep", str(shell.dir)).returncode == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process(number: signal.Signals, shell: Shell) -> None:
    with shell.running("demo") as process:
        assert process.stdout is not None
        pids = []
        for line in process.stdout:
            if " pid " in line and line.startswith("  n"):
                pids.append(int(line.rsplit(maxsplit=1)[1]))
            if len(pids) == 3:
                break
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert not [pid for pid in pids if is_alive(pid)]


def is_alive(pid: int) -> bool:
    from raftkit_cli.cluster.process import state_of

    return state_of(pid, None) != "gone"


def test_a_killed_demo_takes_its_nodes_along(shell: Shell) -> None:
    with shell.running("demo") as process:
        assert process.stdout is not None
        pids = []
        for line in process.stdout:
            if " pid " in line and line.startswith("  n"):
                pids.append(int(line.rsplit(maxsplit=1)[1]))
            if "elected LEADER" in line:
                break
        process.kill()
        process.communicate(timeout=30)
    deadline = time.monotonic() + 15
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if is_alive(pid)]


# --- local ----------------------------------------------------------------------------------------------------------


def test_a_local_cluster_lives_through_kill_pause_restart_and_down(shell: Shell) -> None:
    data = up(shell)
    here = ("--dir", str(shell.dir))
    assert data["leader"] in ("n1", "n2", "n3")
    shell.json("kv", "put", "a", "1")

    again = shell.json("local", "up", *here)["data"]
    assert again["started"] == []

    leader = shell.json("leader", "show")["data"]["leader"]
    shell.json("local", "kill", leader, *here)
    assert {node["id"]: node["state"] for node in shell.json("local", "ps", *here)["data"]["nodes"]}[leader] == "gone"
    assert shell.json("kv", "put", "a", "2")["data"]["key"] == "a"
    status = shell.json("status")["data"]
    assert status["leader"] not in (None, leader)
    assert {node["id"]: node["reachable"] for node in status["nodes"]}[leader] is False
    assert len(status["nodes"]) == 3

    shell.json("local", "restart", leader, *here)
    assert shell.json("kv", "get", "a")["data"]["value"] == "2"

    follower = next(node["id"] for node in status["nodes"] if node["reachable"] and node["id"] != status["leader"])
    shell.json("local", "pause", follower, *here)
    assert {n["id"]: n["state"] for n in shell.json("local", "ps", *here)["data"]["nodes"]}[follower] == "paused"
    shell.json("kv", "put", "a", "3")
    shell.json("local", "resume", follower, *here)

    assert "ready" in shell("local", "logs", "n1", *here).stdout
    assert set(shell.json("local", "down", *here)["data"]["stopped"]) == {"n1", "n2", "n3"}
    assert shell("kv", "get", "a").returncode == 4

    assert len(shell.json("local", "up", *here)["data"]["started"]) == 3
    assert shell.json("kv", "get", "a")["data"]["value"] == "3"


def test_check_judges_a_local_cluster_whose_nodes_are_killed_and_paused(shell: Shell) -> None:
    up(shell)
    here = ("--dir", str(shell.dir))
    history = shell.folder / "history.jsonl"
    with shell.running(
        "check", "linearizable", "--duration", "6s", "--timeout", "2s", "--save", str(history), "--json", "-q"
    ) as checking:
        time.sleep(1)
        leader = shell.json("leader", "show")["data"]["leader"]
        shell.json("local", "kill", leader, *here)
        shell.json("local", "restart", leader, *here)
        shell.json("local", "pause", leader, *here)
        shell.json("local", "resume", leader, *here)
        output, _ = checking.communicate(timeout=60)
    document = json.loads(output)
    assert checking.returncode == 0, output
    assert document["data"]["verdict"] == "linearizable"
    assert document["data"]["outcomes"]["ok"] > 50
    again = shell.json("check", "history", str(history))["data"]
    assert again["operations"] == document["data"]["operations"]


def test_members_are_added_promoted_and_removed(shell: Shell) -> None:
    up(shell)
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with shell.running("node", "run", "--id", "n4", "--network", url, "--cluster", "local") as process:
        until_ready(process)
        assert shell.json("member", "add", "n4", url)["data"]["changed"] is True
        shell.json("member", "promote", "n4")
        members = {item["id"]: item["voter"] for item in shell.json("member", "list")["data"]["members"]}
        assert members == {"n1": True, "n2": True, "n3": True, "n4": True}
        assert shell.json("leader", "transfer", "n4")["data"]["to"] == "n4"
        shell.json("leader", "transfer", "n1")
        shell.json("member", "remove", "n4", "--yes")
        members = {item["id"]: item["voter"] for item in shell.json("member", "list")["data"]["members"]}
        assert members == {"n1": True, "n2": True, "n3": True}


def test_without_a_quorum_a_write_exits_4_within_its_timeout(shell: Shell) -> None:
    up(shell)
    shell.json("kv", "put", "a", "1")
    leader = shell.json("leader", "show")["data"]["leader"]
    others = [name for name in ("n1", "n2", "n3") if name != leader]
    for name in (others[0], leader):
        shell.json("local", "kill", name, "--dir", str(shell.dir))
    began = time.monotonic()
    document = shell.json("kv", "put", "a", "2", "--timeout", "3s", code=4)
    assert time.monotonic() - began < 8
    assert document["error"]["outcome"] == "not_applied"
    assert shell.json("kv", "get", "a", "--consistency", "stale")["data"]["value"] == "1"
    assert shell.json("status")["data"]["state"] == "no quorum"


def test_an_oversized_value_and_an_empty_key_are_refused_and_change_nothing(shell: Shell) -> None:
    up(shell, nodes=1)
    document = shell.json("kv", "put", "big", "-", stdin=b"x" * (2 * 1024 * 1024), code=2)
    assert document["error"]["code"] in ("BAD_COMMAND", "REQUEST_TOO_LARGE", "PAYLOAD_TOO_LARGE")
    assert document["error"]["outcome"] == "not_applied"
    assert shell("kv", "get", "big").returncode == 3
    assert shell.json("kv", "put", "k" * 5000, "v", code=2)["error"]["code"] in ("BAD_COMMAND", "BAD_REQUEST")


def test_any_bytes_survive_the_way_through_the_cluster(shell: Shell) -> None:
    up(shell, nodes=1)
    content = bytes(range(256)) * 10
    shell.json("kv", "put", "binary", "-", stdin=content)
    raw = subprocess.run(
        shell.command("kv", "get", "binary"), capture_output=True, env=shell._environment, cwd=shell.folder, check=True
    )
    assert raw.stdout == content


# --- node run -------------------------------------------------------------------------------------------------------


def single(shell: Shell, port: int, *flags: str, name: str = "n1", folder: str = "n1") -> list[str]:
    url = f"http://127.0.0.1:{port}"
    return [
        *("node", "run", "--id", name, "--data-dir", str(shell.folder / folder), "--network", url),
        *("--initial-cluster", f"{name}={url}", *flags),
    ]


def test_a_node_serves_again_with_the_same_command_and_ends_with_0_on_sigterm(shell: Shell) -> None:
    port = free_ports(1)[0]
    endpoint = f"http://127.0.0.1:{port}"
    for turn in ("first", "second"):
        with shell.running(*single(shell, port)) as process:
            until_ready(process)
            if turn == "first":
                shell.json("-e", endpoint, "kv", "put", "k", "v")
            assert shell.json("-e", endpoint, "kv", "get", "k")["data"]["value"] == "v"
            assert (shell.folder / "n1").stat().st_mode & 0o077 == 0, "T16: nobody else looks into it"
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=10)
        assert process.returncode == 0, output
        assert "stopped (SIGTERM)" in output


def test_a_node_runs_from_a_file(shell: Shell) -> None:
    port = free_ports(1)[0]
    (shell.folder / "raftkit.toml").write_text(
        f"""
        [node]
        id = "n1"
        cluster = "filed"
        data_dir = "data"
        [network]
        url = "http://127.0.0.1:{port}"
        [bootstrap]
        initial_cluster = {{ n1 = "http://127.0.0.1:{port}" }}
        """
    )
    with shell.running("node", "run") as process:
        until_ready(process)
        status = shell.json("status")["data"]  # the file also says where to ask
        assert status["cluster"] == "filed"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 0


def test_a_port_in_use_is_9(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        document = shell.json(*single(shell, taken.getsockname()[1]), code=9)
    assert document["error"]["code"] == "ADDRESS_IN_USE"
    assert document["error"]["hint"]


def fill(shell: Shell, port: int, *flags: str) -> None:
    """A store of n1 with something in it."""
    with shell.running(*single(shell, port, *flags)) as process:
        until_ready(process)
        shell.json("-e", f"http://127.0.0.1:{port}", "kv", "put", "k", "v")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


def test_the_folder_of_another_node_or_cluster_is_10_and_stays_untouched(shell: Shell) -> None:
    port = free_ports(1)[0]
    fill(shell, port)
    other = shell.json(*single(shell, port, name="n2"), code=10)
    assert other["error"]["code"] == "IDENTITY"
    cluster = shell.json(*single(shell, port, "--cluster", "another"), code=10)
    assert cluster["error"]["code"] == "IDENTITY"
    with shell.running(*single(shell, port)) as process:
        until_ready(process)
        assert shell.json("-e", f"http://127.0.0.1:{port}", "kv", "get", "k")["data"]["value"] == "v"


def test_a_corrupt_row_is_10_and_is_left_as_it_was(shell: Shell) -> None:
    port = free_ports(1)[0]
    fill(shell, port)
    store = shell.folder / "n1" / "raft.db"
    with contextlib.closing(sqlite3.connect(store)) as connection:
        connection.execute(
            "UPDATE log SET payload = CAST(payload || x'00' AS BLOB) WHERE idx = (SELECT max(idx) FROM log)"
        )
        connection.commit()
        damaged = connection.execute("SELECT * FROM log").fetchall()
    assert shell.json(*single(shell, port), code=10)["error"]["code"] in ("STORAGE_CORRUPT", "FATAL")
    with contextlib.closing(sqlite3.connect(store)) as connection:
        assert connection.execute("SELECT * FROM log").fetchall() == damaged


def test_a_node_without_its_cluster_says_for_whom_it_waits(shell: Shell) -> None:
    first, second = free_ports(2)
    members = f"n1=http://127.0.0.1:{first},n2=http://127.0.0.1:{second}"
    with shell.running(
        "node", "run", "--id", "n2", "--network", f"http://127.0.0.1:{second}", "--initial-cluster", members
    ) as process:
        until_ready(process)
        assert process.stdout is not None
        assert "waits for n1 to begin the cluster" in process.stdout.readline()


def test_a_locked_store_is_refused_within_a_second_naming_the_holder(shell: Shell) -> None:
    first, second = free_ports(2)
    with shell.running(*single(shell, first)) as process:
        until_ready(process)
        began = time.monotonic()
        document = shell.json(*single(shell, second), code=10)
        assert time.monotonic() - began < 3  # one second, and the start of an interpreter on a busy machine
        assert document["error"]["code"] == "STORAGE_LOCKED"
        assert str(process.pid) in document["error"]["message"]


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--storage", "nosuch:x"], 9),
        (["--storage", "sqlite:raft.db?nosuch=1"], 9),
        (["--network", "nosuch://127.0.0.1:1"], 9),
        (["--state-machine", "nosuch"], 9),
        (["--initial-cluster", "n2=http://127.0.0.1:1"], 9),
        (["--initial-cluster", "n1"], 2),
        (["--id", "no spaces"], 2),
    ],
)
def test_a_wrong_setting_is_a_clear_error_and_makes_no_store(flags: list[str], code: int, shell: Shell) -> None:
    port = free_ports(1)[0]
    document = shell.json(*single(shell, port), *flags, code=code)
    assert document["error"]["hint"]
    assert not list((shell.folder / "n1").glob("*.db"))


def test_an_unreachable_endpoint_is_4(shell: Shell) -> None:
    port = free_ports(1)[0]
    document = shell.json("-e", f"http://127.0.0.1:{port}", "status", code=4)
    assert document["error"]["code"] == "UNREACHABLE"
    assert str(port) in document["error"]["message"]
