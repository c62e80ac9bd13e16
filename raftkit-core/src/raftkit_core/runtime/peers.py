"""One client per member: connections outlive leaderships, and follow the membership's addresses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from raftkit_core.errors import RaftError
from raftkit_core.network.interface import RaftNetwork, RaftNetworkFactory, RaftService
from raftkit_core.types.ids import NodeId
from raftkit_core.types.membership import Node

log = logging.getLogger("raftkit.runtime")


class PeerTable:
    """Makes clients when they are first needed; closing one never waits for the peer."""

    def __init__(self, factory: RaftNetworkFactory, service: RaftService) -> None:
        self._factory = factory
        self._service = service
        self._clients: dict[NodeId, tuple[Node, RaftNetwork]] = {}
        self._closing: dict[asyncio.Task[None], None] = {}
        self.last_error: dict[NodeId, str] = {}
        """What the last failed call to a peer said; removed by the next success."""

    def get(self, target: NodeId, node: Node) -> RaftNetwork:
        """The client to ``target`` at ``node``; a changed address or store closes the former one: only a new hello lets
        a pristine store join.

        Raises: ConfigError if the address is none of this transport.
        """
        known = self._clients.get(target)
        if known is not None:
            if known[0].peer == node.peer and known[0].store_id == node.store_id:
                return known[1]
            self._close(known[1])
        client = self._factory.connect(target, node, self._service)
        self._clients[target] = (node, client)
        return client

    def keep_only(self, nodes: Mapping[NodeId, Node], also: frozenset[NodeId]) -> None:
        """Close the clients of nodes that are no members, but for ``also``."""
        for target in [target for target in self._clients if target not in nodes and target not in also]:
            self._close(self._clients.pop(target)[1])
            self.last_error.pop(target, None)

    def failed(self, target: NodeId, error: BaseException) -> None:
        """Remember and log the first failure of a series."""
        text = str(error) or type(error).__name__
        if target not in self.last_error:
            log.info("cannot reach %s: %s", target, text)
        self.last_error[target] = text
        if not isinstance(error, RaftError | asyncio.CancelledError):
            log.error("the network plugin failed on a call to %s", target, exc_info=error)

    def succeeded(self, target: NodeId) -> None:
        if self.last_error:
            self.last_error.pop(target, None)

    def _close(self, client: RaftNetwork) -> None:
        task = asyncio.ensure_future(client.close())
        self._closing[task] = None
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("closing a connection failed: %s", error)

    async def close(self, grace: float) -> None:
        """Close every client, within ``grace`` seconds."""
        for _, client in self._clients.values():
            self._close(client)
        self._clients.clear()
        if self._closing:
            tasks = list(self._closing)
            await asyncio.wait(tasks, timeout=grace)
            late = [task for task in tasks if not task.done()]
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=grace)
