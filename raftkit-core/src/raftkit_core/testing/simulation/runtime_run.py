"""Runs one scenario of whole nodes to its end and says what came of it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from random import Random
from typing import Any

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import RaftError, WaitTimeout
from raftkit_core.testing.linearizability import History
from raftkit_core.testing.simulation.faults import FaultPlayer
from raftkit_core.testing.simulation.report import SeedReport, Violation
from raftkit_core.testing.simulation.runtime_scenario import RuntimeScenario, plan
from raftkit_core.testing.simulation.runtime_script import Action, Weather
from raftkit_core.testing.simulation.sim_judgement import rule_of
from raftkit_core.testing.simulation.sim_machine import DurableKv
from raftkit_core.testing.simulation.simulation import Simulation
from raftkit_core.testing.simulation.stage import LEADER
from raftkit_core.testing.virtual_time import VirtualDeadlock, VirtualTimeLoop
from raftkit_core.types.ids import NodeId

RING = "runtime"
GRACE_TURNS = 50
"""Turns of the loop in which a cancelled task has to end."""
OPERATIONS = frozenset({"put", "put_once", "get", "lease_get", "cas", "delete", "abandon"})
CALM_SECONDS = 2.5
"""How long a scenario that need not recover goes on when its faults have ended."""
TAIL_SECONDS = 300.0
"""V10: the latest a run may end after its last fault."""
SHORT_TTL_MS = 2000
"""Sessions that live no longer are waited for at the end."""
HEAL_TIMEOUTS = 30
"""V1: all members hold the same within so many times lease + largest election timeout."""


class RuntimeRun:
    """One run; ``history`` and ``sim`` stay for who wants to look."""

    def __init__(self, scenario: RuntimeScenario) -> None:
        self.scenario = scenario
        self.sim = Simulation(
            scenario.seed,
            scenario.node_ids,
            voters=scenario.voters,
            config=scenario.make_config(),
            machine_on=DurableKv if scenario.machine == "durable-kv" else None,
            faults=lambda sim: self.player.calm_disks(),
        )
        self.sim.session_ttl_ms = scenario.session_ttl_ms
        self.player = FaultPlayer(self.sim, Weather(), scenario.disks)
        self._values: dict[str, str | None] = {}

    # --- the run ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Raises: AssertionError for what must not happen."""
        sim = self.sim
        work = sim.loop.create_task(self._play(), name="scenario")
        # Whatever comes after the first breach proves nothing.
        sim.oracle.on_breach = lambda: _later(work.cancel)
        try:
            await asyncio.wait([work])
        finally:
            work.cancel()
            await self.player.stop()
            await sim.close()
        if not work.cancelled():
            work.result()
        await self._nothing_is_left()
        sim.require_unbroken()

    async def _play(self) -> None:
        sim = self.sim
        await sim.leader()
        await sim.eventually(lambda: sim.agreed(), "the first calm")
        self.player.weather = self.scenario.weather
        self.player.set_weather()
        await self._act()
        if self.scenario.ends_early:
            await self._calm_down()
            await asyncio.sleep(CALM_SECONDS)
        else:
            await self._recover()
        sim.check_states()

    async def _nothing_is_left(self) -> None:
        """S29: every task of every node has ended."""
        for _ in range(GRACE_TURNS):
            if len(asyncio.all_tasks()) == 1:
                return
            await asyncio.sleep(0)
        left = sorted(task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task())
        self.sim.oracle.breach("S29", "", f"{len(left)} tasks are left: {', '.join(left[:5])}")

    async def _act(self) -> None:
        sim = self.sim
        began = sim.now
        clients: dict[str, list[Action]] = {}
        faults: list[Action] = []
        for action in self.scenario.actions:
            if action.kind in OPERATIONS:
                clients.setdefault(action.client, []).append(action)
            else:
                faults.append(action)
        for number, name in enumerate(sorted(clients)):
            sim.client(name).session_name = f"s{number // 4}"
        for name, mine in clients.items():
            self.player.spawn(self._be_client(name, mine, began), f"client {name}")
        for action in faults:
            await self._until(began + action.at_s)
            sim.require_unbroken()
            self.player.do(action)
        await self._until(began + self.scenario.seconds)
        sim.require_unbroken()

    async def _until(self, at: float) -> None:
        if at > self.sim.now:
            await asyncio.sleep(at - self.sim.now)

    async def _be_client(self, name: str, actions: list[Action], began: float) -> None:
        client = self.sim.client(name)
        for action in actions:
            await self._until(began + action.at_s)
            if self.sim.now > began + self.scenario.seconds:
                return
            await self._call(client, action)

    async def _call(self, client: Any, action: Action) -> None:
        node = self._asked(action)
        options: dict[str, Any] = {"node": node, "timeout": self.scenario.patience_s}
        with suppress(RaftError):
            if action.kind == "put":
                await client.put(action.key, action.value, **options)
            elif action.kind == "put_once":
                await client.put_once(action.key, action.value, timeout=self.scenario.patience_s)
            elif action.kind == "abandon":
                await client.leave_session(close=action.pick % 3 == 0, when_late=action.pick % 3 == 1)
            elif action.kind == "delete":
                await client.delete(action.key, **options)
            elif action.kind == "cas":
                await client.cas(action.key, self._values.get(action.key), action.value, **options)
            else:
                policy = ReadPolicy.LEASE if action.kind == "lease_get" else ReadPolicy.READ_INDEX
                found = await client.get(action.key, policy, **options)
                self._values[action.key] = None if found is None else found.decode()

    def _asked(self, action: Action) -> NodeId:
        """Whom a client asks: any node, or one that takes itself for the leader, whatever the others think."""
        ids = self.sim.ids
        if action.node == LEADER:
            ids = [node for node in self.sim.running if self.sim.raft(node)._core.engine.is_leader] or ids
        return ids[action.pick % len(ids)]

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _calm_down(self) -> None:
        """All faults end, and nodes that are down start."""
        player = self.player
        await player.stop()
        await self.sim.forget_late_copies()
        self.sim.heal()
        player.weather = Weather()
        player.set_weather()
        player.calm_disks()
        player.supervise()
        for node in self.sim.ids:
            await player.start(node)

    async def _recover(self) -> None:
        """All faults end; V1 to V4."""
        sim = self.sim
        player = self.player
        await self._calm_down()
        core = await self._core()
        present = [node for node in core if node not in self.player.lost]
        config = sim.config
        limit = HEAL_TIMEOUTS * (config.leader_lease_ms + config.election_timeout_max_ms) / 1000
        player.spawn(self._help_the_stranded(), "operator: help the stranded")
        writing = None if self.scenario.quiet else asyncio.ensure_future(self._keep_writing())
        began = sim.now
        try:
            look = sim._leader if writing is not None else partial(sim.agreed, present)
            leader = await sim.eventually(look, "V1 everybody holds the same", limit)
        except WaitTimeout as error:
            raise AssertionError(f"V1 {error}") from None
        finally:
            if writing is not None:
                writing.cancel()
                await asyncio.wait([writing])
        sim.trace.event("healed", leader, f"{sim.now - began:.3f}")
        sim.trace.seen("healed")
        await self._serves()
        if writing is not None:
            await sim.eventually(lambda: sim.agreed(present), "V1 everybody holds the same", limit)
        if self.scenario.session_ttl_ms <= SHORT_TTL_MS:
            await self._abandoned_sessions_end()

    async def _abandoned_sessions_end(self) -> None:
        """V13: within their time to live, the leader's slow clock, and what the entry takes."""
        sim = self.sim
        gone = {session.id for session in sim.sessions_left if session.is_closed}
        limit = self.scenario.session_ttl_ms / 1000 * (1 + sim.config.max_clock_drift) + 1.0

        def is_over() -> bool:
            leader = sim._leader()
            return leader is not None and not any(map(sim.raft(leader)._core.worker.system.sessions.__contains__, gone))

        try:
            await sim.eventually(is_over, "the end of abandoned sessions", limit)
        except WaitTimeout as error:
            raise AssertionError(f"V13 {error}") from None

    async def _core(self) -> list[NodeId]:
        """Who is there at the end; the others are dead, mute or deaf for ever."""
        sim = self.sim
        ending = self.scenario.ending
        if ending == "all" or self.player.lost:
            return list(sim.ids)
        voters = self._last_voters()
        if not voters:
            return list(sim.ids)
        random = Random(f"{self.scenario.seed}/core")
        core = sorted(random.sample(voters, len(voters) // 2 + 1))
        sim.trace.event("fault", "", ("core", core))
        sim.trace.seen(f"ending.{ending}")
        for node in sim.ids:
            if node in core:
                continue
            if ending == "core_dead":
                if node in sim.lives:
                    sim.crash(node, reset=False)
            else:
                for other in sim.ids:
                    if other != node:
                        sim.cut(*((node, other) if ending == "core_mute" else (other, node)))
        return core

    def _last_voters(self) -> list[NodeId]:
        """The voters everybody who belongs to the cluster agrees on; empty while they do not."""
        found: dict[Any, None] = {}
        for node in self.sim.running:
            configs = self.sim.raft(node)._core.engine.effective.configs
            if configs:
                found[configs] = None
        configs = next(iter(found), ())
        return list(configs[0]) if len(found) == len(configs) == 1 else []

    async def _help_the_stranded(self) -> None:
        """A member that was away while the leader's store was replaced refuses that leader: its own membership names
        the old store. The operator hands leadership to somebody it knows."""
        sim = self.sim
        while True:
            await asyncio.sleep(2.0)
            leader = sim._leader()
            if leader is None:
                continue
            stores = {node: sim.raft(node).store_id for node in sim.running}
            for node in sim.running:
                known = sim.raft(node)._core.engine.effective.nodes
                if node in self.player.lost or leader not in known or known[leader].store_id == stores[leader]:
                    continue
                sim.trace.seen("ending.stranded")
                voters = sim.raft(leader)._core.engine.effective.voter_ids
                others = [each for each in voters if each in stores and each in known]
                for other in others:
                    if other not in (leader, node) and known[other].store_id == stores[other]:
                        sim.raft(leader).trigger().transfer_leader(other)
                        break

    async def _keep_writing(self) -> None:
        client = self.sim.client("writer")
        for number in itertools.count(1):
            with suppress(RaftError):
                await client.put("end", f"w{number}", timeout=1.0)
            await asyncio.sleep(0.1)

    async def _serves(self) -> None:
        """V2: ten writes and ten reads succeed, in time."""
        sim = self.sim
        began = sim.now
        client = sim.client("last")
        config = sim.config
        limit = 10 * (config.leader_lease_ms + config.election_timeout_max_ms) / 1000
        done = 0
        while done < 10:
            leader = sim._leader()
            try:
                if leader is None:
                    raise WaitTimeout("nobody leads")
                # A leader that was just removed may take a write and never learn what became of it: ask again in time.
                await client.put("last", f"l{done}.{sim.now:.3f}", node=leader, timeout=limit / 5)
                await client.get("last", node=leader, timeout=limit / 5)
                done += 1
            except RaftError as error:
                if sim.now - began > limit:
                    raise AssertionError(
                        f"V2 only {done} of 10 writes within {limit:g} s: {error}; {sim.describe()}"
                    ) from None
                await asyncio.sleep(0.1)


def _later(do: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_soon(do)


def run(scenario: RuntimeScenario) -> SeedReport:
    """Run ``scenario`` on a loop of its own. Never raises for what it finds."""
    return run_with_history(scenario)[0]


def run_seed(seed: int, profile: str = "mixed", *, seconds: float = 10.0) -> SeedReport:
    return run(plan(seed, profile, seconds=seconds))


def run_with_history(scenario: RuntimeScenario) -> tuple[SeedReport, History]:
    """The report, and what the clients saw."""
    made = RuntimeRun(scenario)
    sim = made.sim
    violation: Violation | None = None
    unhandled: list[str] = []
    loop = VirtualTimeLoop()
    loop.ends_at = scenario.seconds + TAIL_SECONDS
    loop.set_exception_handler(lambda _, context: unhandled.append(_described(context)))
    with _quiet():
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(made.run())
        except VirtualDeadlock as error:
            violation = Violation("V10", str(error), sim.trace.now())
            sim.oracle.breaches.clear()  # what was cancelled because of it
        except Exception as error:
            violation = Violation.of(error, sim.trace.now())
    if sim.oracle.breaches:
        first = sim.oracle.breaches[0]
        violation = Violation(first.rule, str(first), first.at)
    if violation is None and unhandled:
        violation = Violation("crash", unhandled[0], sim.trace.now())
    judged = sim.judged(first_only=True)
    if violation is None and judged.findings:
        first_finding = judged.findings[0]
        violation = Violation(rule_of(first_finding), f"{rule_of(first_finding)} {first_finding}", sim.trace.now())
    report = SeedReport(
        ring=RING,
        seed=scenario.seed,
        profile=scenario.profile,
        violation=violation,
        trace_hash=sim.trace.hash,
        coverage=dict(sorted(sim.trace.coverage.items())),
        simulated_s=round(sim.trace.now(), 3),
        steps=sim.trace.steps,
        actions=len(scenario.actions),
        operations=judged.operations,
        undecided=len(judged.undecided),
    )
    return report, sim.history


def _described(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}: {type(error).__name__}: {error}" if error is not None else str(context)


@contextmanager
def _quiet() -> Iterator[None]:
    """No collection at a moment chance decides, and no log lines about faults that are wanted."""
    logs = [logging.getLogger(name) for name in ("raftkit", "raftkit_core")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            gc.collect()
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


__all__ = ["RuntimeRun", "run", "run_seed", "run_with_history"]
