"""A client of the WebSocket ``/v1/ws``: what callers ask for in one turn of the loop leaves as one frame."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import aiohttp
import msgspec

WRITES_PER_FRAME = 512


class PipelinedClient:
    """``write(command)`` with a command that the machine's codec has encoded."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._sent: dict[int, list[asyncio.Future[Any]]] = {}
        self._reads: dict[int, asyncio.Future[Any]] = {}
        self._asking: list[tuple[str, asyncio.Future[Any]]] = []
        self._gets: dict[int, list[asyncio.Future[Any]]] = {}
        self._next_id = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder()

    async def __aenter__(self) -> PipelinedClient:
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(f"{self._url}/v1/ws", compress=0, max_msg_size=2**26)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._socket.close()
        await self._session.close()

    def write(self, command: bytes) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._waiting:
            self._flushing = self._loop.create_task(self._flush())  # begins when this turn's callers have all written
        self._waiting.append((command, future))
        return future

    async def read(self, body: dict[str, Any]) -> Any:
        """One read, in a frame of its own. ``body`` is what ``POST /v1/read`` takes."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._next_id += 1
        self._reads[self._next_id] = future
        await self._socket.send_bytes(self._encoder.encode((self._next_id, "read", body)))
        return await future

    def read_among(self, consistency: str, key: str) -> asyncio.Future[Any]:
        """One read, in a frame with the others of this turn and of the same consistency."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._asking:
            self._flushing = self._loop.create_task(self._flush_reads(consistency))
        self._asking.append((key, future))
        return future

    async def _flush_reads(self, consistency: str) -> None:
        asking, self._asking = self._asking, []
        for start in range(0, len(asking), WRITES_PER_FRAME):
            part = asking[start : start + WRITES_PER_FRAME]
            self._next_id += 1
            self._gets[self._next_id] = [future for _, future in part]
            body = (consistency, [key for key, _ in part])
            await self._socket.send_bytes(self._encoder.encode((self._next_id, "reads", body)))

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), WRITES_PER_FRAME):
            part = waiting[start : start + WRITES_PER_FRAME]
            self._next_id += 1
            self._sent[self._next_id] = [future for _, future in part]
            body = (None, [(0, 0, command) for command, _ in part])
            await self._socket.send_bytes(self._encoder.encode((self._next_id, "writes", body)))

    async def _read(self) -> None:
        async for message in self._socket:
            answer_id, is_ok, data = self._decoder.decode(message.data)
            reading = self._reads.pop(answer_id, None)
            if reading is not None:
                if is_ok:
                    reading.set_result(data)
                else:
                    reading.set_exception(RuntimeError(str(data)))
                continue
            asked = self._gets.pop(answer_id, None)
            if asked is not None:
                for number, future in enumerate(asked):
                    if is_ok:
                        future.set_result(data[number])
                    else:
                        future.set_exception(RuntimeError(str(data)))
                continue
            futures = self._sent.pop(answer_id)
            for number, future in enumerate(futures):
                done, result = (False, data) if not is_ok else data[number]
                if future.done():
                    continue
                if done:
                    future.set_result(result)
                else:
                    future.set_exception(RuntimeError(str(result)))
