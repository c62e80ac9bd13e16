"""A connection of frames reads into memory of its own: what it hands over is whole, and what it keeps is bounded."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest

from raftkit_core.network.wire import FrameError
from raftkit_http.frames import GATHERED_BYTES_MAX, LENGTH_BYTES, READ_BYTES_MAX, READ_BYTES_MIN, FrameProtocol

KIB = 1024
MIB = 1024 * KIB


class Wire(asyncio.Transport):
    """A transport that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        return

    def close(self) -> None:
        self.written.append(b"closed")

    def is_reading(self) -> bool:
        return True


class End:
    """The reading end: copies what it gets, as it must."""

    def __init__(
        self, max_frame_bytes: int = 64 * MIB, received: Callable[[list[memoryview]], None] | None = None
    ) -> None:
        self.frames: list[bytes] = []
        self.errors: list[FrameError] = []
        self.largest = 0
        self.transport = Wire()
        self.protocol = FrameProtocol(
            self.transport,
            asyncio.Protocol(),
            max_frame_bytes=max_frame_bytes,
            received=received or (lambda frames: self.frames.extend(map(bytes, frames))),
            broken=self._broken,
            lost=lambda error: None,
        )

    def _broken(self, error: FrameError) -> None:
        self.errors.append(error)
        self.protocol.abort()

    def feed(self, data: bytes) -> None:
        """As an event loop does: never more at once than there is room for, and never no room."""
        while data:
            room = self.protocol.get_buffer(-1)
            assert len(room), "an event loop takes no room for an error"
            part = data[: len(room)]
            room[: len(part)] = part
            data = data[len(part) :]
            self.protocol.buffer_updated(len(part))
            self.largest = max(self.largest, self.kept)

    @property
    def kept(self) -> int:
        return len(self.protocol._store)

    def close(self) -> None:
        self.protocol.connection_lost(None)


def framed(frame: bytes) -> bytes:
    return len(frame).to_bytes(LENGTH_BYTES, "big") + frame


@pytest.mark.parametrize("seed", range(20))
async def test_frames_of_every_size_come_out_as_they_went_in_whatever_the_pieces(seed: int) -> None:
    rng = random.Random(seed)
    longest = rng.choice([10, 5000, 70 * KIB, 700 * KIB])
    sent = [rng.randbytes(rng.randrange(longest)) for _ in range(40 if longest < MIB // 2 else 8)]
    stream = b"".join(map(framed, sent))
    end = End()
    piece = rng.choice([1 + longest // 50, longest, 4 * longest])
    while stream:
        size = rng.randrange(1, piece + 1)
        end.feed(stream[:size])
        stream = stream[size:]
    assert end.frames == sent
    assert end.largest <= max(READ_BYTES_MAX, 2 * (longest + LENGTH_BYTES))
    end.close()


async def test_room_follows_the_bytes_that_came_not_the_length_that_was_said() -> None:
    end = End()
    end.feed((60 * MIB).to_bytes(LENGTH_BYTES, "big") + bytes(100))
    assert end.kept == READ_BYTES_MIN
    end.feed(bytes(3 * MIB))
    assert 3 * MIB <= end.kept <= 6 * MIB
    end.close()


async def test_room_for_a_large_frame_is_given_back() -> None:
    end = End()
    end.feed(framed(bytes(5 * MIB)))
    assert [len(frame) for frame in end.frames] == [5 * MIB]
    assert end.kept <= READ_BYTES_MAX
    end.feed(framed(b"next"))
    assert end.frames[-1] == b"next"
    end.close()


async def test_a_lane_of_small_frames_keeps_little() -> None:
    end = End(max_frame_bytes=4096)
    for _ in range(200):
        end.feed(framed(bytes(100)))
    assert end.kept == READ_BYTES_MIN
    end.feed((4097).to_bytes(LENGTH_BYTES, "big"))
    assert len(end.errors) == 1
    end.feed(bytes(3 * READ_BYTES_MAX))  # a loop may bring what it had read already
    assert len(end.frames) == 200
    end.close()


async def test_a_frame_that_is_refused_in_the_middle_of_many_ends_it_with_room_left() -> None:
    def refuse(frames: list[memoryview]) -> None:
        raise FrameError("not that")

    end = End(received=refuse)
    end.feed(b"".join(framed(bytes(1000)) for _ in range(16)) + bytes(READ_BYTES_MIN))
    assert len(end.errors) == 1
    end.close()


async def test_a_frame_is_one_write_behind_its_length() -> None:
    end = End()
    for size in (0, 1, 4096, MIB):
        end.protocol.send(bytes(size))
    assert end.transport.written == [framed(bytes(size)) for size in (0, 1, 4096, MIB)]
    end.protocol.send(b"head", b"body")
    assert end.transport.written[-1] == framed(b"headbody")
    end.close()


async def test_what_is_sent_while_several_frames_are_handed_over_leaves_together_in_order() -> None:
    def answer(frames: list[memoryview]) -> None:
        for frame in frames:
            end.protocol.send(b"re: ", bytes(frame))
            assert not end.transport.written

    end = End(received=answer)
    sent = [b"%d" % number for number in range(50)]
    end.feed(b"".join(map(framed, sent)))
    assert end.transport.written == [b"".join(framed(b"re: " + frame) for frame in sent)]
    end.protocol.send(b"later")
    assert end.transport.written[1:] == [framed(b"later")]
    end.close()


async def test_the_answer_to_a_frame_that_came_alone_leaves_before_what_else_is_done_about_it() -> None:
    def answer(frames: list[memoryview]) -> None:
        end.protocol.send(b"yes")
        assert end.transport.written == [framed(b"yes")]

    end = End(received=answer)
    end.feed(framed(b"question"))
    assert end.transport.written == [framed(b"yes")]
    end.close()


async def test_what_is_gathered_stays_small() -> None:
    def answer(frames: list[memoryview]) -> None:
        for _ in range(10):
            end.protocol.send(bytes(GATHERED_BYTES_MAX // 3))

    end = End(received=answer)
    end.feed(framed(b"one") + framed(b"two"))
    assert b"".join(end.transport.written) == framed(bytes(GATHERED_BYTES_MAX // 3)) * 10
    assert max(map(len, end.transport.written)) < 2 * GATHERED_BYTES_MAX
    end.close()


async def test_a_connection_closed_while_frames_are_handed_over_has_sent_its_answer_before() -> None:
    def refuse(frames: list[memoryview]) -> None:
        end.protocol.send(b"no")
        end.protocol.close()
        end.protocol.send(b"never")

    end = End(received=refuse)
    end.feed(framed(b"hello") + framed(b"more"))
    assert end.transport.written == [framed(b"no"), b"closed"]
    end.close()


async def test_garbage_behind_a_good_frame_does_not_take_its_answer_away() -> None:
    def answer(frames: list[memoryview]) -> None:
        end.protocol.send(b"good")
        raise FrameError("the second is none")

    end = End(received=answer)
    end.feed(framed(b"1") + framed(b"2"))
    assert end.transport.written == [framed(b"good")]
    assert len(end.errors) == 1
    end.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this system lets nobody choose how TCP paces itself")
@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2"])
async def test_only_within_one_machine_is_sent_without_pacing(source: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), source_address=(source, 0)) as caller,
    ):
        served, _ = listening.accept()
        before = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        transport, former = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=caller)
        FrameProtocol(
            transport,
            former,
            max_frame_bytes=KIB,
            received=lambda frames: None,
            broken=lambda error: None,
            lost=lambda error: None,
        )
        after = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
        assert after == (b"reno" if source == "127.0.0.1" else before)
        transport.abort()
        served.close()
        await asyncio.sleep(0)
