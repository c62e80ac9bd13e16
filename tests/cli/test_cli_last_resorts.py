"""Lost nodes and lost majorities with real processes, as docs/operations.md tells it: run with ``-m process``."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli.cluster.layout import free_ports

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

NODES = ("n1", "n2", "n3")


class Site:
    """Three nodes in folders of their own, run and killed as processes."""

    def __init__(self, folder: Path, *, machine: str = "kv") -> None:
        self.folder = folder
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(NODES, free_ports(3), strict=True)}
        self._machine = machine
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("RAFTKIT_")}
        self._environment |= {"RAFTKIT_CONFIG_DIR": str(folder / "config"), "NO_COLOR": "1"}

    def __call__(self, *words: str, code: int = 0) -> dict[str, Any]:
        """One command, with --json. Gives its data, or its error."""
        done = subprocess.run(
            [sys.executable, "-m", "raftkit_cli", *words, "--json"],
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self.folder,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        document: dict[str, Any] = json.loads(done.stdout)
        return document["data" if code == 0 else "error"]  # type: ignore[no-any-return]

    def at(self, node: str, *words: str, code: int = 0) -> dict[str, Any]:
        return self("-e", self.urls[node], *words, code=code)

    def start(self, *nodes: str) -> None:
        members = ",".join(f"{name}={url}" for name, url in self.urls.items())
        for node in nodes:
            words = ["--id", node, "--network", self.urls[node], "--initial-cluster", members]
            with (self.folder / f"{node}.log").open("ab") as log:
                self._running[node] = subprocess.Popen(
                    [sys.executable, "-m", "raftkit_cli", "node", "run", *words, "--state-machine", self._machine],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=self.folder,
                )

    def kill(self, *nodes: str) -> None:
        for node in nodes:
            process = self._running.pop(node)
            process.kill()
            process.wait(10)

    def wipe(self, node: str) -> None:
        shutil.rmtree(self.data(node))

    def data(self, node: str) -> Path:
        return self.folder / "raftkit-data" / node

    def log(self, node: str) -> str:
        return (self.folder / f"{node}.log").read_text()

    def exit_code(self, node: str) -> int:
        return self._running.pop(node).wait(20)

    def eventually(self, look: Callable[[], Any], what: str, timeout: float = 30) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(AssertionError):
                found = look()
                if found:
                    return found
            assert time.monotonic() < deadline, f"{what} did not come: {[self.log(node) for node in self._running]}"
            time.sleep(0.1)

    def rejoin(self, node: str, *words: str) -> None:
        """As soon as it answers."""
        self.eventually(lambda: self.at("n1", "member", "rejoin", node, *words, "--yes"), f"{node} to rejoin")

    def leader(self, among: str) -> str:
        return str(self.eventually(lambda: self.at(among, "leader", "show")["leader"], "a leader"))


@pytest.fixture(params=["kv", "sqlite-kv:kv.db"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, machine=request.param)
    yield made
    made.kill(*list(made._running))


def test_of_a_lost_majority_one_survivor_goes_on_and_the_others_rejoin(site: Site) -> None:
    machine = ["--state-machine", site._machine]
    site.start(*NODES)
    site.leader("n1")
    for number in range(20):
        site.at("n1", "kv", "put", f"k{number}", "v")
    site.kill(*NODES)

    # Two of three are gone for good. The third alone neither serves nor may be recovered while it runs.
    site.start("n1")
    site.eventually(lambda: site.at("n1", "status", code=4), "a node without a quorum")
    refused = site("recover", "raftkit-data/n1", *machine, code=10)
    assert refused["code"] == "STORAGE_LOCKED"
    site.kill("n1")
    plan = site("recover", "raftkit-data/n1", *machine)
    assert (plan["applied"], plan["voters_not_looked_at"]) == (False, ["n2", "n3"])
    done = site("recover", "raftkit-data/n1", *machine, "--yes")
    assert Path(done["backup"]).exists()

    site.start("n1")
    assert site.leader("n1") == "n1"
    assert site.at("n1", "kv", "get", "k19")["value"] == "v"
    site.at("n1", "kv", "put", "new", "1")
    assert site.at("n1", "status")["cluster_id"] == done["new_cluster_id"]

    # One of the dead half started again, with what it had: it is refused, and n1 goes on.
    site.start("n2")
    refused = site.eventually(
        lambda: site.at("n1", "member", "rejoin", "n2", "--url", site.urls["n2"], code=10), "a refusal"
    )
    assert "belongs to cluster" in refused["message"]
    assert [member["id"] for member in site.at("n1", "member", "list")["members"]] == ["n1"]
    site.kill("n2")

    for node in ("n2", "n3"):
        site.wipe(node)
        site.start(node)
        site.rejoin(node, "--url", site.urls[node])
    site.at("n3", "kv", "put", "after", "2")
    site.kill("n1")
    site.eventually(lambda: site.at("n2", "kv", "get", "k0")["value"] == "v", "the others to serve")


def test_a_wiped_voter_is_parked_until_it_rejoins(site: Site) -> None:
    site.start(*NODES)
    site.leader("n1")
    for number in range(20):
        site.at("n1", "kv", "put", f"k{number}", "v")
    site.kill("n3")
    site.wipe("n3")
    site.start("n3")
    plan = site.eventually(lambda: site.at("n1", "member", "rejoin", "n3", "--dry-run"), "an answer of n3")
    assert plan["steps"] == ["remove", "add", "promote"]
    site.rejoin("n3")
    assert site.at("n1", "member", "rejoin", "n3")["steps"] == []
    voters = [member["id"] for member in site.at("n1", "member", "list")["members"] if member["voter"]]
    assert voters == ["n1", "n2", "n3"]
    site.kill("n2")
    site.eventually(lambda: site.at("n3", "kv", "get", "k19")["value"] == "v", "n3 to count as a voter")


def test_a_restored_store_does_not_vote_until_it_has_rejoined(site: Site) -> None:
    machine = ["--state-machine", site._machine]
    site.start(*NODES)
    site.leader("n1")
    site.at("n1", "kv", "put", "early", "1")
    site.kill("n3")
    site("storage", "backup", "n3.backup", "--id", "n3", *machine)
    site.start("n3")
    site.at("n1", "kv", "put", "late", "2")
    site.kill("n3")
    site.wipe("n3")
    site("storage", "restore", "n3.backup", "--yes", *machine)
    site.start("n3")
    site.eventually(lambda: "parked, needs to rejoin" in site.log("n3"), "a parked node")
    site.rejoin("n3")
    site.kill("n2")
    site.eventually(lambda: site.at("n3", "kv", "get", "late")["value"] == "2", "n3 to count as a voter")


def test_a_migrated_node_goes_on_and_the_old_store_is_refused(site: Site) -> None:
    site.start(*NODES)
    site.leader("n1")
    site.at("n1", "kv", "put", "k", "v")
    site.kill("n3")
    site("storage", "migrate", "--id", "n3", "--from", "sqlite:raft.db", "--to", "sqlite:moved.db", "--yes")
    site.start("n3")
    assert site.exit_code("n3") == 10
    assert "--storage sqlite:moved.db" in site.log("n3")


def test_a_saved_snapshot_begins_another_cluster(site: Site) -> None:
    machine = ["--state-machine", site._machine]
    site.start("n1", "n2", "n3")
    site.leader("n1")
    site.at("n1", "kv", "put", "k", "v")
    saved = site.at("n1", "snapshot", "save", "state.snapshot")
    assert site("snapshot", "inspect", "state.snapshot")["snapshot"]["sha256"] == saved["snapshot"]["sha256"]
    site.kill(*NODES)
    shutil.rmtree(site.folder / "raftkit-data")
    words = ["snapshot", "restore", "state.snapshot", "--id", "n1", "--network", site.urls["n1"], *machine]
    assert site(*words)["applied"] is False
    assert site(*words, "--yes")["cluster_id"] != saved["cluster_id"]
    site.start("n1")
    assert site.leader("n1") == "n1"
    assert site.at("n1", "kv", "get", "k")["value"] == "v"
