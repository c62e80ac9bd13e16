"""A cluster made of dictionaries behind the scheme ``fake:``, and a runner for command lines against it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from raftkit_cli.main import cli
from raftkit_core import Config, SnapshotPolicy, errors, hookimpl, open_raft
from raftkit_core.network.client import (
    ClusterClient,
    Consistency,
    MembershipResult,
    MemberStatus,
    NodeReport,
    NodeStatus,
    PeerStatus,
    StorageStatus,
)
from raftkit_core.types.kv import KeyValue, KvEvent, Put, WriteResult
from raftkit_core.types.membership import Node
from raftkit_core.types.metrics import NodeEvent


class FakeCluster:
    """What the fake clients talk to. ``failure`` is raised by every call; ``down`` members do not answer."""

    def __init__(self) -> None:
        self.members = {f"n{number}": (Node(f"fake://n{number}"), True) for number in (1, 2, 3)}
        self.leader: str | None = "n2"
        self.term = 7
        self.index = 20
        self.keys: dict[str, KeyValue] = {}
        self.down: set[str] = set()
        self.cut_off: set[str] = set()
        """Nodes that answer but hear nobody: they know no leader."""
        self.unheard: set[str] = set()
        """Members the leader has never had an answer from."""
        self.failure: errors.RaftError | None = None
        self.refusals: dict[str, errors.RaftError] = {}
        """What a call by its name raises."""
        self.put_failures: list[tuple[errors.RaftError, bool]] = []
        """Raised by the next puts, one each; whether the value is written all the same."""
        self.joint = False
        self.initialized: dict[str, Node] | None = None
        self.endpoints: list[list[str]] = []
        self.options: list[Mapping[str, Any]] = []
        self.calls: list[tuple[str, Any]] = []
        self.snapshot: int | None = None
        self.snapshot_bytes = b""
        self.store_ids: dict[str, str] = {}
        """Stores of nodes that are not the one the membership names."""
        self.learner_behind = [30, 4]
        """What a new learner lacks, look by look."""

    def bind(self) -> None:
        """The membership names the store every member has."""
        self.members = {
            name: (msgspec.structs.replace(node, store_id="5" * 32), voter)
            for name, (node, voter) in self.members.items()
        }

    def status(self, node_id: str) -> NodeStatus:
        is_leader = node_id == self.leader
        behind = 0 if node_id != "n3" else 2
        return NodeStatus(
            id=node_id,
            cluster="demo",
            cluster_id="c" * 32,
            store_id=self.store_ids.get(node_id, "5" * 32),
            snapshot=self.snapshot,
            version="0.1.0",
            role="leader" if is_leader else "follower",
            term=self.term,
            leader=None if node_id in self.cut_off else self.leader,
            last_log_index=self.index - behind,
            committed=self.index - behind,
            applied=self.index - behind,
            applied_time_ms=5000 - 700 * behind,
            members=[MemberStatus(id=name, node=node, voter=voter) for name, (node, voter) in self.members.items()],
            joint=self.joint,
            replication=self._replication() if is_leader else None,
            millis_since_leader_contact=None if is_leader else 41,
            storage=StorageStatus(adapter="sqlite", location="raft.db", size_bytes=98304, durability="fsync"),
            state_machine="kv",
            digest="d" * 16,
            uptime_ms=60_000,
        )

    def _replication(self) -> dict[str, PeerStatus]:
        peers = {}
        for name, (_, voter) in self.members.items():
            if name == self.leader:
                continue
            behind = 0 if voter else self.learner_behind[0]
            if not voter and len(self.learner_behind) > 1:
                self.learner_behind.pop(0)
            contact = None if name in self.down else 12
            peers[name] = PeerStatus(
                matching=self.index - behind, lag=behind, state="pipeline", last_contact_ms=contact
            )
            if name in self.unheard:
                peers[name] = PeerStatus(lag=self.index + 1)
        return peers

    @property
    def result(self) -> MembershipResult:
        members = [MemberStatus(id=name, node=node, voter=voter) for name, (node, voter) in self.members.items()]
        return MembershipResult(members=members, log_index=self.index)


def _asked(status: NodeStatus, digest: bool) -> NodeStatus:
    """A node computes its digest only when it is asked to."""
    return status if digest else msgspec.structs.replace(status, digest=None)


class FakeClient(ClusterClient):
    """A client that may be asked only while it is open."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._is_open = False

    async def __aenter__(self) -> FakeClient:
        self._is_open = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._is_open = False

    def _called(self, name: str, argument: Any = None) -> FakeCluster:
        assert self._is_open, "the client is used outside of its context"
        self._cluster.calls.append((name, argument))
        failure = self._cluster.refusals.get(name, self._cluster.failure)
        if failure is not None:
            raise failure
        return self._cluster

    async def status(self, *, digest: bool = False) -> NodeStatus:
        cluster = self._called("status")
        return _asked(cluster.status(next(name for name in ("n1", "n2", "n3") if name not in cluster.down)), digest)

    async def status_of(self, address: str, *, digest: bool = False) -> NodeStatus:
        cluster = self._called("status_of", address)
        node_id = address.removeprefix("fake://")
        if node_id in cluster.down:
            raise errors.Unreachable(f"{address}: connection refused")
        return _asked(cluster.status(node_id), digest)

    async def survey(self, events_after: dict[str, int] | None = None) -> list[NodeReport]:
        cluster = self._called("survey", dict(events_after or {}))
        reports = []
        for at, name in enumerate(sorted(cluster.members)):
            event = NodeEvent(1000 + at, 1_700_000_000_000 - at, 7, "role", f"{name} is a follower")
            is_new = event.number > (events_after or {}).get(name, 0)
            reports.append(NodeReport(id=name, status=cluster.status(name), events=[event] if is_new else []))
        return reports

    async def initialize(self, members: dict[str, Node]) -> None:
        self._called("initialize").initialized = members

    async def add_learner(self, node_id: str, node: Node, *, blocking: bool = True) -> MembershipResult:
        cluster = self._called("add_learner", node_id)
        cluster.members[node_id] = (node, False)
        return cluster.result

    async def change_membership(
        self, voters: list[str], *, retain: bool = False, force: bool = False
    ) -> MembershipResult:
        cluster = self._called("change_membership", (voters, retain, force))
        cluster.members = {
            name: (node, name in voters) for name, (node, _) in cluster.members.items() if retain or name in voters
        }
        return cluster.result

    async def remove_nodes(self, node_ids: list[str]) -> MembershipResult:
        cluster = self._called("remove_nodes", node_ids)
        for node_id in node_ids:
            del cluster.members[node_id]
        return cluster.result

    async def transfer_leader(self, to: str | None = None) -> str:
        cluster = self._called("transfer_leader", to)
        cluster.leader = to or "n3"
        return cluster.leader

    async def trigger_snapshot(self, address: str | None = None) -> None:
        cluster = self._called("trigger_snapshot", address)
        cluster.snapshot = cluster.index

    async def read_snapshot(self, address: str | None = None) -> AsyncGenerator[bytes, None]:
        yield self._called("read_snapshot", address).snapshot_bytes

    async def write(self, command: Any) -> Any:
        raise AssertionError("no verb uses it")

    async def kv_get(self, key: str, *, consistency: Consistency = "linearizable") -> KeyValue | None:
        await asyncio.sleep(0)  # as a client waits for its answer: who asks without end lets others have their turn
        return self._called("kv_get", (key, consistency)).keys.get(key)

    async def kv_put(self, key: str, value: bytes, *, if_revision: int | None = None) -> WriteResult:
        await asyncio.sleep(0)
        return self._put(key, value, if_revision)

    def _put(self, key: str, value: bytes, if_revision: int | None = None) -> WriteResult:
        cluster = self._called("kv_put", key)
        failure, is_written = cluster.put_failures.pop(0) if cluster.put_failures else (None, True)
        if failure is not None and not is_written:
            raise failure
        before = self._revision(key)
        if if_revision is not None and if_revision != before:
            raise errors.PreconditionFailed(f"{key} has revision {before}, not {if_revision}")
        cluster.index += 1
        cluster.keys[key] = KeyValue(key=key, value=value, revision=cluster.index)
        if failure is not None:
            raise failure
        return WriteResult(revision=cluster.index, previous_revision=before)

    def _revision(self, key: str) -> int:
        found = self._cluster.keys.get(key)
        return 0 if found is None else found.revision

    async def kv_delete(self, key: str, *, if_revision: int | None = None) -> WriteResult:
        cluster = self._called("kv_delete", key)
        before = self._revision(key)
        if if_revision is not None and if_revision != before:
            raise errors.PreconditionFailed(f"{key} has revision {before}, not {if_revision}")
        cluster.index += 1
        found = cluster.keys.pop(key, None)
        return WriteResult(revision=cluster.index, previous_revision=before, changed=found is not None)

    async def kv_cas(self, key: str, expected: bytes | None, value: bytes) -> WriteResult:
        found = self._called("kv_cas", key).keys.get(key)
        if (None if found is None else found.value) != expected:
            raise errors.PreconditionFailed(f"{key} does not hold {expected!r}")
        return self._put(key, value)

    async def kv_list(
        self,
        prefix: str = "",
        *,
        limit: int = 1000,
        after: str | None = None,
        consistency: Consistency = "linearizable",
    ) -> list[KeyValue]:
        cluster = self._called("kv_list", (prefix, limit, after))
        names = sorted(key for key in cluster.keys if key.startswith(prefix) and (after is None or key > after))
        return [cluster.keys[name] for name in names[:limit]]

    async def watch(self, prefix: str = "", *, from_revision: int | None = None) -> AsyncIterator[KvEvent]:
        """The keys there are, as if each had just been put."""
        cluster = self._called("watch", (prefix, from_revision))
        for item in sorted(cluster.keys.values(), key=lambda item: item.revision):
            if item.key.startswith(prefix) and item.revision >= (from_revision or 0):
                yield KvEvent(key=item.key, value=item.value, revision=item.revision)
        yield KvEvent(key=f"{prefix}gone", value=None, revision=cluster.index + 1, previous_revision=cluster.index)
        raise errors.Compacted("changes from revision 5 on are no longer kept here", oldest=17)


class FakePlugin:
    """Registers ``fake:`` for one cluster."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster

    @hookimpl
    def raftkit_register_clients(self, registry: Any) -> None:
        registry.add("fake", self._make)

    def _make(self, endpoints: list[str], options: Mapping[str, Any]) -> ClusterClient:
        self._cluster.endpoints.append(endpoints)
        self._cluster.options.append(options)
        return FakeClient(self._cluster)


class CommandLine:
    """Runs ``raftkit …`` in this process, against the fake cluster unless told otherwise."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.plugins: tuple[object, ...] = (FakePlugin(cluster),)
        self._runner = CliRunner()

    def __call__(self, *arguments: str, endpoint: str | None = "fake://n1", stdin: str | bytes | None = None) -> Result:
        prefix = [] if endpoint is None else ["-e", endpoint]
        return self._runner.invoke(cli, [*prefix, *arguments], input=stdin, plugins=self.plugins)

    def json(self, *arguments: str, code: int = 0, **keywords: Any) -> dict[str, Any]:
        """The one document on stdout; the exit status must be ``code``."""
        result = self(*arguments, "--json", **keywords)
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
        document: dict[str, Any] = json.loads(result.stdout)
        assert document["ok"] is (code == 0)
        return document


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Contexts, the working folder and colours of the developer stay out of the tests."""
    monkeypatch.setenv("RAFTKIT_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("RAFTKIT_LOCAL_DIR", str(tmp_path / "local"))
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture(autouse=True)
def _own_verbs() -> Iterator[None]:
    """A verb that a plugin of one test brought is not there in the next, nor in the generated pages."""
    before = set(cli.commands)
    yield
    for name in set(cli.commands) - before - set(type(cli).lazy):  # type: ignore[attr-defined]
        del cli.commands[name]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def raftkit(cluster: FakeCluster) -> CommandLine:
    return CommandLine(cluster)


@pytest.fixture
def fake_client(cluster: FakeCluster) -> FakeClient:
    """A client for tests that use no command line. Not open yet."""
    return FakeClient(cluster)


@pytest.fixture
def make_error() -> Callable[[str], errors.RaftError]:
    """An error by its code, as a cluster would answer it."""

    def make(code: str) -> errors.RaftError:
        kind = errors.ERRORS_BY_CODE[code]
        return kind(f"made for the test: {code}")

    return make


class Keeper:
    """Stores of nodes that do not run, in ``raftkit-data/ID`` of the working folder, and a saved snapshot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make_durable(self, node_id: str) -> None:
        """A node that ran with ``sqlite-kv:kv.db`` and purged its log behind it."""
        asyncio.run(self._make_durable(node_id))

    async def _make_durable(self, node_id: str) -> None:
        hub = f"memory:{self.folder.parent.name}-durable"
        async with open_raft(
            node_id,
            storage="sqlite:raft.db",
            network=hub,
            state_machine="sqlite-kv:kv.db",
            data_dir=self.folder / "raftkit-data" / node_id,
            config=Config(
                snapshot_policy=SnapshotPolicy.LogsSinceLast(20), max_in_snapshot_log_to_keep=5, purge_batch_size=1
            ),
        ) as raft:
            await raft.initialize({node_id: Node(f"{hub}/{node_id}")})
            await raft.wait(20).current_leader(node_id)
            await raft.client_write_many([Put(f"k{number:02}", b"v") for number in range(60)])
            await raft.wait(20).metrics(lambda m: m.purged is not None and m.purged.index > 20, "a purge")

    def make(self, *node_ids: str, writes: int = 3, snapshot: Path | None = None) -> None:
        """A cluster that ran once: its members' stores, each with ``writes`` keys. ``snapshot`` gets its state."""
        asyncio.run(self._make(node_ids, writes, snapshot))

    async def _make(self, node_ids: tuple[str, ...], writes: int, snapshot: Path | None) -> None:
        hub = f"memory:{self.folder.parent.name}"
        async with AsyncExitStack() as stack:
            rafts = [
                await stack.enter_async_context(
                    open_raft(
                        node_id,
                        storage="sqlite:raft.db",
                        network=hub,
                        data_dir=self.folder / "raftkit-data" / node_id,
                        config=Config(heartbeat_interval_ms=20, leader_lease_ms=50, election_timeout_min_ms=60),
                    )
                )
                for node_id in node_ids
            ]
            await rafts[0].initialize({node_id: Node(f"{hub}/{node_id}") for node_id in node_ids})
            index = 0
            for number in range(writes):
                index = (await rafts[0].write(Put(f"k{number}", b"v"))).log_id.index
            for raft in rafts:
                await raft.wait(20).applied_index_at_least(index)
            if snapshot is not None:
                rafts[0].trigger().snapshot()
                await rafts[0].wait(20).metrics(lambda m: m.snapshot is not None, "a snapshot")
                source = await rafts[0].get_snapshot()
                assert source is not None
                chunks = [chunk async for chunk in source.open(0)]
                await source.close()
                snapshot.write_bytes(b"".join(chunks))  # noqa: ASYNC240
            for raft in rafts:
                raft.fail(errors.Stopped("all stop at once"))


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "work")
