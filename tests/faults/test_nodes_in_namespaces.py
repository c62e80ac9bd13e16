"""Real nodes in networks of their own whose packets vanish: nobody is told, nothing is reset.

The clients are ``raftkit check linearizable``, as anybody would run it, in the namespace of the bridge.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from namespaces import Namespaces, why_not
from nodes import RealCluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

NODES = ["n1", "n2", "n3"]
DURATION_S = 14


@pytest.fixture
def network() -> Iterator[Namespaces]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Namespaces(NODES) as made:
        yield made


@pytest.fixture
def cluster(network: Namespaces, tmp_path: Path) -> Iterator[RealCluster]:
    listen = {name: f"http://{network.address(name)}:7401" for name in NODES}
    with RealCluster(tmp_path, listen=listen, prefix=network.inside) as made:
        made.start()
        yield made


def partitions(network: Namespaces, chance: random.Random) -> None:
    victim = chance.choice(NODES)
    network.isolate(victim)
    time.sleep(2.2)


def one_way(network: Namespaces, chance: random.Random) -> None:
    victim, *others = chance.sample(NODES, 3)
    for other in others:
        network.drop(*chance.choice([(victim, other), (other, victim)]))
    time.sleep(2.2)


def partial(network: Namespaces, chance: random.Random) -> None:
    """Two do not see each other, both see the third."""
    one, other, _ = chance.sample(NODES, 3)
    network.drop(one, other)
    network.drop(other, one)
    time.sleep(2.2)


def loss(network: Namespaces, chance: random.Random) -> None:
    for name in NODES:
        network.lose(name, chance.choice([5, 20]))
    time.sleep(2.2)


def large_ones_vanish(network: Namespaces, chance: random.Random) -> None:
    network.swallow_large(chance.choice(NODES))
    time.sleep(2.2)


@pytest.mark.parametrize(
    ("breaking", "seed"),
    [
        pytest.param(partitions, 61, id="partitions"),
        pytest.param(one_way, 62, id="one way"),
        pytest.param(partial, 63, id="partial"),
        pytest.param(loss, 64, id="loss"),
        pytest.param(large_ones_vanish, 65, id="large ones vanish"),
    ],
)
def test_vanishing_packets_lose_nothing_and_show_nothing_stale(
    breaking: Callable[[Namespaces, random.Random], None],
    seed: int,
    network: Namespaces,
    cluster: RealCluster,
    tmp_path: Path,
) -> None:
    chance = random.Random(seed)
    command = [*network.inside(), sys.executable, "-m", "raftkit_cli", "--json", "-e", ",".join(cluster.addresses)]
    _until_healthy(command)
    history = tmp_path / "history.jsonl"
    check = [*command, "check", "linearizable", "--duration", f"{DURATION_S}s", "--seed", str(seed)]
    check += ["--timeout", "2s", "--save", str(history)]
    with subprocess.Popen(check, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as recording:
        try:
            until = time.monotonic() + DURATION_S - 4
            while time.monotonic() < until:
                time.sleep(chance.uniform(0.4, 1.0))
                breaking(network, chance)
                network.heal()
                cluster.check_alive()
            output, errors = recording.communicate(timeout=90)
        finally:
            network.heal()
            recording.kill()
    document: dict[str, Any] = json.loads(output)
    assert recording.returncode == 0, (document, errors[-2000:])
    print(document["data"]["outcomes"])
    assert document["data"]["verdict"] == "linearizable"
    assert document["data"]["outcomes"]["ok"] > 100
    assert _until_healthy(command)["quorum"]


def _until_healthy(command: list[str]) -> dict[str, Any]:
    """Every node is there and follows one leader."""
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run([*command, "status"], capture_output=True, text=True, timeout=30, check=False)
        document: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"data": {}, "ok": False}
        if document["ok"] and document["data"]["state"] == "healthy":
            data: dict[str, Any] = document["data"]
            return data
        assert time.monotonic() < deadline, done.stdout + done.stderr
        time.sleep(0.3)
