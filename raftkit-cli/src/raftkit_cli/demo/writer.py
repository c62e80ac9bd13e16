"""Writes that keep honest books: acknowledged, refused, unknown are three things."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from raftkit_cli.demo.report import Report
from raftkit_cli.failures import CliError
from raftkit_core.errors import OutcomeUnknown, RaftError, Unreachable
from raftkit_core.network.client import ClusterClient

PREFIX = "demo/"
RETRY_S = 0.02


class Writer:
    """Writes keys one after another and remembers which were acknowledged, with which value."""

    def __init__(self, client: ClusterClient, report: Report, check: Callable[[], None], nonce: str) -> None:
        self._client = client
        self._report = report
        self._check = check
        self._nonce = nonce
        self.acknowledged: dict[str, bytes] = {}
        self.last_ack_at = 0.0
        """Loop time of the last acknowledgement."""

    async def write(self, number: int, *, is_timed: bool = True) -> None:
        """Write key ``number`` until it is acknowledged.

        A write with an unknown outcome is read back first and then written again: putting the same value twice is
        harmless, and only an answer counts as acknowledged.
        """
        key, value = f"{PREFIX}{number:04}", f"value {number} of {self._nonce}".encode()
        loop = asyncio.get_running_loop()
        while True:
            sent_at = loop.time()
            try:
                await self._client.kv_put(key, value)
            except RaftError as error:
                await self._not_acknowledged(key, value, error)
                continue
            self.last_ack_at = loop.time()
            self.acknowledged[key] = value
            self._report.acknowledged += 1
            if is_timed:
                self._report.latencies_s.append(self.last_ack_at - sent_at)
            return

    async def _not_acknowledged(self, key: str, value: bytes, error: RaftError) -> None:
        self._check()  # a node that died by itself is a better explanation than what its absence looks like
        if isinstance(error, OutcomeUnknown) or (error.outcome == "unknown" and not isinstance(error, Unreachable)):
            self._report.unknown += 1
            if await self._is_there(key, value):
                self._report.unknown_applied += 1
            return
        if not error.retryable:
            raise CliError("DEMO_FAILED", f"writing {key} failed: {error.message} [{error.code}]")
        self._report.refused += 1
        await asyncio.sleep(RETRY_S)

    async def _is_there(self, key: str, value: bytes) -> bool:
        """A linearizable read, repeated until somebody can answer it (the demo's deadline ends it otherwise)."""
        while True:
            try:
                found = await self._client.kv_get(key)
            except RaftError as error:
                if not error.retryable:
                    raise CliError(
                        "DEMO_FAILED", f"reading {key} back failed: {error.message} [{error.code}]"
                    ) from error
                self._check()
                await asyncio.sleep(RETRY_S)
            else:
                return found is not None and found.value == value

    async def missing(self) -> list[str]:
        """Acknowledged keys that a linearizable read does not find with their value."""
        while True:
            try:
                listed = await self._client.kv_list(PREFIX, limit=10 * len(self.acknowledged) + 100)
                break
            except RaftError as error:
                if not error.retryable:
                    raise _unreadable("the keys", error) from error
                self._check()
                await asyncio.sleep(RETRY_S)
        found = {item.key: item.value for item in listed}
        return [key for key, value in self.acknowledged.items() if found.get(key) != value]


def _unreadable(what: str, error: RaftError) -> CliError:
    return CliError("DEMO_FAILED", f"reading {what} back failed: {error.message} [{error.code}]")
