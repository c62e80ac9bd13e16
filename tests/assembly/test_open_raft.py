"""``open_raft``: names and URLs become a running node, and nothing stays open when that fails."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from raftkit_core import Config, Node, hookimpl, open_raft
from raftkit_core.assembly import BOOTSTRAP_MARKER
from raftkit_core.errors import (
    AddressInUse,
    ConfigError,
    IdentityError,
    NeedsRejoin,
    RaftError,
    StorageError,
    StorageLocked,
    UnknownScheme,
)
from raftkit_core.network.memory import MemoryNetworkFactory
from raftkit_core.state_machine.kv import KvStateMachine
from raftkit_core.storage.memory import MemoryDisk, MemoryLogStorage, MemorySnapshotStorage
from raftkit_core.testing.virtual_time import VirtualClock
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.kv import Get, Put
from raftkit_core.types.snapshot import SnapshotMeta

CLOCK = VirtualClock()


def virtual(node_id: str, hub: str, **options: Any) -> Any:
    settings = {"storage": "memory:", "snapshots": "memory:", "network": f"memory:{hub}", "clock": CLOCK} | options
    return open_raft(node_id, **settings)


class Parts:
    """A plugin whose adapters remember what was opened and closed, and fail where they are told to."""

    def __init__(self, *, fail: str = "") -> None:
        self.events: list[str] = []
        self.fail = fail
        self.disk = MemoryDisk("n1")

    def step(self, what: str) -> None:
        self.events.append(what)
        if what == self.fail:
            raise StorageError(f"{what} failed on purpose")

    @hookimpl
    def raftkit_register_storage(self, registry: Any) -> None:
        registry.add("parts", self._storage, snapshots=self._snapshots)

    @hookimpl
    def raftkit_register_network(self, registry: Any) -> None:
        registry.add("parts", self._network)

    @hookimpl
    def raftkit_register_state_machine(self, registry: Any) -> None:
        registry.add("parts", lambda url, context: self._machine())

    def _storage(self, url: Any, context: AdapterContext) -> MemoryLogStorage:
        parts = self

        class Storage(MemoryLogStorage):
            async def open(self, context: AdapterContext) -> Any:
                identity = await super().open(context)
                parts.step("open storage")
                return identity

            async def read_state(self) -> Any:
                parts.step("recover")
                return await super().read_state()

            async def close(self) -> None:
                parts.events.append("close storage")
                await super().close()

        return Storage(self.disk)

    def _snapshots(self, url: Any, context: AdapterContext) -> MemorySnapshotStorage:
        parts = self

        class Snapshots(MemorySnapshotStorage):
            async def open(self, context: AdapterContext) -> None:
                parts.step("open snapshots")

            async def current(self) -> SnapshotMeta | None:
                return await super().current()

            async def close(self) -> None:
                parts.events.append("close snapshots")

        return Snapshots(self.disk)

    def _network(self, url: Any, context: AdapterContext) -> MemoryNetworkFactory:
        parts = self

        class Network(MemoryNetworkFactory):
            async def serve(self, group: str, service: Any) -> None:
                parts.step("serve")
                await super().serve(group, service)

            async def close(self) -> None:
                parts.events.append("close network")
                await super().close()

        return Network("parts", context.node_id)

    def _machine(self) -> KvStateMachine:
        parts = self

        class Machine(KvStateMachine):
            async def open(self, context: AdapterContext) -> None:
                parts.step("open machine")

            async def close(self) -> None:
                parts.events.append("close machine")

        return Machine()


STEPS = ["open storage", "open snapshots", "open machine", "recover", "serve"]
CLOSED = ["close machine", "close network", "close snapshots", "close storage"]


@pytest.mark.virtual_time
async def test_three_nodes_in_one_program_are_a_cluster() -> None:
    async with AsyncExitStack() as stack:
        rafts = [await stack.enter_async_context(virtual(f"n{number}", "embed")) for number in (1, 2, 3)]
        await rafts[0].initialize({f"n{number}": Node(f"memory:embed/n{number}") for number in (1, 2, 3)})
        await rafts[2].write(Put("a", b"1"))
        assert (await rafts[1].read(Get("a"))).value == b"1"


@pytest.mark.virtual_time
async def test_every_part_is_opened_in_order_and_closed_at_the_end() -> None:
    parts = Parts()
    async with open_raft(
        "n1", storage="parts:", network="parts:", state_machine="parts", plugins=[parts], clock=CLOCK
    ) as raft:
        await raft.initialize({"n1": Node("memory:parts/n1")})
        await raft.write(Put("a", b"1"))
    seen = list(dict.fromkeys(parts.events))
    assert seen[: len(STEPS)] == STEPS
    assert sorted(seen[len(STEPS) :]) == CLOSED
    assert parts.disk.holder is None


@pytest.mark.virtual_time
@pytest.mark.parametrize("failing", STEPS)
async def test_what_was_opened_is_closed_when_the_start_fails_half_way(failing: str) -> None:
    parts = Parts(fail=failing)
    with pytest.raises(StorageError, match="failed on purpose"):
        async with open_raft(
            "n1", storage="parts:", network="parts:", state_machine="parts", plugins=[parts], clock=CLOCK
        ):
            pytest.fail("it must not start")
    assert parts.disk.holder is None, "the claim on the store is released"
    opened = STEPS[: STEPS.index(failing) + 1]
    for what, closing in {
        "open storage": "close storage",
        "open snapshots": "close snapshots",
        "open machine": "close machine",
    }.items():
        assert (closing in parts.events) == (what in opened), parts.events
    assert "close network" in parts.events
    parts.fail = ""
    async with open_raft(
        "n1", storage="parts:", network="parts:", state_machine="parts", plugins=[parts], clock=CLOCK
    ) as raft:
        assert raft.id == "n1"


@pytest.mark.virtual_time
async def test_an_error_in_the_block_closes_everything_and_goes_on_to_the_caller() -> None:
    parts = Parts()
    with pytest.raises(ZeroDivisionError):
        async with open_raft(
            "n1", storage="parts:", network="parts:", state_machine="parts", plugins=[parts], clock=CLOCK
        ):
            raise ZeroDivisionError
    assert set(CLOSED) <= set(parts.events)


@pytest.mark.virtual_time
async def test_missing_settings_are_named_together() -> None:
    with pytest.raises(ConfigError, match="a node needs id, storage, network"):
        async with open_raft():
            pass
    with pytest.raises(ConfigError, match="a node needs network"):
        async with open_raft("n1", storage="memory:"):
            pass


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"storage": "nosuch:x"}, UnknownScheme, "nosuch"),
        ({"network": "nosuch:x"}, UnknownScheme, "nosuch"),
        ({"state_machine": "nosuch"}, UnknownScheme, "nosuch"),
        ({"storage": "memory:?color=red"}, RaftError, "color"),
        ({"node_id": "not an id"}, ConfigError, "not a node id"),
    ],
)
async def test_a_wrong_setting_is_named_and_nothing_is_started(settings: Any, error: Any, words: str) -> None:
    arguments = {"node_id": "n1", "storage": "memory:", "network": "memory:w", "snapshots": "memory:"} | settings
    with pytest.raises(error, match=words):
        async with open_raft(**arguments):
            pass


@pytest.mark.virtual_time
async def test_a_second_node_of_one_name_on_a_hub_is_refused_and_the_first_goes_on() -> None:
    async with virtual("n1", "twice") as raft:
        with pytest.raises(AddressInUse):
            async with virtual("n1", "twice"):
                pass
        await raft.initialize({"n1": Node("memory:twice/n1")})
        await raft.write(Put("a", b"1"))


@pytest.mark.virtual_time
async def test_a_store_is_refused_to_whoever_it_does_not_belong_to() -> None:
    parts = Parts()

    def opened(node_id: str = "n1", **options: Any) -> Any:
        settings = {"storage": "parts:", "network": "parts:", "state_machine": "parts"} | options
        return open_raft(node_id, plugins=[parts], clock=CLOCK, **settings)

    async with opened():
        pass
    for wrong in (
        opened("n2"),
        opened(config=Config(cluster="other")),
        opened(group="other"),
        opened(config=Config(single_term_leader=True)),
    ):
        with pytest.raises(IdentityError):
            async with wrong:
                pass
        assert parts.disk.holder is None
    async with opened():
        pass


# --- raftkit.toml -----------------------------------------------------------------------------------------------------


@pytest.mark.virtual_time
async def test_a_file_stands_in_for_what_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "raftkit.toml"
    path.write_text(
        """
        [node]
        id = "n1"
        cluster = "demo"
        data_dir = "data"
        [storage]
        url = "memory:"
        snapshots = "memory:"
        [network]
        url = "memory:filed"
        [raft]
        heartbeat_interval_ms = "70ms"
        [bootstrap.initial_cluster]
        n1 = "memory:filed/n1"
        """
    )
    async with open_raft(config_file=path, clock=CLOCK) as raft:
        assert raft.id == "n1"
        assert (raft.config.cluster, raft.config.heartbeat_interval_ms) == ("demo", 70)
        assert raft.data_dir == tmp_path / "data"
        await raft.wait(5).current_leader("n1")
        await raft.write(Put("a", b"1"))
    given: Any = {"network": "memory:other", "config": Config(), "data_dir": tmp_path / "two"}
    given["initial_cluster"] = {"n2": Node("memory:other/n2")}
    async with open_raft("n2", config_file=path, clock=CLOCK, **given) as raft:
        assert (raft.id, raft.config) == ("n2", Config()), "what is given wins"


# --- bootstrap --------------------------------------------------------------------------------------------------------


def three(hub: str) -> dict[str, Node]:
    return {f"n{number}": Node(f"memory:{hub}/n{number}") for number in (1, 2, 3)}


@pytest.mark.virtual_time
async def test_the_lowest_id_initializes_once_all_are_there() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(virtual("n1", "boot", initial_cluster=three("boot")))
        await asyncio.sleep(3)
        assert not await first.is_initialized()
        others = [
            await stack.enter_async_context(virtual(f"n{number}", "boot", initial_cluster=three("boot")))
            for number in (3, 2)
        ]
        for raft in (first, *others):
            await raft.wait(10).any_leader()
        await others[0].write(Put("a", b"1"))
        assert first.metrics().value.membership.membership.voter_ids == ("n1", "n2", "n3")


@pytest.mark.parametrize(
    "members", [{"n2": Node("memory:x/n2")}, ["n1"], {"n1": "memory:x/n1"}], ids=["another", "a list", "no nodes"]
)
@pytest.mark.virtual_time
async def test_an_initial_cluster_that_could_never_begin_here_is_refused_at_once(members: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        async with virtual("n1", "slip", initial_cluster=members):
            pass
    assert refused.value.hint is not None


@pytest.mark.virtual_time
async def test_a_bootstrap_that_waits_ends_with_its_node() -> None:
    async with virtual("n1", "alone", initial_cluster=three("alone")) as raft:
        await asyncio.sleep(0.5)
        assert raft.is_pristine


@pytest.mark.virtual_time
async def test_the_bootstrap_marker_refuses_a_folder_whose_store_was_wiped(tmp_path: Path) -> None:
    async with virtual("n1", "marked", data_dir=tmp_path, initial_cluster={"n1": Node("memory:marked/n1")}) as raft:
        await raft.wait(5).current_leader("n1")
        store_id = raft.store_id
    assert (tmp_path / BOOTSTRAP_MARKER).read_text() == store_id
    with pytest.raises(NeedsRejoin, match=store_id):  # a new memory store is an empty one
        async with virtual("n1", "marked", data_dir=tmp_path, initial_cluster={"n1": Node("memory:marked/n1")}):
            pass
    assert (tmp_path / BOOTSTRAP_MARKER).read_text() == store_id
    async with virtual("n1", "marked", data_dir=tmp_path) as raft:
        assert raft.is_pristine, "without a bootstrap section it waits to be added"


# --- on disk and over sockets, in real time ---------------------------------------------------------------------------


async def test_one_node_on_sqlite_and_http_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    def opened() -> Any:
        return open_raft(
            "n1",
            storage="sqlite:n1.db",
            network="http://127.0.0.1:0",
            data_dir=tmp_path,
            config=Config(
                heartbeat_interval_ms=20, leader_lease_ms=60, election_timeout_min_ms=60, election_timeout_max_ms=120
            ),
        )

    async with opened() as raft:
        await raft.initialize({"n1": Node("http://127.0.0.1:9")})
        await raft.write(Put("a", b"1"))
        raft.trigger().snapshot()
        await raft.wait(10).metrics(lambda m: m.snapshot is not None, "a snapshot")
        await raft.write(Put("b", b"2"))
        with pytest.raises(StorageLocked, match="n1"):
            async with opened():
                pass
    assert (tmp_path / "snapshots").is_dir()
    async with opened() as raft:
        assert (await raft.read(Get("a"))).value == b"1"
        assert (await raft.read(Get("b"))).value == b"2"
        status = await raft.status(digest=True)
        assert status.storage.adapter == "sqlite"
        assert status.digest is not None


async def test_a_durable_storage_without_a_data_dir_keeps_everything_under_the_node_s_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_raft("n1", storage="sqlite:n1.db", network="http://127.0.0.1:0") as raft:
        assert raft.data_dir == Path("raftkit-data/n1")
    assert (tmp_path / "raftkit-data/n1/n1.db").is_file()
    assert (tmp_path / "raftkit-data/n1/snapshots").is_dir()


async def test_a_configuration_file_chooses_the_plugins_of_its_node(tmp_path: Path) -> None:
    file = tmp_path / "raftkit.toml"
    file.write_text('[plugins]\ndisable = ["sqlite"]\n')
    with pytest.raises(UnknownScheme, match="sqlite"):
        async with open_raft(
            "n1", storage="sqlite:n1.db", network="memory:chosen", config_file=file, data_dir=tmp_path
        ):
            pass
