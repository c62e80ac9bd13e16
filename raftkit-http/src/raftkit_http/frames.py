"""Length-prefixed frames on a connection that began as HTTP.

A peer connection is an HTTP request that is answered by ``101``; from then on each side sends frames, each behind its
length in four bytes, big end first. No task, no queue and no timer per frame: what a read of the socket brings in is
handed over at once, and what is sent is written at once. (A WebSocket in its place masks every byte that a client
sends, and in aiohttp takes a task on either side.)
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import cast

from raftkit_core.network.wire import FrameError

UPGRADE_HEADERS = {"Connection": "Upgrade", "Upgrade": "tcp", "Raftkit-Frames": "1"}
"""What asks for such a connection, and what grants it. (``tcp`` is a token that aiohttp knows, and means nothing.)"""
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % b"".join(
    f"{name}: {value}\r\n".encode() for name, value in UPGRADE_HEADERS.items()
)
LENGTH_BYTES = 4
_length = Struct(">I").unpack_from
FRAME_DEADLINE = 120.0
"""Seconds from a frame's first byte to its last, while we read: longer than anybody waits for the answer."""
READ_BYTES_MIN = 16 * 1024
READ_BYTES_MAX = 256 * 1024
"""What is read at once, and kept for reading: it grows from one to the other with a peer that fills it. A larger frame
gets room as its bytes come in, never because it says that they will."""

GATHERED_BYTES_MAX = 64 * 1024
"""What is gathered leaves when it has reached this size."""


class FrameProtocol(asyncio.BufferedProtocol):
    """Takes a transport over from ``former``, which still hears of its end.

    ``received`` gets the frames that came in together: parts of the memory that is read into again once it returns. It
    may raise FrameError; ``broken`` is told then, and of frames larger than ``max_frame_bytes``, and must end the
    connection. ``lost`` is called once, at the end.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        former: asyncio.BaseProtocol,
        *,
        max_frame_bytes: int,
        received: Callable[[list[memoryview]], None],
        broken: Callable[[FrameError], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self.transport = transport
        self._write = transport.write
        self._former = former
        self.max_frame_bytes = max_frame_bytes
        """Of what comes in; may be changed between frames."""
        self._received = received
        self._broken = broken
        self._lost = lost
        self._store = memoryview(bytearray(READ_BYTES_MIN))
        self._start = 0
        self._end = 0
        """Between the two is what was read and is not a whole frame yet."""
        self._writable: asyncio.Future[None] | None = None
        self.is_full = False
        """More than a little of what was written waits for the other side."""
        self._gathered: list[bytes] | None = None
        """Parts of frames that leave together; None when none are to be gathered."""
        self._gathered_bytes = 0
        self._frames_begun = 0
        self._partial: asyncio.TimerHandle | None = None
        self.is_over = False
        """Nothing is taken or sent any more."""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            _probe_idle_connections(sock)
            _send_unpaced_within_one_machine(sock)
        transport.set_protocol(self)

    def send(self, frame: bytes, rest: bytes = b"") -> None:
        """Write a frame (or its two parts) behind those before it. Whoever sends bounds what a peer does not read.

        What is sent while several frames that came in are handed over leaves together, when they have been.
        """
        if self.is_over:
            return
        size = len(frame) + len(rest)
        parts = (size.to_bytes(LENGTH_BYTES, "big"), frame, rest)
        if self._gathered is None:
            self._write(b"".join(parts))
            return
        self._gathered += parts
        self._gathered_bytes += size
        if self._gathered_bytes >= GATHERED_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        """Write what was gathered, as one."""
        if self._gathered:
            parts, self._gathered, self._gathered_bytes = self._gathered, [], 0
            self._write(b"".join(parts))

    def _hand_over(self, frames: list[memoryview]) -> None:
        """Raises: FrameError."""
        if len(frames) == 1:
            self._received(frames)  # its answer need not wait for what else is done about it
            return
        self._gathered = []
        try:
            self._received(frames)
        finally:
            if not self.is_over:
                self._flush()
            self._gathered = None

    @property
    def unsent_bytes(self) -> int:
        """What lies here for the other side, if that is more than a little."""
        return bytes_unsent(self.transport) if self.is_full else 0

    async def writable(self) -> None:
        """Wait until the other side has read most of what was written, or the connection ends."""
        if not self.is_over:
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._writable])

    def close(self) -> None:
        """End the connection once what was written has left."""
        self._flush()
        self.is_over = True
        self.transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        self.is_over = True
        self.transport.abort()

    # --- what the event loop calls ----------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._store[self._end :] if self._end else self._store

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_over:
            self._start = self._end = 0
            return
        store, end = self._store, self._end + nbytes
        filled = end == len(store)
        try:
            if end == nbytes and nbytes >= LENGTH_BYTES and not filled:
                (size,) = _length(store)
                if size == nbytes - LENGTH_BYTES and size <= self.max_frame_bytes:
                    self._received([store[LENGTH_BYTES:nbytes]])  # mostly: one frame, whole
                    return
            self._end = end
            frames = self._whole_frames()
            self._frames_begun += len(frames)
            if self._start != end and self._partial is None:
                self._watch_partial()
            if frames:
                self._hand_over(frames)
        except FrameError as error:
            self._start = self._end = 0
            self._broken(error)
            return
        self._make_room(filled)

    def _whole_frames(self) -> list[memoryview]:
        """Take the frames that are whole. Raises: FrameError."""
        store, start, end = self._store, self._start, self._end
        frames: list[memoryview] = []
        while end - start >= LENGTH_BYTES:
            (size,) = _length(store, start)
            if size > self.max_frame_bytes:
                raise FrameError(f"a frame of {size} bytes, at most {self.max_frame_bytes} belong here")
            after = start + LENGTH_BYTES + size
            if after > end:
                break
            frames.append(store[start + LENGTH_BYTES : after])
            start = after
        self._start = start
        return frames

    def _make_room(self, filled: bool) -> None:
        """Leave some behind what was read; ``filled`` says that there may have been more to read."""
        store, rest = self._store, self._end - self._start
        room = len(store)
        if rest == room or (filled and room < READ_BYTES_MAX):
            room = min(2 * room, max(READ_BYTES_MAX, LENGTH_BYTES + self.max_frame_bytes))
        elif room > READ_BYTES_MAX and rest <= READ_BYTES_MAX // 2:
            room = READ_BYTES_MAX
        elif rest and not filled:
            return
        if room != len(store):
            self._store = memoryview(bytearray(room))
        if rest:
            self._store[:rest] = store[self._start : self._end]
        self._start, self._end = 0, rest

    def _watch_partial(self) -> None:
        """One timer for all frames that are half here: it asks whether the one it was started for still is."""
        self._partial = asyncio.get_running_loop().call_later(FRAME_DEADLINE, self._partial_due, self._frames_begun)

    def _partial_due(self, begun: int) -> None:
        self._partial = None
        if self.is_over or self._start == self._end:
            return
        if begun == self._frames_begun and self.transport.is_reading():
            self._broken(FrameError(f"a frame did not arrive within {FRAME_DEADLINE:g} s"))
        else:
            self._watch_partial()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def pause_writing(self) -> None:
        self.is_full = True
        cast(asyncio.Protocol, self._former).pause_writing()

    def resume_writing(self) -> None:
        self.is_full = False
        cast(asyncio.Protocol, self._former).resume_writing()
        self._tell_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over = True
        if self._partial is not None:
            self._partial.cancel()
            self._partial = None
        self._tell_writable()
        self._former.connection_lost(exc)
        self._lost(exc)

    def _tell_writable(self) -> None:
        waiter, self._writable = self._writable, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def bytes_unsent(transport: asyncio.WriteTransport) -> int:
    """Written, and not taken by the other side yet. (asyncio's transport of TLS does not count what has gone on to the
    one below it, where a large answer lies whole.)"""
    size = transport.get_write_buffer_size()
    below: asyncio.WriteTransport | None = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return size if below is None else size + below.get_write_buffer_size()


def _probe_idle_connections(sock: socket.socket) -> None:
    """A peer that vanished without a word is noticed by the system, also on a connection that has nothing to say."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send_unpaced_within_one_machine(sock: socket.socket) -> None:
    """Where the system spreads out what is sent to spare the network (BBR), it sets a timer for nearly every append of
    64 KiB, which may cost more than sending it. Between two processes of one machine there is no network to spare."""
    if hasattr(socket, "TCP_CONGESTION"):
        with suppress(OSError):  # the other end has gone, or the system allows no choice
            if sock.getsockname()[0] == sock.getpeername()[0]:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
