"""The in-process network: ``memory:NAME`` is a hub that belongs to the running loop.

Calls go through the same frames, lanes and hellos as between processes, so that a cluster in one program and its tests
exercise what is shipped. A hub can be disturbed (``disturbances.py``): it is the network of scenario tests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from weakref import WeakKeyDictionary

from raftkit_core.errors import AddressInUse, ConfigError, NetworkError, RPCError, Unreachable, to_info
from raftkit_core.network.calls import CallLane, Connection, Link, remote_error
from raftkit_core.network.disturbances import DROP, KIND_NAMES, Disturbances
from raftkit_core.network.interface import RaftNetworkFactory, RaftService
from raftkit_core.network.lanes import LaneNetwork
from raftkit_core.network.serving import ServedConnection
from raftkit_core.network.wire import (
    CONTROL_KINDS,
    DATA_KINDS,
    AppendEncoder,
    FrameError,
    Kind,
    SnapshotOffer,
    decode_answer,
    decode_frame,
    decode_request,
    encode_answer,
    encode_error,
    encode_request,
    request_kind,
)
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.ids import NodeId, is_node_id
from raftkit_core.types.membership import Node
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotSource

DIAL_TIMEOUT = 0.25
"""Seconds for a hello in one process; short, so that a healed hub is noticed soon."""
CHUNK_TIMEOUT = 60.0
"""Seconds the receiver of a snapshot waits for the next chunk."""
KEEPALIVE_INTERVAL = 0.1
"""Seconds between looks at an installation that goes on after the last chunk."""
TICKETS_MAX = 64

_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, MemoryHub]] = WeakKeyDictionary()


class MemoryHub(Disturbances):
    """What connects the nodes of one name in one loop, and what can go wrong between them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.serving: dict[NodeId, MemoryNetworkFactory] = {}
        self.due: list[_Pipe] = []
        """What has something to deliver."""
        self.is_delivering = False
        """Somebody sees to it: now, or in the next turn of the loop."""

    @classmethod
    def named(cls, name: str) -> MemoryHub:
        """The hub ``memory:name`` of the running loop, made on first use."""
        hubs = _hubs.setdefault(asyncio.get_running_loop(), {})
        return hubs.setdefault(name, cls(name))

    def deliver(self) -> None:
        """Deliver what is due, and then what was said to it at once: mostly the answers. More has a turn of its own, so
        that two nodes which talk to each other leave time to everybody else."""
        try:
            self._deliver_due()
            if self.due:
                self._deliver_due()
        finally:
            self.is_delivering = False
            if self.due:
                self.deliver_soon()

    def deliver_soon(self) -> None:
        """Deliver in the next turn of the loop."""
        self.is_delivering = True
        asyncio.get_running_loop().call_soon(self.deliver)

    def _deliver_due(self) -> None:
        """What goes to one node on several connections is dealt with in one go there, as what comes on one is."""
        due, self.due = self.due, []
        for pipe in due:
            pipe.service.cork()
        try:
            for pipe in due:
                pipe.flush()
        finally:
            for pipe in due:
                pipe.service.uncork()


class _Pipe:
    """One direction of one connection: delivers in order, in a later turn of the loop."""

    def __init__(
        self,
        hub: MemoryHub,
        service: RaftService,
        receive: Callable[[bytes], None],
        broken: Callable[[FrameError], None],
    ) -> None:
        self._hub = hub
        self.service = service
        """The node it leads to: corked while it delivers."""
        self._receive = receive
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._ready: list[bytes] = []
        """To be delivered in the next turn."""
        self._late: deque[tuple[float, bytes]] = deque()
        """What is delayed, and what came after it; until when."""
        self._timer: asyncio.TimerHandle | None = None

    def push(self, frame: bytes) -> None:
        if self._late:
            self.push_late(frame, 0.0)
            return
        ready = self._ready
        if not ready:
            hub = self._hub
            hub.due.append(self)
            if not hub.is_delivering:
                hub.deliver_soon()
        ready.append(frame)

    def push_late(self, frame: bytes, delay: float) -> None:
        """``push`` in ``delay`` seconds, and what comes after it not before."""
        delay += self._hub.latency
        if not delay and not self._late:
            self.push(frame)
            return
        self._late.append((self._loop.time() + delay, frame))
        if self._timer is None:
            self._timer = self._loop.call_at(self._late[0][0], self._come)

    def close(self) -> None:
        self._ready.clear()
        self._late.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def flush(self) -> None:
        """Deliver what is ready, to a node that is corked; what is pushed meanwhile has its own turn."""
        frames, self._ready = self._ready, []
        receive = self._receive
        try:
            for frame in frames:
                receive(frame)
        except FrameError as error:
            self._broken(error)
        except Exception as error:
            self._loop.call_exception_handler({"message": "a frame could not be delivered", "exception": error})
            # Those behind it are not delivered either: what comes next would come out of order.
            self._broken(FrameError(f"a frame could not be delivered: {type(error).__name__}"))

    def _come(self) -> None:
        """The time of what was delayed has come."""
        self._timer = None
        late, now = self._late, self._loop.time()
        while late and late[0][0] <= now:
            self._ready.append(late.popleft()[1])
        if late:
            self._timer = self._loop.call_at(late[0][0], self._come)
        self.service.cork()
        try:
            self.flush()
        finally:
            self.service.uncork()


class _MemoryLink(Link):
    """Both directions between a lane and a :class:`ServedConnection`."""

    unsent_bytes = 0

    def __init__(
        self,
        hub: MemoryHub,
        src: NodeId,
        server: MemoryNetworkFactory,
        group: str,
        connection: Connection,
        lane: str,
        service: RaftService,
    ) -> None:
        self._hub = hub
        self._src = src
        self._dst = server.node_id
        self._server = server
        self._connection = connection
        self._closing: asyncio.Task[None] | None = None
        self._aborted = False
        self._answered_kinds: dict[int, str] = {}
        """Kinds of requests, for the post-hook."""
        self.served = ServedConnection(
            group,
            lambda: server.services.get(group),
            CONTROL_KINDS if lane == "control" else DATA_KINDS,
            send=self._send_answer,
            refused=lambda: None,  # the caller drops the connection when it sees the refusal
            offer=self._offer,
        )
        self._requests = _Pipe(hub, server.services[group], self.served.received, self._broken)
        self._answers = _Pipe(hub, service, connection.received, self._broken)

    def send(self, frame: bytes, request_id: int) -> None:
        if self._aborted:
            return
        hub = self._hub
        if hub.is_undisturbed:
            hub.counts[KIND_NAMES[frame[1]]] += 1  # as kind_of
            self._requests.push(frame)
            return
        try:
            verdict = hub.judge(self._src, self._dst, frame)
        except RPCError as error:
            asyncio.get_running_loop().call_soon(self._connection.fail, request_id, error)
            return
        if not isinstance(verdict, str):
            if hub.post_hook is not None:
                self._answered_kinds[request_id] = request_kind(decode_frame(frame).kind).name.lower()
            self._requests.push_late(frame, verdict or 0.0)

    def abort(self) -> None:
        if self._aborted:
            return
        self._aborted = True
        self._requests.close()
        self._answers.close()
        self._server.links.pop(self, None)
        self._closing = asyncio.get_running_loop().create_task(self.served.close())

    @property
    def finished(self) -> bool:
        return self._closing is not None and self._closing.done()

    async def wait_closed(self) -> None:
        if self._closing is not None:
            await self._closing

    def lose(self, error: RPCError) -> None:
        """The serving side broke the connection."""
        self.abort()
        self._connection.lost(error)

    def _broken(self, error: FrameError) -> None:
        self.lose(NetworkError(f"{self._dst} closed the connection: {error}"))

    def _send_answer(self, frame: bytes) -> None:
        if self._aborted:
            return
        if self._hub.is_undisturbed:
            self._answers.push(frame)
            return
        if self._hub.fault(self._dst, self._src) is not None:
            return
        kind = self._answered_kinds.pop(decode_frame(frame).request_id, None) if self._answered_kinds else None
        hook = self._hub.post_hook
        if kind is None or hook is None or hook(self._src, self._dst, kind) != DROP:
            self._answers.push_late(frame, 0.0)

    def _offer(self, request: InstallSnapshotRequest, peer: PeerIdentity) -> str:
        return self._server.make_ticket(self.served.group, request, peer)


class _Stream:
    """The receiving end of one snapshot: a queue of one chunk, and the task that installs from it."""

    def __init__(self, service: RaftService, request: InstallSnapshotRequest, offset: int, peer: PeerIdentity) -> None:
        self._queue: asyncio.Queue[bytes | RPCError | None] = asyncio.Queue(1)
        self.task = asyncio.get_running_loop().create_task(
            service.install_snapshot(request, offset, self._chunks(), peer), name="install snapshot"
        )
        self.task.add_done_callback(self._done)

    async def put(self, item: bytes | RPCError | None) -> None:
        """Hand over a chunk, the end (None) or a failure. Returns at once when nobody reads any more."""
        if not self.task.done():
            await self._queue.put(item)

    def break_off(self) -> None:
        """The sender has gone: whatever was not taken yet is lost, and the reader is told."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(NetworkError("the snapshot stream broke"))

    def _done(self, task: asyncio.Task[InstallSnapshotResponse]) -> None:
        if not task.cancelled():
            task.exception()  # retrieved: the sender may have gone
        while not self._queue.empty():
            self._queue.get_nowait()

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            try:
                async with asyncio.timeout(CHUNK_TIMEOUT):
                    item = await self._queue.get()
            except TimeoutError:
                raise NetworkError("the snapshot stream stalled") from None
            if item is None:
                return
            if isinstance(item, RPCError):
                raise item
            yield item


class MemoryNetwork(LaneNetwork):
    """A peer on the same hub."""

    def __init__(self, factory: MemoryNetworkFactory, target: NodeId, address: NodeId, service: RaftService) -> None:
        self._factory = factory
        self._address = address
        self._service = service
        self._group = service.group

        def lane(name: str) -> CallLane:
            async def dial(connection: Connection) -> Link:
                return self._open(connection, name)

            return CallLane(f"{name} lane", target, service, dial, dial_timeout=DIAL_TIMEOUT)

        super().__init__(lane("control"), lane("data"), factory.encoder)

    def _open(self, connection: Connection, lane: str) -> Link:
        link = _MemoryLink(
            self._factory.hub, self._factory.node_id, self._server(), self._group, connection, lane, self._service
        )
        link._server.links[link] = None
        return link

    def _server(self) -> MemoryNetworkFactory:
        hub = self._factory.hub
        if hub.fault(self._factory.node_id, self._address) == "refused":
            raise Unreachable(f"{self._address} cannot be reached from {self._factory.node_id}")
        server = hub.serving.get(self._address)
        if server is None or self._group not in server.services:
            raise Unreachable(f"nobody serves group {self._group!r} at memory:{hub.name}/{self._address}")
        return server

    async def stream_snapshot(
        self,
        request: InstallSnapshotRequest,
        source: SnapshotSource,
        offer: SnapshotOffer,
        progressed: Callable[[], None],
    ) -> InstallSnapshotResponse:
        stream = self._server().open_stream(offer)
        chunks = source.open(offer.offset)
        try:
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    await self._passage()
                    await stream.put(chunk)
                    progressed()
                    if stream.task.done():
                        break
            await stream.put(None)
            while not stream.task.done():
                await asyncio.wait([stream.task], timeout=KEEPALIVE_INTERVAL)
                await self._passage()
                progressed()
        finally:
            if not stream.task.done():
                stream.break_off()
        return self._answer(stream.task)

    async def _passage(self) -> None:
        """Return while both directions are open; else wait for the deadline, or fail."""
        hub, src, dst = self._factory.hub, self._factory.node_id, self._address
        while (fault := hub.fault(src, dst) or hub.fault(dst, src)) is not None:
            if fault == "refused":
                raise Unreachable(f"{dst} cannot be reached from {src}")
            await asyncio.sleep(KEEPALIVE_INTERVAL)

    def _answer(self, task: asyncio.Task[InstallSnapshotResponse]) -> InstallSnapshotResponse:
        """Through the codec, like every other answer."""
        if task.cancelled():
            raise NetworkError(f"{self.target} stopped serving while it took a snapshot")
        error = task.exception()
        if error is not None:
            raise remote_error(Kind.INSTALL_SNAPSHOT, self.target, encode_error(to_info(error)))
        response: InstallSnapshotResponse = decode_answer(Kind.INSTALL_SNAPSHOT, encode_answer(task.result()))
        return response


class MemoryNetworkFactory(RaftNetworkFactory):
    """A node on the hub ``memory:name``; its address is ``memory:name/node_id``."""

    def __init__(self, name: str, node_id: NodeId) -> None:
        self.name = name
        self.node_id = node_id
        self.encoder = AppendEncoder()
        self.services: dict[str, RaftService] = {}
        self.links: dict[_MemoryLink, None] = {}
        self._streams: dict[_Stream, str] = {}
        self._tickets: dict[str, tuple[str, InstallSnapshotRequest, PeerIdentity]] = {}
        self._next_ticket = 1
        self._networks: list[MemoryNetwork] = []
        self._closed = False

    @property
    def hub(self) -> MemoryHub:
        """The hub of the running loop."""
        return MemoryHub.named(self.name)

    async def serve(self, group: str, service: RaftService) -> None:
        if self._closed:
            raise ConfigError(f"the network of {self.node_id} is closed")
        holder = self.hub.serving.setdefault(self.node_id, self)
        if holder is not self or group in self.services:
            raise AddressInUse(
                f"memory:{self.name}/{self.node_id} is served already",
                hint="give every node of a hub its own id, and shut the old one down before starting it again",
            )
        self.services[group] = service

    def connect(self, target: NodeId, node: Node, service: RaftService) -> MemoryNetwork:
        network = MemoryNetwork(self, target, self._address_of(node.peer), service)
        self._networks = [known for known in self._networks if not known.is_closed]
        self._networks.append(network)
        return network

    def advertised(self) -> Node:
        return Node(f"memory:{self.name}/{self.node_id}")

    def validate_address(self, peer: str) -> None:
        self._address_of(peer)

    async def stop_serving(self, group: str) -> None:
        if self.services.pop(group, None) is None:
            return
        if not self.services and self.hub.serving.get(self.node_id) is self:
            del self.hub.serving[self.node_id]
        self._tickets = {ticket: held for ticket, held in self._tickets.items() if held[0] != group}
        for link in [link for link in self.links if link.served.group == group]:
            link.lose(NetworkError(f"{self.node_id} stopped serving"))
            await link.wait_closed()
        for stream in [stream for stream, served in self._streams.items() if served == group]:
            stream.task.cancel()
            await asyncio.wait([stream.task])

    async def close(self) -> None:
        self._closed = True
        for group in list(self.services):
            await self.stop_serving(group)
        for network in self._networks:
            await network.close()
        self._networks.clear()
        self.encoder.clear()

    def make_ticket(self, group: str, request: InstallSnapshotRequest, peer: PeerIdentity) -> str:
        """A snapshot was announced: remember by whom."""
        ticket = str(self._next_ticket)
        self._next_ticket += 1
        self._tickets[ticket] = (group, request, peer)
        while len(self._tickets) > TICKETS_MAX:
            del self._tickets[next(iter(self._tickets))]
        return ticket

    def open_stream(self, offer: SnapshotOffer) -> _Stream:
        """Start installing what was announced under a ticket. Raises: NetworkError if nothing was."""
        held = self._tickets.pop(offer.ticket, None)
        if held is None or held[0] not in self.services:
            raise NetworkError(f"{self.node_id} does not expect this snapshot any more")
        group, request, peer = held
        request = decode_request(Kind.INSTALL_SNAPSHOT, encode_request(Kind.INSTALL_SNAPSHOT, request))
        stream = _Stream(self.services[group], request, offer.offset, peer)
        self._streams[stream] = group
        stream.task.add_done_callback(lambda _: self._streams.pop(stream, None))
        return stream

    def _address_of(self, peer: str) -> NodeId:
        prefix = f"memory:{self.name}/"
        node_id = peer.removeprefix(prefix)
        if not peer.startswith(prefix) or not is_node_id(node_id):
            raise ConfigError(
                f"{peer[:100]!r} is no address on the hub memory:{self.name}", hint=f"write it as {prefix}<node id>"
            )
        return node_id
