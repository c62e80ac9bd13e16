"""Carries out the faults of a scenario on a :class:`Simulation`, undoes them, and does what an operator would do."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import copy_context
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from raftkit_core.errors import RaftError
from raftkit_core.testing.simulation.runtime_script import Action, Disks, Weather
from raftkit_core.testing.simulation.stage import LEADER
from raftkit_core.types.ids import NodeId
from raftkit_core.types.log_id import index_of
from raftkit_core.types.membership import RemoveNodes

if TYPE_CHECKING:
    from raftkit_core.raft import Raft
    from raftkit_core.testing.simulation.simulation import Simulation


WALL_JUMPS = (-10 * 365 * 86_400.0, -3600.0, 3600.0, 10 * 365 * 86_400.0)
"""By how much a wall clock is set, in seconds."""
_BETWEEN_NODES = frozenset({"partition", "isolate", "cut", "hold", "flap"})


class FaultPlayer:
    """Plays actions one by one. ``weather`` and ``disks`` are what is usual: where an undone fault leads back to."""

    def __init__(self, sim: Simulation, weather: Weather, disks: Disks) -> None:
        self.sim = sim
        self.weather = weather
        self.disks = disks
        self.tasks: dict[asyncio.Task[None], None] = {}
        self.lost: dict[NodeId, None] = {}
        """Nodes whose store was wiped or is damaged, until an operator has let them rejoin."""
        self._delays = sim.stream("supervisor")
        self._armed: list[tuple[Action, float]] = []
        """Ambushes, each until its time."""
        self._context = copy_context()
        sim.oracle.on_moment = self._spring
        self.supervise()

    def supervise(self) -> None:
        """From now on what ends by itself is started again."""
        self.sim.on_end = self._restart_soon

    def calm_disks(self) -> None:
        """Every disk as it usually is."""
        for disk in self.sim.disks.values():
            disk.at_once, disk.latency, disk.atomic = self.disks.at_once, self.disks.latency, self.disks.atomic
            disk.hung = disk.full = False
            disk.failing = 0.0

    def set_weather(self) -> None:
        """The network as it usually is."""
        for name in self.weather.__struct_fields__:
            setattr(self.sim.hub.weather, name, getattr(self.weather, name))

    async def stop(self) -> None:
        """Faults under way are not undone any more; nothing new is done."""
        self.sim.on_end = lambda node_id: None
        self._armed.clear()
        for node in self.sim.ids:
            self.sim.resume(node)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))

    async def repair(self) -> None:
        """After the faults: the network heals, disks are well again, and who lost its store rejoins."""
        await self.stop()
        self.sim.heal()
        self.weather, self.disks = Weather(), Disks()
        self.set_weather()
        self.calm_disks()
        for node in self.sim.ids:
            if node not in self.lost:
                await self.start(node)
        for node in list(self.lost):
            await self._rejoin(node)

    def spawn(self, work: Any, name: str) -> None:
        task = self.sim.loop.create_task(work, name=name)
        self.tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.sim.oracle.breach("crash", task.get_name(), f"{type(error).__name__}: {error}")

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

        self.spawn(undo_later(), f"end of {action.kind}")

    def do(self, action: Action) -> None:
        sim = self.sim
        node = self._node(action)
        sim.trace.seen(f"action.{action.kind}")
        random = Random(action.pick)
        disk = sim.disk(node)
        if len(sim.ids) == 1 and action.kind in _BETWEEN_NODES:
            return
        match action.kind:
            case "crash" | "power_loss":
                self._kill(action, node)
            case "wipe":
                if self._may_lose(node):
                    sim.wipe(node)
                    self._later(action, lambda: self._rejoin(node))
            case "pause":
                if node in sim.running and not sim.is_paused(node):
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
                    self.spawn(self._flap(src, dst, action.for_s), "flapping link")
            case "depose":
                self._depose(action, node, random)
            case "deafen":
                for other in sim.ids:
                    if other != node:
                        sim.cut(other, node)
                self._later(action, sim.heal)
            case "ambush_winner" | "ambush_install":
                self._armed.append((action, sim.now + action.for_s))
            case "storm":
                self._storm(action, random)
            case "slow_disk":
                disk.at_once, disk.latency = 0.0, (0.05, random.choice((0.2, 1.0, 3.0)))
                self._later(action, self.calm_disks)
            case "hang_disk":
                disk.hung = True
                self._later(action, self.calm_disks)
            case "full_disk":
                disk.full = True
                self._later(action, self.calm_disks)
            case "failing_disk":
                disk.failing = 0.3
                self._later(action, self.calm_disks)
            case "rot":
                if self._may_lose(node) and disk.entries:
                    disk.rotten[random.choice(disk.entries).index] = None
                    sim.crash(node) if node in sim.lives else None
                    self._later(action, lambda: self._rejoin(node))
            case "set_wall":
                sim.clock_of(node).set_wall(random.choice(WALL_JUMPS))
            case "transfer" | "elect" | "snapshot" | "purge":
                self._trigger(action, node)
            case "add" | "remove" | "swap":
                self.spawn(self._change(action, node, random), f"operator: {action.kind}")
            case _:
                raise AssertionError(f"{action.kind} is no fault")

    def _depose(self, action: Action, node: NodeId, random: Random) -> None:
        """``node`` alone, or with companions on the lesser side, whose disks may hang a little longer than that."""
        sim = self.sim
        companions = random.sample([each for each in sim.ids if each != node], self._companions(random))
        sim.partition([node, *companions], [each for each in sim.ids if each != node and each not in companions])
        self._later(action, sim.heal)
        if companions and random.random() < 0.4:
            sim.disk(companions[0]).hung = True
            longer = msgspec.structs.replace(action, for_s=action.for_s + random.uniform(0.2, 0.8))
            self._later(longer, self.calm_disks)

    def _companions(self, random: Random) -> int:
        return random.randint(0, max(0, (len(self.sim.ids) - 1) // 2 - 1))

    def _spring(self, moment: str, node: NodeId) -> None:
        """What an ambush may wait for is happening to ``node``: called in the middle of it."""
        sim = self.sim
        for place, (action, until) in enumerate(self._armed):
            if action.kind != f"ambush_{moment}" or until < sim.now:
                continue
            del self._armed[place]
            random = Random(action.pick)
            sim.trace.seen(f"action.{action.kind}.struck")
            lasts = msgspec.structs.replace(action, for_s=random.uniform(0.1, 1.5))
            if moment == "winner" and random.random() < 0.7:
                others = [each for each in sim.ids if each != node]
                side = [node, *random.sample(others, random.randint(0, len(others) // 2))]
                sim.partition(side, [each for each in sim.ids if each not in side])
                self._context.run(self._later, lasts, sim.heal)
            else:
                sim.loop.call_soon(self._kill, lasts, node, context=self._context)
            return

    def _kill(self, action: Action, node: NodeId) -> None:
        if node in self.sim.lives:
            self.sim.crash(node, reset=action.kind != "power_loss")
        self._later(action, lambda: self.start(node))

    async def start(self, node: NodeId) -> None:
        """Start a node that is down, or has ended by itself, if it can be."""
        sim = self.sim
        if node in sim.running or (node in sim.lives and sim.lives[node].raft is None):
            return
        try:
            await sim.restart(node)
        except RaftError as error:
            sim.trace.seen(f"start.{type(error).__name__}")

    def _restart_soon(self, node: NodeId) -> None:
        """A supervisor starts again what has ended, as long as the run lasts."""

        async def restart() -> None:
            await asyncio.sleep(self._delays.uniform(0.2, 2.0))
            if node in self.sim.lives and node not in self.sim.running:
                await self.start(node)
                if node not in self.sim.lives:
                    self._restart_soon(node)

        self.spawn(restart(), f"restart {node}")

    async def _rejoin(self, node: NodeId) -> None:
        """What the documentation says to do after a store is lost: remove, start empty, add, promote."""
        sim = self.sim
        await self.start(node)  # damage may not have been met yet
        await asyncio.sleep(0.5)
        sim.wipe(node)
        await self.start(node)
        for _ in range(20):
            leader = sim._leader()
            if leader is not None and leader != node and node in sim.running:
                raft = sim.raft(leader)
                try:
                    members = raft._core.engine.effective
                    bound = members.nodes.get(node)
                    if bound is not None and bound.store_id != sim.raft(node).store_id:
                        if node in members.voter_ids:
                            keep = [voter for voter in members.voter_ids if voter != node]
                            await raft.change_membership(keep, timeout=2)
                        if node in raft._core.engine.effective.nodes:
                            await raft.change_membership(RemoveNodes((node,)), timeout=2)
                    if node not in raft._core.engine.effective.nodes:
                        await raft.add_learner(node, sim.address(node), timeout=3)
                    if not self._has_joined(raft, node):
                        # Promoted before its log says so, it would count and could not yet vote: that is one more lost.
                        sim.trace.seen("rejoin.waits")
                        await asyncio.sleep(0.3)
                        continue
                    await raft.change_membership({*raft._core.engine.effective.voter_ids, node}, timeout=3)
                    self.lost.pop(node, None)
                    sim.trace.seen("members.rejoined")
                    return
                except RaftError as error:
                    sim.trace.seen(f"rejoin.{type(error).__name__}")
            await asyncio.sleep(0.3)

    def _has_joined(self, raft: Raft, node: NodeId) -> bool:
        """Whether ``node`` holds the entry that names its new store."""
        peer = (raft.metrics().value.replication or {}).get(node)
        return peer is not None and index_of(peer.matching) >= index_of(raft.metrics().value.membership.log_id)

    def _may_lose(self, node: NodeId) -> bool:
        """One store at a time may be lost for good: more than the cluster must survive is not asked of it."""
        if node in self.lost or len(self.lost) >= (len(self.sim.voters) - 1) // 2:
            return False
        # The voters may be others, and fewer, than at the beginning.
        left = [each for each in self.sim.ids if each != node and each not in self.lost]
        memberships = [self.sim.raft(each)._core.engine.effective for each in self.sim.running]
        if any(members.configs and not members.is_quorum(left) for members in memberships):
            return False
        self.lost[node] = None
        return True

    def _storm(self, action: Action, random: Random) -> None:
        weather = self.sim.hub.weather
        weather.loss, weather.answer_loss = random.choice((0.1, 0.3)), random.choice((0.0, 0.5))
        weather.latency = (0.001, random.choice((0.05, 0.3)))
        weather.duplicate = weather.reorder = 0.2
        self._later(action, self.set_weather)

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
