"""``open_raft()``: names and URLs become a running node."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from raftkit_core.clock import Clock, SystemClock
from raftkit_core.config import Config
from raftkit_core.config_file import NodeFile, load_node_file
from raftkit_core.errors import ConfigError, Fatal, NeedsRejoin, NotAllowed, RaftError
from raftkit_core.instrument import Instrument
from raftkit_core.plugins import load_plugins
from raftkit_core.plugins.loaded import LoadedPlugins
from raftkit_core.raft import Raft
from raftkit_core.storage.interface import RaftSnapshotStorage
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.ids import DEFAULT_GROUP, NodeId
from raftkit_core.types.membership import Node
from raftkit_core.types.security import Security

log = logging.getLogger("raftkit")

DEFAULT_DATA_DIR = Path("raftkit-data")
"""Where a node that needs a folder and is given none keeps it, under its id: the same place as ``raftkit node run``."""
BOOTSTRAP_MARKER = "bootstrap-store-id"
BOOTSTRAP_RETRY_SECONDS = 0.1


@asynccontextmanager
async def open_raft(
    node_id: NodeId | None = None,
    *,
    storage: str | None = None,
    network: str | None = None,
    state_machine: str | None = None,
    snapshots: str | None = None,
    config: Config | None = None,
    data_dir: Path | str | None = None,
    initial_cluster: Mapping[NodeId, Node] | None = None,
    plugins: LoadedPlugins | Sequence[object] | None = None,
    config_file: Path | str | None = None,
    group: str = DEFAULT_GROUP,
    clock: Clock | None = None,
    entropy: Random | None = None,
    instruments: Sequence[Instrument] = (),
    security: Security | None = None,
) -> AsyncIterator[Raft]:
    """A running node, shut down at the end of the block.

    ``storage``, ``network``, ``state_machine`` and ``snapshots`` are adapter URLs or names, found through plugins;
    ``config_file`` is a ``raftkit.toml`` whose values stand in for whatever is not given here. Without ``snapshots``
    they are kept where the storage keeps them, or as files in ``data_dir`` (default ``raftkit-data/ID``).
    ``initial_cluster`` is read by a pristine store only: its lowest id initializes the cluster, the others wait for it.
    ``plugins`` are further plugin objects, or an already loaded set. ``security`` names certificates and tokens.

    Raises: ConfigError, PluginError, StorageError, IdentityError, NeedsRejoin, AddressInUse.
    """
    file = NodeFile() if config_file is None else load_node_file(config_file)
    node_id = node_id or file.node_id
    storage = storage or file.storage
    network = network or file.network
    if node_id is None or storage is None or network is None:
        missing = [
            name for name, value in (("id", node_id), ("storage", storage), ("network", network)) if value is None
        ]
        raise ConfigError(
            f"a node needs {', '.join(missing)}", hint="give it as an argument, or in raftkit.toml (config_file=…)"
        )
    members = initial_cluster or file.initial_cluster
    if members:
        _check_members(node_id, members)
    config = config or file.config()
    folder = Path(data_dir) if data_dir is not None else file.data_dir
    clock = SystemClock() if clock is None else clock
    if isinstance(plugins, LoadedPlugins):
        loaded = plugins
    else:
        loaded = load_plugins(plugins or (), allow=file.plugins_allow, disable=file.plugins_disable)
    snapshot_url = snapshots or file.snapshots
    context = AdapterContext(node_id, clock=clock, cluster=config.cluster, group=group, data_dir=folder)
    paired = None if snapshot_url is not None else loaded.paired_snapshot_storage(storage, context)
    if folder is None and snapshot_url is None and paired is None:
        # The log is durable and keeps no snapshots: they need a place, and so does everything else on disk.
        folder = DEFAULT_DATA_DIR / node_id
        context = AdapterContext(node_id, clock=clock, cluster=config.cluster, group=group, data_dir=folder)
    observers = loaded.instruments(node_id, config)
    for instrument in instruments:
        observers.add(instrument)
    log_storage = loaded.log_storage(storage, context)
    snapshot_storage = paired
    if snapshot_storage is None:
        snapshot_storage = snapshot_storage_of(loaded, storage, snapshot_url, context)
    machine = loaded.state_machine(state_machine or file.state_machine or "kv", context)
    context.security = security or file.security
    transport = loaded.network(network, context)
    raft = await Raft.start(
        node_id,
        storage=log_storage,
        snapshots=snapshot_storage,
        state_machine=machine,
        network=transport,
        config=config,
        group=group,
        data_dir=folder,
        clock=clock,
        entropy=entropy,
        instruments=observers,
    )
    bootstrap: asyncio.Task[None] | None = None
    try:
        if members:
            check_bootstrap_marker(raft, folder)
            bootstrap = asyncio.create_task(_bootstrap(raft, dict(members)), name=f"bootstrap-{node_id}")
            bootstrap.add_done_callback(raft.supervise)
        yield raft
    finally:
        try:
            if bootstrap is not None:
                bootstrap.cancel()
                await asyncio.wait([bootstrap])
        finally:
            await raft.shutdown()


def _check_members(node_id: NodeId, members: object) -> None:
    """Raises: ConfigError: it is no mapping of ids to nodes, or leaves this node out, which would wait for ever."""
    if not isinstance(members, Mapping) or not all(isinstance(node, Node) for node in members.values()):
        raise ConfigError(
            f"initial_cluster maps ids to nodes, and is {members!r}",
            hint='write it like {"n1": Node("http://127.0.0.1:7401"), "n2": Node("http://127.0.0.1:7402")}',
        )
    if node_id not in members:
        raise ConfigError(
            f"the initial cluster ({', '.join(sorted(members))}) does not list this node, {node_id}",
            hint="list it too; or leave initial_cluster out and let a member add this node",
        )


def snapshot_storage_of(
    loaded: LoadedPlugins, storage: str, snapshots: str | None, context: AdapterContext
) -> RaftSnapshotStorage:
    """Where a node keeps its snapshots: where it was told to, where its log storage keeps them, or as files in its
    folder. Raises: PluginError."""
    if snapshots is not None:
        return loaded.snapshot_storage(snapshots, context)
    paired = loaded.paired_snapshot_storage(storage, context)
    if paired is not None:
        return paired
    assert context.data_dir is not None, "a node without a place for snapshots is given a folder"
    return loaded.snapshot_storage(f"file:{(context.data_dir / 'snapshots').resolve()}", context)


def check_bootstrap_marker(raft: Raft, folder: Path | None) -> None:
    """Remember outside the store which store this folder was bootstrapped with: a wiped one must not begin anew.

    Raises: NeedsRejoin if the store is pristine but not the one the folder was bootstrapped with.
    """
    if folder is None:
        return
    marker = folder / BOOTSTRAP_MARKER
    known = marker.read_text().strip() if marker.exists() else None
    if known == raft.store_id:
        return
    if known is not None and raft.is_pristine:
        raise NeedsRejoin(
            f"{raft.id} was bootstrapped with store {known}, but its store is empty and new ({raft.store_id})",
            hint=f"restore the data; or start it in an empty folder, then: raftkit member rejoin {raft.id}",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = marker.with_suffix(".tmp")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, raft.store_id.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    scratch.replace(marker)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _bootstrap(raft: Raft, members: dict[NodeId, Node]) -> None:
    """The lowest id listed initializes as soon as every member answers; the others say for whom they wait."""
    first = min(members)
    if not raft.is_pristine:
        return
    if raft.id != first:
        log.info("node %s waits for %s to initialize the cluster", raft.id, first)
        return
    said: str | None = None
    while raft.is_pristine:
        try:
            await raft.initialize(members)
        except NotAllowed as error:
            if not raft.is_pristine:
                return
            said = _say_once(said, f"node {raft.id} cannot initialize the cluster: {error.message}")
        except Fatal:
            return
        except RaftError as error:
            said = _say_once(said, f"node {raft.id} waits to initialize the cluster: {error.message}")
        await asyncio.sleep(BOOTSTRAP_RETRY_SECONDS)


def _say_once(said: str | None, text: str) -> str:
    if text != said:
        log.info("%s", text)
    return text
