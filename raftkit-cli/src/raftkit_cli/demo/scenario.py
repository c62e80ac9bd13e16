"""The story of the demo, step by step, on real processes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from raftkit_cli.client import make_client
from raftkit_cli.cluster.layout import ClusterFolder, LocalNode
from raftkit_cli.cluster.serving import check_alive, until_answers, until_served
from raftkit_cli.demo.report import Report
from raftkit_cli.demo.writer import Writer
from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_core.errors import RaftError
from raftkit_core.network.client import ClusterClient, NodeStatus

KEYS = 200
POLL_S = 0.03
REQUEST_S = 3.0
"""Limit of one request: longer than an election, so that most writes wait it out where they are."""
STEP_S = 20.0
"""Limit of one wait inside the demo; its deadline bounds all of them together."""


class Scenario:
    """One run over ``folder``. ``tell`` gets a line of the story; figures go into ``report``."""

    def __init__(
        self,
        invocation: Invocation,
        folder: ClusterFolder,
        report: Report,
        tell: Callable[[str], None],
        *,
        is_durable: bool,
        is_tied: bool,
    ) -> None:
        self._invocation = invocation
        self._folder = folder
        self._report = report
        self._tell = tell
        self._is_durable = is_durable
        self._is_tied = is_tied
        self._alive: list[LocalNode] = []
        """Nodes that ought to run now."""

    async def run(self) -> None:
        """Raises: CliError (DEMO_FAILED, NODE_FAILED, …) as soon as something is not as promised."""
        folder, report = self._folder, self._report
        async with make_client(self._invocation, folder.cluster.endpoints, timeout_s=REQUEST_S) as client:
            await self._elect(client)
            writer = Writer(client, report, self._check, uuid.uuid4().hex)
            half = KEYS // 2
            await self._write(writer, range(half))
            self._tell(
                f"writes 1 to {half} acknowledged   p50 {report.percentile_ms(0.5)} ms"
                f"   p99 {report.percentile_ms(0.99)} ms"
            )
            killed = await self._fail_over(client, writer, half)
            await self._write(writer, range(half + 2, KEYS))
            self._tell(
                f"writes {half + 1} to {KEYS} acknowledged   {report.unknown} with unknown outcome on the way,"
                f" each read back and written again"
            )
            if self._is_durable and killed not in self._alive:
                await self._restart(client, killed)
            await self._read_back(writer)
            await self._compare(client)

    def _check(self) -> None:
        check_alive(self._folder, self._alive)

    # --- steps --------------------------------------------------------------------------------------------------

    async def _elect(self, client: ClusterClient) -> None:
        folder, report = self._folder, self._report
        began = time.monotonic()
        for node in folder.cluster.nodes:
            folder.start(node, tied=self._is_tied)
            self._alive.append(node)
            self._invocation.out.note(f"  {node.id}  {folder.cluster.url(node)}  pid {node.pid}")
        served = await until_served(client, folder, self._alive, wait_s=STEP_S)
        report.first_leader, report.election_s = served.leader, time.monotonic() - began
        self._tell(f"{served.leader} elected LEADER, term {served.term}: it serves")

    async def _write(self, writer: Writer, numbers: range) -> None:
        self._report.keys = KEYS
        for number in numbers:
            await writer.write(number)

    async def _fail_over(self, client: ClusterClient, writer: Writer, number: int) -> LocalNode:
        """``kill -9`` the leader while a write is under way, and go on writing."""
        folder, report = self._folder, self._report
        leader = folder.cluster.node(await self._leader(client))
        report.killed, report.killed_after = leader.id, report.acknowledged
        self._tell(f"kill -9 {leader.id} (the leader, pid {leader.pid}) while writing goes on")
        self._alive.remove(leader)
        loop = asyncio.get_running_loop()
        writing = asyncio.create_task(writer.write(number, is_timed=False))
        try:
            await asyncio.to_thread(folder.kill, leader)
            killed_at = loop.time()
            if len(self._alive) < len(folder.cluster.nodes) // 2 + 1:
                self._tell(f"without {leader.id} there is no quorum: restarting it at once")
                await self._restart(client, leader)
            await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        await writer.write(number + 1, is_timed=False)
        report.failover_s = writer.last_ack_at - killed_at
        # A follower that has not noticed yet may still name the dead one.
        report.next_leader = await self._leader(client, not_this=None if leader in self._alive else leader.id)
        self._tell(
            f"{report.next_leader} LEADER: the first write sent after the kill is acknowledged"
            f" {report.failover_s:.2f} s later"
        )
        return leader

    async def _leader(self, client: ClusterClient, *, not_this: str | None = None) -> str:
        """Who leads. Raises: CliError after a while without one."""
        deadline = time.monotonic() + STEP_S
        while time.monotonic() < deadline:
            self._check()
            try:
                status = await client.status()
            except RaftError:
                status = None
            if status is not None and status.leader not in (None, not_this):
                assert status.leader is not None  # for the type checker
                return status.leader
            await asyncio.sleep(POLL_S)
        raise CliError("DEMO_FAILED", f"nobody led within {STEP_S:g} s")

    async def _restart(self, client: ClusterClient, node: LocalNode) -> None:
        folder, report = self._folder, self._report
        began = time.monotonic()
        folder.start(node, tied=self._is_tied)
        self._alive.append(node)
        await until_answers(client, folder, node, wait_s=STEP_S)
        answered_s = time.monotonic() - began
        report.is_restarted = True
        deadline = began + STEP_S
        while True:
            answers = await self._answers(client, digest=False)
            goal = max(answer.committed or 0 for answer in answers)
            own = next(answer for answer in answers if answer.id == node.id)
            if goal and (own.applied or 0) >= goal:
                break
            self._check()
            if time.monotonic() >= deadline:
                raise CliError(
                    "DEMO_FAILED", f"{node.id} has applied {own.applied} of {goal} after {STEP_S:g} s of catching up"
                )
            await asyncio.sleep(POLL_S)
        report.catch_up_s = time.monotonic() - began
        self._tell(
            f"restarted {node.id}: answers after {answered_s:.2f} s, caught up to {own.applied} after"
            f" {report.catch_up_s:.2f} s"
        )

    async def _read_back(self, writer: Writer) -> None:
        report = self._report
        report.lost = await writer.missing()
        kept = report.acknowledged - len(report.lost)
        self._tell(f"read back: {kept} of {report.acknowledged} acknowledged keys present with their value")
        if report.lost:
            raise CliError(
                "DEMO_FAILED",
                f"{len(report.lost)} acknowledged writes are missing: {', '.join(report.lost[:5])}",
                hint="this must not happen: please report it with the folder and the logs",
            )
        if report.acknowledged != KEYS:
            raise CliError("DEMO_FAILED", f"{report.acknowledged} of {KEYS} writes were acknowledged")

    async def _compare(self, client: ClusterClient) -> None:
        """Every running node must have the same state at the same applied index."""
        report = self._report
        deadline = time.monotonic() + STEP_S
        while True:
            self._check()
            answers = await self._answers(client, digest=True)
            report.digests = {answer.id: answer.digest for answer in answers}
            indexes = {answer.applied for answer in answers}
            if len(answers) == len(self._alive) and len(indexes) == 1:
                report.digest_index = indexes.pop()
                break
            if time.monotonic() >= deadline:
                raise CliError(
                    "DEMO_FAILED", f"the nodes did not come to one applied index: {sorted(map(str, indexes))}"
                )
            await asyncio.sleep(POLL_S)
        if not report.digests_equal:
            raise CliError("DEMO_FAILED", f"the nodes differ at index {report.digest_index}: {report.digests}")
        names = " ".join(report.digests)
        self._tell(f"{names} hold the same state at index {report.digest_index}: {next(iter(report.digests.values()))}")

    async def _answers(self, client: ClusterClient, *, digest: bool) -> list[NodeStatus]:
        """What every node that ought to run says about itself; those that do not answer right now are left out."""

        async def ask(node: LocalNode) -> NodeStatus | None:
            try:
                return await client.status_of(self._folder.cluster.url(node), digest=digest)
            except RaftError:
                return None

        answers = await asyncio.gather(*(ask(node) for node in self._alive))
        return [answer for answer in answers if answer is not None]
