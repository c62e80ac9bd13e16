"""How a client gets an answer: from one node or the next, until the deadline, without ever doing a change twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp

from raftkit_core.errors import ConfigError, Fatal, OutcomeUnknown, RaftError, Unreachable
from raftkit_core.network.repeating import Attempts
from raftkit_http.api.schema import MembersAnswer
from raftkit_http.endpoints import Endpoints
from raftkit_http.exchange import BROKE, NO_TLS, NOT_TRUSTED, Answer, Lost, NotSent, Outgoing, exchange

T = TypeVar("T")

PROBE_SECONDS = 1.0
BACKOFF_SECONDS = 0.05
BACKOFF_SECONDS_MAX = 0.5
PATIENCE_SECONDS = 1.0
"""How long the first round waits for each answer to what may be sent again; each further round twice as long."""
PATIENCE_SECONDS_MAX = 4.0
_MIN_SHARE_SECONDS = 0.25


class Attempt:
    """One call on its way through the endpoints, against one deadline.

    ``changes``: it is sent to another node only if it provably did nothing. ``again`` (a write under a session): it is
    sent until an answer settles it. ``probes``: a node that was silent for a second is asked something harmless first.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoints: Endpoints,
        timeout: float,
        *,
        changes: bool = False,
        only: str | None = None,
        again: Attempts | None = None,
        probes: bool = True,
    ) -> None:
        self._session = session
        self._endpoints = endpoints
        self._changes = changes or again is not None
        self._again = again
        self._probes = probes and self._changes and again is None
        self._patience = PATIENCE_SECONDS
        self._only = None if only is None else endpoints.checked(only)
        self._now = asyncio.get_running_loop().time
        self._deadline = self._now() + timeout
        self._reasons: dict[str, str] = {}
        self._refusal: RaftError | None = None

    async def run(self, send: Callable[[str, float], Awaitable[Answer[T]]]) -> T:
        """What a node answered. ``send`` asks one of them and raises NotSent or Lost."""
        delay = BACKOFF_SECONDS
        while True:
            answered = await self._round(send)
            if answered is not None:
                return answered
            if self._refusal is None and self._again is None:
                raise self._unreachable()
            if self._remaining() <= delay:
                refusal = self._unreachable() if self._refusal is None else self._refusal
                raise refusal if self._again is None else self._again.given_up(refusal)
            self._patience = min(2 * self._patience, PATIENCE_SECONDS_MAX)
            # Jitter: clients refused together must not come back together.
            await asyncio.sleep(delay * (0.5 + random.random() / 2))
            delay = min(delay * 2, BACKOFF_SECONDS_MAX)

    async def _round(self, send: Callable[[str, float], Awaitable[Answer[T]]]) -> T | None:
        """Everyone once, until one answers for good. Raises: the error it answered, or OutcomeUnknown."""
        candidates = self._endpoints.order() if self._only is None else [self._only]
        for position, endpoint in enumerate(candidates):
            remaining = self._remaining()
            if remaining <= 0:
                break
            # A change cannot be taken back from one node to be given to another, so it gets all the time there is.
            share = remaining
            if self._again is not None:
                share = min(remaining, self._patience)
            elif not self._changes:
                share = min(remaining, max(remaining / (len(candidates) - position), _MIN_SHARE_SECONDS))
            try:
                await self._make_sure(endpoint)
                answer = await send(endpoint, max(min(share, self._remaining()), 0.001))
            except NotSent as error:
                self._note(endpoint, str(error))
                continue
            except Lost as error:
                self._note(endpoint, str(error))
                if self._again is not None:
                    self._refusal = _unknown(endpoint, str(error))
                    self._again.failed(self._refusal)
                elif self._changes:
                    raise _unknown(endpoint, str(error)) from error
                continue
            except ConfigError as error:
                # The client was closed meanwhile. That says nothing of what was sent before.
                raise error if self._again is None else self._again.given_up(error)  # noqa: B904 - it has its own cause
            if self._only is None:
                self._endpoints.answered(endpoint, self._now())
            if answer.data is not None:
                return answer.data
            assert answer.error is not None, "an answer has data or an error"
            self._judge(endpoint, answer.error)
        return None

    async def _make_sure(self, endpoint: str) -> None:
        if self._probes:
            await make_sure(self._session, self._endpoints, endpoint, self._remaining())

    def _judge(self, endpoint: str, error: RaftError) -> None:
        """Go on to the next node if that is safe and may help. Raises: ``error``, or OutcomeUnknown."""
        if isinstance(error, Fatal) and error.outcome == "not_applied":
            pass  # it says something of that node only
        elif self._again is not None:
            told = self._again.failed(error)
            if told is not None:
                raise told
        elif self._changes:
            if error.outcome == "unknown":
                if isinstance(error, OutcomeUnknown):
                    raise error
                raise _unknown(endpoint, f"{error.message} [{error.code}]") from error
            if not error.retryable or error.outcome != "not_applied":
                raise error
        elif not error.retryable and error.outcome != "unknown":
            raise error
        self._refusal = error
        self._reasons[endpoint] = error.message
        if error.leader_node is not None:
            self._endpoints.prefer(error.leader_node.client_address)

    def _note(self, endpoint: str, reason: str) -> None:
        self._endpoints.failed(endpoint)
        self._reasons[endpoint] = reason

    def _remaining(self) -> float:
        """Seconds."""
        return self._deadline - self._now()

    def _unreachable(self) -> Unreachable:
        tried = ", ".join(f"{endpoint} ({reason})" for endpoint, reason in self._reasons.items())
        return Unreachable(f"no node answers: {tried}", hint=_next_step(self._reasons), outcome="not_applied")


def _next_step(reasons: dict[str, str]) -> str:
    """What to do about nodes that gave no answer, each for its reason."""
    if NOT_TRUSTED in reasons.values():
        return "name the file with the CA's certificate, as on the nodes: --cacert FILE"
    if NO_TLS in reasons.values():
        return "name nodes that speak plain HTTP as http://HOST:PORT"
    if any(endpoint.startswith("http:") and reason == BROKE for endpoint, reason in reasons.items()):
        return "if the nodes speak TLS, name them so: -e https://HOST:PORT --cacert FILE; else look at their logs"
    return "start a cluster: raftkit local up; or name a running node: -e http://HOST:PORT"


async def make_sure(session: aiohttp.ClientSession, endpoints: Endpoints, endpoint: str, seconds: float) -> None:
    """Before a change goes out: that the node is there. Raises: NotSent."""
    if endpoints.is_warm(endpoint, asyncio.get_running_loop().time()):
        # Two turns of the loop let a close that has arrived already reach the connection pool: without them the
        # change goes out on a dead connection, and its outcome is unknown for no reason.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return
    probe = Outgoing(method="GET", path="/v1/members")
    try:
        answer = await exchange(session, endpoint, probe, MembersAnswer, min(PROBE_SECONDS, seconds / 2))
    except Lost as error:
        raise NotSent(str(error)) from error
    if answer.data is not None:
        endpoints.learn(answer.data.members)


def _unknown(endpoint: str, reason: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"the change may or may not have happened: it was sent to {endpoint}, then {reason}",
        hint="read the state before you try again",
    )
