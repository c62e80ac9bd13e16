"""The answering half of a connection: what comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raftkit_core.network.serving import ServedConnection
from raftkit_core.network.wire import FrameError, Kind, decode_frame, encode_frame, encode_request
from raftkit_core.testing.recording_service import RecordingService
from raftkit_core.types.identity import PeerIdentity
from raftkit_core.types.messages import ForwardRequest, ReadIndexRequest, ReadIndexResponse

pytestmark = pytest.mark.virtual_time


async def served(
    service: RecordingService, caller: RecordingService, send: Callable[[bytes], None] = lambda _frame: None
) -> tuple[ServedConnection, Callable[..., None]]:
    """A connection that has said hello, and a way to let a request arrive on it."""
    connection = ServedConnection(
        "default",
        lambda: service,
        frozenset(Kind),
        send=send,
        refused=lambda: None,
        offer=lambda _request, _peer: "",
    )

    def arrive(kind: Kind, message: Any, request_id: int) -> None:
        connection.received_many([encode_frame(kind, request_id, 1000, encode_request(kind, message))])

    arrive(Kind.HELLO, caller.local_hello(service.node_id), 0)
    await asyncio.sleep(0.01)
    assert connection.peer is not None
    return connection, arrive


async def test_a_forwarded_request_that_comes_twice_is_carried_out_once() -> None:
    service = RecordingService("n1")
    connection, arrive = await served(service, RecordingService("n2"))
    first, second = ForwardRequest("write", b"1", 1000), ForwardRequest("write", b"2", 1000)
    for message, request_id in ((first, 1), (first, 1), (second, 4), (first, 1), (second, 4)):
        arrive(Kind.FORWARD, message, request_id)
    assert [message for kind, message, _ in service.calls if kind == "forward"] == [first, second]
    await connection.close()


async def test_what_changes_nothing_the_second_time_may_come_twice() -> None:
    service = RecordingService("n1")
    connection, arrive = await served(service, RecordingService("n2"))
    for _ in range(2):
        arrive(Kind.READ_INDEX, ReadIndexRequest("READ_INDEX", 1000), 1)
    assert service.count("read_index") == 2
    await connection.close()


async def test_before_hello_nothing_is_even_decoded() -> None:
    connection = ServedConnection(
        "default",
        lambda: RecordingService("n1"),
        frozenset(Kind),
        send=lambda _frame: None,
        refused=lambda: None,
        offer=lambda _request, _peer: "",
    )
    with pytest.raises(FrameError, match="before hello"):
        connection.received(encode_frame(Kind.APPEND_ENTRIES, 1, 1000, b"\x90"))
    await connection.close()


async def test_an_answer_that_is_there_is_sent_before_the_frames_it_came_with_are_done() -> None:
    class AtOnce(RecordingService):
        def read_index(self, request: ReadIndexRequest, peer: PeerIdentity) -> asyncio.Future[ReadIndexResponse]:
            future: asyncio.Future[ReadIndexResponse] = asyncio.get_running_loop().create_future()
            future.set_result(ReadIndexResponse(None))
            return future

    sent: list[bytes] = []
    connection, arrive = await served(AtOnce("n1"), RecordingService("n2"), sent.append)
    del sent[:]
    arrive(Kind.READ_INDEX, ReadIndexRequest("READ_INDEX", 1000), 7)
    assert [decode_frame(frame).request_id for frame in sent] == [7]
    assert connection.has_room
    await connection.close()
