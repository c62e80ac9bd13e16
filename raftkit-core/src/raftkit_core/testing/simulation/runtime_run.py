"""Runs one scenario of whole nodes to its end and says what came of it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

from raftkit_core.config import ReadPolicy
from raftkit_core.errors import RaftError, WaitTimeout
from raftkit_core.testing.linearizability import History, judge
from raftkit_core.testing.simulation.report import SeedReport, Violation
from raftkit_core.testing.simulation.runtime_scenario import LEADER, Action, RuntimeScenario, plan
from raftkit_core.testing.simulation.sim_machine import DurableKv
from raftkit_core.testing.simulation.simulation import SEARCH_BUDGET, Simulation
from raftkit_core.testing.virtual_time import VirtualDeadlock, VirtualTimeLoop
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import index_of
from raftkit_core.types.membership import RemoveNodes

RING = "runtime"
OPERATIONS = frozenset({"put", "get", "lease_get", "cas", "delete"})
CALL_TIMEOUT = 1.5
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
            machine=DurableKv if scenario.machine == "durable-kv" else None,
            faults=self._set_up,
        )
        self.tasks: dict[asyncio.Task[None], None] = {}
        self._weather = scenario.weather
        self._storms = 0
        self._values: dict[str, str | None] = {}
        self.lost: dict[NodeId, None] = {}
        """Nodes whose store was wiped or is damaged, until an operator has let them rejoin."""
        self.sim.on_end = self._restart_soon
        self._delays = self.sim.stream("supervisor")

    def _set_up(self, sim: Simulation) -> None:
        self._calm_disks()

    def _calm_disks(self) -> None:
        disks = self.scenario.disks
        for disk in self.sim.disks.values():
            disk.at_once, disk.latency, disk.atomic = disks.at_once, disks.latency, disks.atomic
            disk.hung = disk.full = False
            disk.failing = 0.0

    def _set_weather(self) -> None:
        weather, hub = self._weather, self.sim.hub
        for name in weather.__struct_fields__:
            setattr(hub.weather, name, getattr(weather, name))

    # --- the run ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Raises: AssertionError for what must not happen."""
        sim = self.sim
        try:
            await sim.leader()
            await sim.eventually(lambda: self._calm(list(self.scenario.node_ids), True), "the first calm")
            self._set_weather()
            await self._act()
            await self._recover()
            sim.check()
        finally:
            for task in self.tasks:
                task.cancel()
            if self.tasks:
                await asyncio.wait(list(self.tasks))
            await sim.close()
        sim.require_unbroken()

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
        for name, mine in clients.items():
            self._spawn(self._be_client(name, mine, began), f"client {name}")
        for action in faults:
            await self._until(began + action.at_s)
            sim.require_unbroken()
            self._do(action)
        await self._until(began + self.scenario.seconds)
        sim.require_unbroken()

    async def _until(self, at: float) -> None:
        if at > self.sim.now:
            await asyncio.sleep(at - self.sim.now)

    def _spawn(self, work: Any, name: str) -> None:
        task = self.sim.loop.create_task(work, name=name)
        self.tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.sim.oracle.breach("crash", task.get_name(), f"{type(error).__name__}: {error}")

    async def _be_client(self, name: str, actions: list[Action], began: float) -> None:
        client = self.sim.client(name)
        for action in actions:
            await self._until(began + action.at_s)
            if self.sim.now > began + self.scenario.seconds:
                return
            await self._call(client, action)

    async def _call(self, client: Any, action: Action) -> None:
        node = self.sim.ids[action.pick % len(self.sim.ids)]
        options: dict[str, Any] = {"node": node, "timeout": CALL_TIMEOUT}
        with suppress(RaftError):
            if action.kind == "put":
                await client.put(action.key, action.value, **options)
            elif action.kind == "delete":
                await client.delete(action.key, **options)
            elif action.kind == "cas":
                await client.cas(action.key, self._values.get(action.key), action.value, **options)
            else:
                policy = ReadPolicy.LEASE if action.kind == "lease_get" else ReadPolicy.READ_INDEX
                found = await client.get(action.key, policy, **options)
                self._values[action.key] = None if found is None else found.decode()

    # --- faults -----------------------------------------------------------------------------------------------------

    def _node(self, action: Action) -> NodeId:
        if action.node != LEADER:
            return action.node
        return self.sim._leader() or self.sim.ids[action.pick % len(self.sim.ids)]

    def _later(self, action: Action, undo: Any) -> None:
        async def undo_later() -> None:
            await asyncio.sleep(action.for_s)
            done = undo()
            if done is not None:
                await done

        self._spawn(undo_later(), f"end of {action.kind}")

    def _do(self, action: Action) -> None:
        sim = self.sim
        node = self._node(action)
        sim.trace.seen(f"action.{action.kind}")
        random = Random(action.pick)
        disk = sim.disk(node)
        match action.kind:
            case "crash" | "power_loss":
                self._kill(action, node)
            case "wipe":
                if self._may_lose(node):
                    sim.wipe(node)
                    self._later(action, lambda: self._rejoin(node))
            case "pause":
                if not sim.is_paused(node):
                    sim.pause(node)
                    self._later(action, lambda: sim.resume(node))
            case "partition":
                ids = list(sim.ids)
                random.shuffle(ids)
                place = random.randint(1, len(ids) - 1)
                sim.partition(ids[:place], ids[place:], silent=random.random() < 0.7)
                self._later(action, sim.heal)
            case "isolate":
                sim.isolate(node, silent=random.random() < 0.7)
                self._later(action, sim.heal)
            case "cut" | "hold" | "flap":
                other = random.choice([each for each in sim.ids if each != node])
                src, dst = (node, other) if random.random() < 0.5 else (other, node)
                if action.kind == "hold":
                    sim.hold(src, dst)
                    self._later(action, sim.heal)
                elif action.kind == "cut":
                    sim.cut(src, dst, silent=random.random() < 0.7)
                    self._later(action, sim.heal)
                else:
                    self._spawn(self._flap(src, dst, action.for_s), "flapping link")
            case "storm":
                self._storm(action, random)
            case "slow_disk":
                disk.at_once, disk.latency = 0.0, (0.05, random.choice((0.2, 1.0, 3.0)))
                self._later(action, self._calm_disks)
            case "hang_disk":
                disk.hung = True
                self._later(action, self._calm_disks)
            case "full_disk":
                disk.full = True
                self._later(action, self._calm_disks)
            case "failing_disk":
                disk.failing = 0.3
                self._later(action, self._calm_disks)
            case "rot":
                if self._may_lose(node) and disk.entries:
                    disk.rotten[random.choice(disk.entries).index] = None
                    sim.crash(node) if node in sim._lives else None
                    self._later(action, lambda: self._rejoin(node))
            case "transfer" | "elect" | "snapshot" | "purge":
                self._trigger(action, node)
            case "add" | "remove" | "swap":
                self._spawn(self._change(action, node, random), f"operator: {action.kind}")
            case _:
                raise AssertionError(f"{action.kind} is no fault")

    def _kill(self, action: Action, node: NodeId) -> None:
        if node in self.sim._lives:
            self.sim.crash(node, reset=action.kind != "power_loss")
        self._later(action, lambda: self._start(node))

    async def _start(self, node: NodeId) -> None:
        """Start a node that is down, or has ended by itself, if it can be."""
        sim = self.sim
        if node in sim.running or (node in sim._lives and sim._lives[node].raft is None):
            return
        try:
            await sim.restart(node)
        except RaftError as error:
            sim.trace.seen(f"start.{type(error).__name__}")

    def _restart_soon(self, node: NodeId) -> None:
        """A supervisor starts again what has ended, as long as the run lasts."""

        async def restart() -> None:
            await asyncio.sleep(self._delays.uniform(0.2, 2.0))
            if node in self.sim._lives and node not in self.sim.running:
                await self._start(node)
                if node not in self.sim._lives:
                    self._restart_soon(node)

        self._spawn(restart(), f"restart {node}")

    async def _rejoin(self, node: NodeId) -> None:
        """What the documentation says to do after a store is lost: remove, start empty, add, promote."""
        sim = self.sim
        await self._start(node)  # damage may not have been met yet
        await asyncio.sleep(0.5)
        sim.wipe(node)
        await self._start(node)
        for _ in range(20):
            leader = sim._leader()
            if leader is not None and leader != node and node in sim.running:
                raft = sim.raft(leader)
                try:
                    members = raft._core.engine.effective
                    bound = members.nodes.get(node)
                    if bound is not None and bound.store_id != sim.raft(node).store_id:
                        keep = [voter for voter in members.voter_ids if voter != node]
                        await raft.change_membership(keep, timeout=2)
                    if node not in raft._core.engine.effective.nodes:
                        await raft.add_learner(node, sim.address(node), timeout=3)
                    await raft.change_membership({*raft._core.engine.effective.voter_ids, node}, timeout=3)
                    self.lost.pop(node, None)
                    sim.trace.seen("members.rejoined")
                    return
                except RaftError as error:
                    sim.trace.seen(f"rejoin.{type(error).__name__}")
            await asyncio.sleep(0.3)

    def _may_lose(self, node: NodeId) -> bool:
        """One store at a time may be lost for good: more than the cluster must survive is not asked of it."""
        if len(self.lost) >= (self.scenario.voters - 1) // 2 and node not in self.lost:
            return False
        self.lost[node] = None
        return True

    def _storm(self, action: Action, random: Random) -> None:
        weather = self.sim.hub.weather
        weather.loss, weather.answer_loss = random.choice((0.1, 0.3)), random.choice((0.0, 0.5))
        weather.latency = (0.001, random.choice((0.05, 0.3)))
        weather.duplicate = weather.reorder = 0.2
        self._later(action, self._set_weather)

    async def _flap(self, src: NodeId, dst: NodeId, seconds: float) -> None:
        end = self.sim.now + seconds
        while self.sim.now < end:
            self.sim.cut(src, dst)
            await asyncio.sleep(0.15)
            self.sim.heal()
            await asyncio.sleep(0.15)

    def _trigger(self, action: Action, node: NodeId) -> None:
        if node not in self.sim.running:
            return
        trigger = self.sim.raft(node).trigger()
        with suppress(RaftError):
            if action.kind == "transfer":
                trigger.transfer_leader()
            elif action.kind == "elect":
                trigger.elect()
            elif action.kind == "snapshot":
                trigger.snapshot()
            else:
                trigger.purge_log(action.pick % 500)

    async def _change(self, action: Action, node: NodeId, random: Random) -> None:
        """An operator at work: adds what is missing, removes, replaces."""
        sim = self.sim
        leader = sim._leader()
        if leader is None:
            return
        raft = sim.raft(leader)
        try:
            members = raft._core.engine.effective
            absent = [each for each in sim.running if each not in members.nodes]
            if action.kind == "add" and absent:
                await raft.add_learner(absent[0], sim.address(absent[0]), blocking=False, timeout=5)
                sim.trace.seen("members.added")
            elif action.kind == "remove" and len(members.voter_ids) > 3:
                keep = [each for each in members.voter_ids if each != node][: len(members.voter_ids)]
                await raft.change_membership(keep or members.voter_ids, retain=random.random() < 0.5, timeout=5)
                sim.trace.seen("members.removed")
            elif action.kind == "swap":
                size = random.randint(min(3, len(members.nodes)), len(members.nodes))
                goal = random.sample(sorted(members.nodes), size)
                await raft.change_membership(goal, retain=True, timeout=5)
                sim.trace.seen("members.swapped")
            elif action.kind == "add" and members.learner_ids:
                learner = members.learner_ids[0]
                if raft._core.engine.effective.nodes[learner].store_id is not None and learner in sim.running:
                    await raft.change_membership({*members.voter_ids, learner}, timeout=5)
                    sim.trace.seen("members.promoted")
        except RaftError as error:
            sim.trace.seen(f"members.{type(error).__name__}")

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _recover(self) -> None:
        """All faults end; V1 to V4."""
        sim = self.sim
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))
        sim.heal()
        for node in sim.ids:
            sim.resume(node)
        self._weather = type(self._weather)()
        self._set_weather()
        self._calm_disks()
        core = await self._core()
        config = sim.config
        limit = HEAL_TIMEOUTS * (config.leader_lease_ms + config.election_timeout_max_ms) / 1000
        writing = None if self.scenario.quiet else asyncio.ensure_future(self._keep_writing())
        began = sim.now
        try:
            leader = await sim.eventually(
                lambda: self._calm(core, writing is None), "V1 everybody holds the same", limit
            )
        except WaitTimeout as error:
            raise AssertionError(f"V1 {error}") from None
        finally:
            if writing is not None:
                writing.cancel()
                await asyncio.wait([writing])
        sim.trace.event("healed", leader, f"{sim.now - began:.3f}")
        sim.trace.seen("healed")
        await self._serves(core)
        if writing is not None:
            await sim.eventually(lambda: self._calm(core, True), "V1 everybody holds the same", limit)

    async def _core(self) -> list[NodeId]:
        """Who is there at the end; the others are dead, mute or deaf for ever."""
        sim = self.sim
        for node in sim.ids:
            await self._start(node)
        ending = self.scenario.ending
        if ending == "all" or self.lost:
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
                if node in sim._lives:
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

    def _calm(self, core: list[NodeId], equal: bool) -> NodeId | None:
        """The leader, once it and every member of the core hold the same."""
        sim = self.sim
        leader = sim._leader()
        if leader is None or (leader not in core):
            return None
        engine = sim.raft(leader)._core.engine
        last = engine.state.last_log_id
        if not equal:
            return leader
        if engine.state.committed != last:
            return None
        for node in core:
            if node not in engine.effective.nodes or node in self.lost:
                continue
            if node not in sim.running:
                return None
            if sim.raft(node)._core.worker.applied != last:
                return None
        return leader

    async def _keep_writing(self) -> None:
        client = self.sim.client("writer")
        for number in itertools.count(1):
            with suppress(RaftError):
                await client.put("end", f"w{number}", timeout=1.0)
            await asyncio.sleep(0.1)

    async def _serves(self, core: list[NodeId]) -> None:
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
                await client.put("last", f"l{done}.{sim.now:.3f}", node=leader, timeout=limit)
                await client.get("last", node=leader, timeout=limit)
                done += 1
            except RaftError as error:
                if sim.now - began > limit:
                    raise AssertionError(
                        f"V2 only {done} of 10 writes within {limit:g} s: {error}; {sim.describe()}"
                    ) from None
                await asyncio.sleep(0.1)


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
    loop.set_exception_handler(lambda _, context: unhandled.append(_described(context)))
    with _quiet():
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(made.run())
        except VirtualDeadlock as error:
            violation = Violation("V10", str(error), sim.trace.now())
        except Exception as error:
            violation = Violation.of(error, sim.trace.now())
    if sim.oracle.breaches:
        first = sim.oracle.breaches[0]
        violation = Violation(first.rule, str(first), first.at)
    if violation is None and unhandled:
        violation = Violation("crash", unhandled[0], sim.trace.now())
    judged = judge(sim.history, durable=sim.final_log(), budget=SEARCH_BUDGET)
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
    log = logging.getLogger("raftkit")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            gc.collect()
        log.setLevel(level)


def index_reached(sim: Simulation, node: NodeId) -> int:
    """What ``node`` has applied."""
    return index_of(sim.raft(node)._core.worker.applied)


__all__ = ["RemoveNodes", "RuntimeRun", "index_reached", "run", "run_seed", "run_with_history"]
