"""A network that can fail, under the real frames, lanes and hellos of the in-process transport.

Every frame is judged on its way: lost, late, doubled, overtaken, damaged, or held until somebody lets it go; requests
and answers alike, so that an answer may be lost after its effect is durable. Frames of one connection keep their order
unless ``reorder`` says otherwise.

A damaged frame ends its connection, whether the codec notices or not: bytes that were changed *and* still decode are
what the checksums of TCP and TLS are for, and no such frame is ever believed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from random import Random
from typing import Any, Protocol
from zlib import crc32

from raftkit_core.errors import NetworkError, RPCError, Unreachable
from raftkit_core.network.calls import Connection
from raftkit_core.network.interface import RaftService
from raftkit_core.network.memory import MemoryHub, MemoryNetwork, MemoryNetworkFactory, _MemoryLink, _Stream
from raftkit_core.network.wire import (
    FrameError,
    Kind,
    SnapshotOffer,
    decode_answer,
    decode_frame,
    decode_request,
    request_kind,
)
from raftkit_core.testing.simulation.trace import Trace
from raftkit_core.types.ids import NodeId
from raftkit_core.types.messages import InstallSnapshotRequest, InstallSnapshotResponse
from raftkit_core.types.snapshot import SnapshotSource

BURST_SECONDS = 0.002
NEVER_TWICE = frozenset({Kind.HELLO})
"""The first word of a connection is not doubled; everything else may be, a forwarded write too."""


class WireObserver(Protocol):
    """Sees every message at the moment it leaves a node."""

    def asks(self, src: NodeId, dst: NodeId, kind: Kind, message: Any) -> None: ...
    def answers(self, src: NodeId, dst: NodeId, kind: Kind, request: Any, answer: Any) -> None: ...


class Weather:
    """What the network does to a frame. Shares are of frames; times are in seconds."""

    def __init__(self) -> None:
        self.latency = (0.0005, 0.003)
        self.tail = 0.0
        """Share of frames that take much longer: a heavy tail up to :attr:`tail_max`."""
        self.tail_max = 2.0
        self.loss = 0.0
        self.answer_loss = 0.0
        self.duplicate = 0.0
        self.reorder = 0.0
        self.corrupt = 0.0
        self.resets = 0.0
        """Share of frames at which their connection breaks."""
        self.bursts = 0.0
        """Share of frames that are held up a little and come together with those behind them."""

    def calm(self) -> None:
        self.__init__()  # type: ignore[misc]


class SimHub(MemoryHub):
    """The network of one simulation. ``contexts`` gives the context in which a node's callbacks run."""

    def __init__(
        self, name: str, random: Random, trace: Trace, observer: WireObserver, contexts: Callable[[NodeId], Context]
    ) -> None:
        super().__init__(name)
        self.random = random
        self.trace = trace
        self.observer = observer
        self.contexts = contexts
        self.weather = Weather()
        self._held: dict[tuple[NodeId, NodeId], list[Callable[[], None]]] = {}

    def hold(self, src: NodeId, dst: NodeId) -> None:
        """Keep what ``src`` sends to ``dst`` until :meth:`release`: it arrives late, all at once."""
        self._held.setdefault((src, dst), [])

    def release(self) -> None:
        held, self._held = self._held, {}
        for deliveries in held.values():
            for deliver in deliveries:
                deliver()

    def holding(self, src: NodeId, dst: NodeId) -> list[Callable[[], None]] | None:
        return self._held.get((src, dst))

    def delays(self, src: NodeId, dst: NodeId, *, answer: bool, twice: bool) -> tuple[float, ...]:
        """After how many seconds a frame arrives: never (), once, or twice."""
        if (self._cuts or self._isolated) and self.fault(src, dst) is not None:
            self.trace.seen("net.answer_cut" if answer else "net.cut")
            return ()
        weather, draw = self.weather, self.random.random
        loss = weather.loss if not answer else max(weather.loss, weather.answer_loss)
        if loss and draw() < loss:
            self.trace.seen("net.answer_lost" if answer else "net.lost")
            return ()
        low, high = weather.latency
        delay = low + draw() * (high - low)
        if weather.tail and draw() < weather.tail:
            delay += min(weather.tail_max, 0.02 / (1.0 - draw()))
            self.trace.seen("net.tail")
        if twice and weather.duplicate and draw() < weather.duplicate:
            self.trace.seen("net.duplicate")
            return (delay, delay + low + draw() * 20 * high)
        return (delay,)


class _Direction:
    """Frames of one connection, one way."""

    def __init__(
        self, hub: SimHub, src: NodeId, dst: NodeId, deliver: Callable[[list[bytes]], None], *, answer: bool
    ) -> None:
        self._hub = hub
        self._src = src
        self._dst = dst
        self._deliver = deliver
        self._answer = answer
        self._last = 0.0
        self._together: list[bytes] = []
        """What has come and is dealt with together with what comes yet."""
        self.closed = False

    def push(self, frame: bytes, *, twice: bool) -> None:
        hub = self._hub
        loop = asyncio.get_running_loop()
        held = hub.holding(self._src, self._dst)
        if held is not None:
            hub.trace.seen("net.answer_held" if self._answer else "net.held")
            held.append(lambda: self._arrive_at(loop.time() + 0.001, frame))
            return
        for delay in hub.delays(self._src, self._dst, answer=self._answer, twice=twice):
            due = loop.time() + delay
            if not hub.weather.reorder or hub.random.random() >= hub.weather.reorder:
                due = max(due, self._last + 1e-7)  # in order, as on a stream
                self._last = due
            elif due < self._last:
                hub.trace.seen("net.reorder")
            self._arrive_at(due, frame)

    def _arrive_at(self, due: float, frame: bytes) -> None:
        asyncio.get_running_loop().call_at(due, self._arrive, frame, context=self._hub.contexts(self._dst))

    def _arrive(self, frame: bytes) -> None:
        hub = self._hub
        if self.closed:
            return
        if self._together:
            self._together.append(frame)
        elif hub.weather.bursts and hub.random.random() < hub.weather.bursts:
            self._together.append(frame)
            asyncio.get_running_loop().call_later(BURST_SECONDS, self._arrive_together)
        else:
            self._deliver([frame])

    def _arrive_together(self) -> None:
        frames, self._together = self._together, []
        if len(frames) > 1:
            self._hub.trace.seen("net.burst")
        if not self.closed:
            self._deliver(frames)


class SimLink(_MemoryLink):
    """Both directions between a lane and the connection that serves it."""

    _hub: SimHub
    _server: SimNetworkFactory

    def __init__(
        self,
        client: SimNetworkFactory,
        server: SimNetworkFactory,
        group: str,
        connection: Connection,
        lane: str,
        service: RaftService,
    ) -> None:
        hub = client.hub
        super().__init__(hub, client.node_id, server, group, connection, lane, service)
        self._client = client
        self._lane = lane
        self._asked: dict[int, tuple[Kind, Any]] = {}
        self._up = _Direction(hub, self._src, self._dst, self._request_arrived, answer=False)
        self._down = _Direction(hub, self._dst, self._src, self._answer_arrived, answer=True)

    def send(self, frame: bytes, request_id: int) -> None:
        if self._aborted or self._client.dead:
            return
        header = decode_frame(frame)
        kind = request_kind(header.kind)
        message = decode_request(kind, header.body)
        self._hub.counts[kind.name.lower()] += 1
        self._hub.trace.event("ask", self._src, (self._dst, kind.name, message), crc32(frame))
        self._hub.observer.asks(self._src, self._dst, kind, message)
        if self._hub.fault(self._src, self._dst) == "refused":
            error = Unreachable(f"{self._dst} cannot be reached from {self._src}")
            asyncio.get_running_loop().call_soon(self._connection.fail, request_id, error)
            return
        self._asked[request_id] = (kind, message)
        self._up.push(self._damaged(frame), twice=kind not in NEVER_TWICE)

    def abort(self) -> None:
        self._up.closed = self._down.closed = True
        super().abort()

    def _damaged(self, frame: bytes) -> bytes:
        """``frame``, or garbage. A reset breaks the connection instead."""
        hub = self._hub
        weather = hub.weather
        if weather.corrupt and hub.random.random() < weather.corrupt:
            hub.trace.seen("net.corrupt")
            place = hub.random.randrange(len(frame))
            return (
                _GARBAGE + frame[:place] + bytes([frame[place] ^ (1 << hub.random.randrange(8))]) + frame[place + 1 :]
            )
        if weather.resets and hub.random.random() < weather.resets:
            hub.trace.seen("net.reset")
            asyncio.get_running_loop().call_soon(self.lose, NetworkError("the connection was reset"))
        return frame

    def _request_arrived(self, frames: list[bytes]) -> None:
        if self._server.dead:
            return
        whole, garbage = _up_to_garbage(frames)
        try:
            if whole:
                self.served.received_many(whole)
        except FrameError as error:
            self._broken(error)
        if garbage is not None:
            self._garbage_arrived(garbage, lambda damaged: self.served.received(damaged))

    def _send_answer(self, frame: bytes) -> None:
        if self._aborted or self._server.dead:
            return
        header = decode_frame(frame)
        asked = self._asked.get(header.request_id)
        if asked is not None:
            kind, request = asked
            if header.kind == Kind.ANSWER:
                answer = decode_answer(kind, header.body)
                self._hub.trace.event("answer", self._dst, (self._src, kind.name, answer), crc32(frame))
                self._hub.observer.answers(self._dst, self._src, kind, request, answer)
            else:
                self._hub.trace.event("error", self._dst, (self._src, kind.name, bytes(header.body)))
        self._down.push(self._damaged(frame), twice=False)

    def _answer_arrived(self, frames: list[bytes]) -> None:
        if self._client.dead:
            return
        whole, garbage = _up_to_garbage(frames)
        if whole:
            self._connection.received_many(whole)
        if garbage is not None:
            self._garbage_arrived(garbage, self._connection.received)

    def _garbage_arrived(self, frame: bytes, receive: Callable[[bytes], None]) -> None:
        """Damaged bytes meet the real decoder; whether it notices or a checksum would have, the connection is over."""
        damaged = frame[len(_GARBAGE) :]
        try:
            decode_frame(damaged)
        except FrameError:
            self._hub.trace.seen("net.corrupt_found_by_codec")
            with suppress(FrameError):
                receive(damaged)
        self.lose(NetworkError(f"{self._dst} closed the connection: damaged bytes"))


_GARBAGE = b"\x00damaged\x00"


def _up_to_garbage(frames: list[bytes]) -> tuple[list[bytes], bytes | None]:
    """The frames before the first damaged one, and that one: it ends its connection."""
    for place, frame in enumerate(frames):
        if frame.startswith(_GARBAGE):
            return frames[:place], frame
    return frames, None


class SimNetwork(MemoryNetwork):
    """A peer on the simulated network."""

    _factory: SimNetworkFactory

    def _open(self, connection: Connection, lane: str) -> SimLink:
        link = SimLink(self._factory, self._server(), self._group, connection, lane, self._service)
        link._server.links[link] = None
        return link

    def _server(self) -> SimNetworkFactory:
        server = super()._server()
        assert isinstance(server, SimNetworkFactory), "one hub, one kind of network"
        return server

    async def stream_snapshot(
        self,
        request: InstallSnapshotRequest,
        source: SnapshotSource,
        offer: SnapshotOffer,
        progressed: Callable[[], None],
    ) -> InstallSnapshotResponse:
        hub, src, dst = self._factory.hub, self._factory.node_id, self._address
        hub.trace.event("ask", src, (dst, "INSTALL_SNAPSHOT", request.meta))
        hub.observer.asks(src, dst, Kind.INSTALL_SNAPSHOT, request)
        response = await super().stream_snapshot(request, _Damaging(source, hub), offer, progressed)
        return response

    async def _passage(self) -> None:
        """Return when the next chunk may pass. Raises: NetworkError where a connection breaks."""
        hub, src, dst = self._factory.hub, self._factory.node_id, self._address
        weather = hub.weather
        if hub.holding(src, dst) is not None or hub.holding(dst, src) is not None:
            await asyncio.sleep(0.5)
        await asyncio.sleep(hub.random.uniform(*weather.latency))
        if weather.loss and hub.random.random() < weather.loss:
            hub.trace.seen("net.snapshot_broken")
            raise NetworkError("the snapshot stream broke")
        await super()._passage()


class _Damaging(SnapshotSource):
    """The bytes of a snapshot on a network that may change some."""

    def __init__(self, source: SnapshotSource, hub: SimHub) -> None:
        self.meta = source.meta
        self._source = source
        self._hub = hub

    async def open(self, offset: int = 0, chunk_bytes: int = 1024 * 1024) -> Any:
        async for chunk in self._source.open(offset, chunk_bytes):
            corrupt = self._hub.weather.corrupt
            if corrupt and self._hub.random.random() < corrupt:
                self._hub.trace.seen("net.snapshot_corrupt")
                place = self._hub.random.randrange(len(chunk))
                chunk = chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
            yield chunk

    async def close(self) -> None:
        await self._source.close()


class SimNetworkFactory(MemoryNetworkFactory):
    """A node on a :class:`SimHub`. ``dead`` once its node crashed: nothing more leaves or arrives."""

    def __init__(self, hub: SimHub, node_id: NodeId) -> None:
        super().__init__(hub.name, node_id)
        self._hub = hub
        self.dead = False

    @property
    def hub(self) -> SimHub:
        return self._hub

    def connect(self, target: NodeId, node: Any, service: RaftService) -> SimNetwork:
        network = SimNetwork(self, target, self._address_of(node.peer), service)
        self._networks = [known for known in self._networks if not known.is_closed]
        self._networks.append(network)
        return network

    def open_stream(self, offer: SnapshotOffer) -> _Stream:
        held = self._tickets.get(offer.ticket)
        stream = self._hub.contexts(self.node_id).copy().run(super().open_stream, offer)
        if held is not None:
            request, peer = held[1], held[2]
            stream.task.add_done_callback(lambda task: self._installed(task, peer.node_id, request))
        return stream

    def _installed(self, task: asyncio.Task[InstallSnapshotResponse], sender: NodeId, request: Any) -> None:
        if not self.dead and not task.cancelled() and task.exception() is None:
            answer = task.result()
            self._hub.trace.event("answer", self.node_id, (sender, "INSTALL_SNAPSHOT", answer))
            self._hub.observer.answers(self.node_id, sender, Kind.INSTALL_SNAPSHOT, request, answer)

    def crash(self, *, reset: bool) -> None:
        """The node is gone: from now on it is silent. ``reset``: peers are told that their connections broke."""
        self.dead = True
        if self._hub.serving.get(self.node_id) is self:
            del self._hub.serving[self.node_id]
        for link in list(self.links):
            if reset:
                link.lose(NetworkError(f"{self.node_id} closed the connection"))
            else:
                link.abort()


__all__ = ["RPCError", "SimHub", "SimLink", "SimNetwork", "SimNetworkFactory", "Weather", "WireObserver"]
