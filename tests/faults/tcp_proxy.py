"""A proxy per node that delays, holds, cuts and repeats what one node says to another, on real sockets.

All peers of a node dial one address, the proxy's; who dialled is found by asking the system which process owns the
other end. So every ordered pair of nodes is a link of its own, also on connections that carry both directions. Held
bytes come later and in order, as over any network that runs TCP; repeated are whole frames of the dialler.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 64 * 1024
HEAD_END = b"\r\n\r\n"
LENGTH_BYTES = 4


@dataclass
class Link:
    """What happens to bytes from one node to another."""

    delay_s: tuple[float, float] = (0.0, 0.0)
    passage: asyncio.Event = field(default_factory=asyncio.Event)
    """Not set: nothing arrives until it is."""
    repeat: float = 0.0
    """How likely a whole frame arrives twice."""
    garble: float = 0.0
    """How likely a frame arrives as garbage of the same length."""

    def __post_init__(self) -> None:
        self.passage.set()


@dataclass
class Links:
    """Every link of a cluster, by (from, to); ``None`` is whoever is no node."""

    owner_of: Callable[[int], str | None]
    """The node whose process holds the local port, if it is one of ours."""
    links: dict[tuple[str | None, str | None], Link] = field(default_factory=dict)
    repeated: int = 0
    garbled: int = 0
    connections: set[Connection] = field(default_factory=set)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def link(self, source: str | None, target: str | None) -> Link:
        return self.links.setdefault((source, target), Link())

    def hold(self, source: str, target: str) -> None:
        """One way: nothing from ``source`` reaches ``target``."""
        self.link(source, target).passage.clear()

    def isolate(self, node_id: str, others: list[str]) -> None:
        for other in others:
            self.hold(node_id, other)
            self.hold(other, node_id)

    def cut(self, node_id: str) -> None:
        """Every connection from and to this node breaks now."""
        for connection in list(self.connections):
            if node_id in connection.ends:
                connection.abort()

    def heal(self) -> None:
        """Held bytes arrive now."""
        for link in self.links.values():
            link.delay_s, link.repeat, link.garble = (0.0, 0.0), 0.0, 0.0
            link.passage.set()


class Proxy:
    """In front of one node."""

    def __init__(self, links: Links, node_id: str, target_port: int) -> None:
        self._links = links
        self._node_id = node_id
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", port)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        port = writer.get_extra_info("peername")[1]
        source = await asyncio.to_thread(self._links.owner_of, port)
        connection = Connection(self._links, source, self._node_id)
        self._links.connections.add(connection)
        try:
            await connection.run(reader, writer, self._target_port)
        finally:
            self._links.connections.discard(connection)


class Connection:
    """Two pumps."""

    def __init__(self, links: Links, source: str | None, target: str) -> None:
        self._links = links
        self._source = source
        self._target = target
        self._task: asyncio.Task[None] | None = None

    @property
    def ends(self) -> tuple[str | None, str]:
        return (self._source, self._target)

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        self._task = asyncio.current_task()
        backward: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            out_reader, backward = await asyncio.open_connection("127.0.0.1", port)
            pumps = [
                asyncio.create_task(self._pump(reader, backward, self._source, self._target, repeats=True)),
                asyncio.create_task(self._pump(out_reader, writer, self._target, self._source, repeats=False)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens there now, or this connection was cut
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for stream in (writer, backward):
                if stream is not None:
                    stream.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        source: str | None,
        target: str | None,
        *,
        repeats: bool,
    ) -> None:
        link = self._links.link(source, target)
        frames = Frames() if repeats else None
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                due = loop.time() + self._links.chance.uniform(*link.delay_s)
                await link.passage.wait()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                if frames is None:
                    writer.write(data)
                else:
                    for piece, is_frame in frames.feed(data):
                        if is_frame and self._links.chance.random() < link.garble:
                            writer.write(self._garbled(piece))
                            continue
                        writer.write(piece)
                        if is_frame and self._links.chance.random() < link.repeat:
                            writer.write(piece)
                            self._links.repeated += 1
                await writer.drain()

    def _garbled(self, frame: bytes) -> bytes:
        """The length stays, every byte behind it is another one. (A single byte of a command that changes on its way is
        for the checksums of TCP and TLS: a frame has none of its own.)"""
        self._links.garbled += 1
        chance = self._links.chance
        return frame[:LENGTH_BYTES] + bytes(each ^ chance.randrange(1, 256) for each in frame[LENGTH_BYTES:])


class Frames:
    """Cuts what a dialler sends into the frames of a peer connection, if it is one (``raftkit_http.frames``)."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._is_open = False
        self._is_plain = False

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Pieces to send on, and whether each is a frame of its own."""
        if self._is_plain:
            return [(data, False)]
        self._buffer += data
        pieces: list[tuple[bytes, bool]] = []
        if not self._is_open:
            end = self._buffer.find(HEAD_END)
            if end < 0:
                return []
            head = bytes(self._buffer[: end + len(HEAD_END)])
            if b"raftkit-frames:" not in head.lower():
                self._is_plain = True
                everything = bytes(self._buffer)
                self._buffer.clear()
                return [(everything, False)]
            self._is_open = True
            del self._buffer[: len(head)]
            pieces.append((head, False))
        while len(self._buffer) >= LENGTH_BYTES:
            size = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if size > len(self._buffer):
                break
            pieces.append((bytes(self._buffer[:size]), True))
            del self._buffer[:size]
        return pieces


def owner_among(pids: Callable[[], dict[str, int]]) -> Callable[[int], str | None]:
    """Which of the processes (by name) holds a local TCP port: Linux tells in /proc."""

    def owner_of(port: int) -> str | None:
        inodes = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
        for name, pid in pids().items():
            with contextlib.suppress(OSError):
                for descriptor in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(f"/proc/{pid}/fd/{descriptor}") in inodes:
                            return name
        return None

    return owner_of
