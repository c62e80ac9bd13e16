"""ARCHITECTURE.md tells the truth: its functions exist, and work goes through them."""

from __future__ import annotations

import ast
import asyncio
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from random import Random

import pytest

from raftkit_core import Node, Raft, SnapshotPolicy, open_raft
from raftkit_core.config import Config
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.kv import Get, Put

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "raftkit-core" / "src" / "raftkit_core"
PLACE = re.compile(r"`([\w/]+\.py)`\s+·\s+`([\w.]+)`")
SETTLED_SECONDS = 0.345
"""Long enough for a commit to reach everybody, and not a multiple of the heartbeat."""

Place = tuple[str, str]


def places(section: str | None = None) -> list[Place]:
    """``(file, function)`` of the whole page, or of the table under the heading ``section``, in order."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    if section is None:
        return PLACE.findall(text)
    body = text.partition(f"\n### {section}\n")[2].partition("\n#")[0]
    rows = [line for line in body.split("\n") if line.startswith("| ")]
    return [place for row in rows for place in PLACE.findall(row)]


def definitions(path: Path) -> set[str]:
    found: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
            if isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")

    walk(ast.parse(path.read_text()), "")
    return found


def test_every_function_named_in_the_tables_exists() -> None:
    assert len(places()) > 60
    missing = [
        f"{file} · {name}"
        for file, name in places()
        if not (PACKAGE / file).exists() or name not in definitions(PACKAGE / file)
    ]
    assert not missing


@contextmanager
def followed() -> Iterator[dict[Place, None]]:
    """Every function of raftkit_core that is called inside, in the order of first calls."""
    seen: dict[Place, None] = {}
    prefix = str(PACKAGE) + "/"

    def note(frame: object, event: str, _argument: object) -> None:
        if event == "call":
            code = frame.f_code  # type: ignore[attr-defined]
            if code.co_filename.startswith(prefix):
                name = code.co_qualname.removesuffix(".__init__")
                seen.setdefault((code.co_filename.removeprefix(prefix), name), None)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@asynccontextmanager
async def cluster(hub: str, *, extra: bool = False) -> AsyncIterator[dict[str, Raft]]:
    members = {node_id: Node(f"memory:{hub}/{node_id}") for node_id in ("n1", "n2", "n3")}
    config = Config(snapshot_policy=SnapshotPolicy.Never(), max_in_snapshot_log_to_keep=0)
    async with AsyncExitStack() as stack:
        nodes = {
            node_id: await stack.enter_async_context(
                open_raft(
                    node_id,
                    storage="memory:",
                    network=f"memory:{hub}",
                    config=config,
                    clock=VirtualClock(),
                    entropy=Random(node_id),
                )
            )
            for node_id in (*members, *(["n4"] if extra else []))
        }
        await nodes["n1"].initialize(members)
        await nodes["n1"].wait(10).current_leader("n1")
        await nodes["n1"].client_write(Put("k", b"v"))
        await settle(nodes["n1"])
        yield nodes


async def settle(raft: Raft) -> None:
    """Let everybody learn what is committed; time is virtual."""
    await asyncio.sleep(SETTLED_SECONDS)
    assert raft.metrics().value.current_leader == "n1"


def not_called(section: str, seen: dict[Place, None]) -> list[Place]:
    return [place for place in places(section) if place not in seen]


@pytest.mark.virtual_time
async def test_a_write_goes_through_its_table_in_this_order() -> None:
    async with cluster("write") as nodes:
        with followed() as seen:
            await nodes["n1"].client_write(Put("k", b"2"))
    table = places("A write")
    assert not not_called("A write", seen)
    order = [place for place in seen if place in table]
    assert order == table


@pytest.mark.virtual_time
async def test_a_write_under_a_session_goes_through_its_table() -> None:
    async with cluster("session") as nodes:
        with followed() as seen:
            async with nodes["n2"].open_session(ttl=1) as session:
                await session.write(Put("k", b"3"))
                await asyncio.sleep(1)
            nodes["n1"]._core.worker.system.seal()  # what a durable machine calls
    wanted = "A write that may be sent twice"
    assert len(places(wanted)) > 9
    assert not not_called(wanted, seen)


@pytest.mark.virtual_time
async def test_a_read_goes_through_its_table() -> None:
    async with cluster("read") as nodes:
        with followed() as seen:
            assert (await nodes["n2"].read(Get("k"))).value == b"v"
            await nodes["n1"].read(Get("k"))
    assert not not_called("A read", seen)


@pytest.mark.virtual_time
async def test_an_election_goes_through_its_table() -> None:
    async with cluster("vote") as nodes:
        with followed() as seen:
            nodes["n3"].runtime_config().elect(False)
            nodes["n1"].runtime_config().heartbeat(False)  # alive, but silent
            await nodes["n2"].wait(10).current_leader("n2")
    assert not not_called("A vote", seen)


@pytest.mark.virtual_time
async def test_a_snapshot_goes_through_its_table() -> None:
    async with cluster("snapshot", extra=True) as nodes:
        leader = nodes["n1"]
        with followed() as seen:
            leader.trigger().snapshot()
            await leader.wait(5).metrics(lambda seen: seen.snapshot is not None, "a snapshot")
            leader.trigger().purge_log(1)
            await leader.wait(5).metrics(lambda seen: seen.purged is not None, "a purge")
            await leader.add_learner("n4", Node("memory:snapshot/n4"))
            await nodes["n4"].read(Get("k"))
    assert not not_called("A snapshot", seen)


@pytest.mark.virtual_time
async def test_a_membership_change_goes_through_its_table() -> None:
    async with cluster("members", extra=True) as nodes:
        leader = nodes["n1"]
        with followed() as seen:
            await leader.add_learner("n4", Node("memory:members/n4"))
            await leader.change_membership({"n1", "n2", "n4"})
            await asyncio.sleep(3)  # a removed node keeps its stream for a while
    assert not not_called("A membership change", seen)
