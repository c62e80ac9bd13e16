"""The end of a node, in order: leadership, answers, listener, loop, then what it stands on. Bounded in time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from raftkit_core.errors import RaftError
from raftkit_core.runtime.limits import bounded
from raftkit_core.runtime.membership_changes import MembershipChanges
from raftkit_core.runtime.opening import CLOSE_SECONDS, Adapters
from raftkit_core.runtime.operations import Forwarder
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.reads import LinearizableReads
from raftkit_core.runtime.service import Identity

ANSWER_SECONDS = 0.01
"""How often a node that stops looks whether everybody was answered."""


async def close_node(
    core: RaftCore,
    *,
    group: str,
    adapters: Adapters,
    identity: Identity,
    members: MembershipChanges,
    forwarder: Forwarder,
    reads: LinearizableReads,
) -> None:
    node = f"node {core.engine.config.id}"
    await _hand_over(core, members)
    forwarder.stop()
    await _answer_writers(core, forwarder)
    await bounded(adapters.network.stop_serving(group), CLOSE_SECONDS, f"{node}: its listener")
    await core.shutdown()
    await reads.close()
    if adapters.owns_network:
        await bounded(adapters.network.close(), CLOSE_SECONDS, f"{node}: its network")
    await bounded(adapters.machine.close(), CLOSE_SECONDS, f"{node}: its state machine")
    await bounded(adapters.snapshots.close(), CLOSE_SECONDS, f"{node}: its snapshots")
    await bounded(identity.close(), CLOSE_SECONDS, f"{node}: its identity")
    await bounded(adapters.storage.close(), CLOSE_SECONDS, f"{node}: its log")


async def _hand_over(core: RaftCore, members: MembershipChanges) -> None:
    """To whoever can lead, if there is somebody."""
    with suppress(RaftError):
        others = [voter for voter in core.engine.effective.voter_ids if voter != core.engine.config.id]
        if others and core.fatal is None and core.engine.is_leader:
            await members.transfer_leader(timeout=core.config.election_timeout_max_ms / 1000)


async def _answer_writers(core: RaftCore, forwarder: Forwarder) -> None:
    """Before the connections close: what this node took as a leader is committed by the next one within moments, what
    it forwarded is answered as soon, and whoever waits for it, here or through another node, need not be left with an
    unknown outcome."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + core.config.election_timeout_max_ms / 1000
    waited = False
    while (len(core.waiting) > 0 or forwarder.under_way > 0) and core.fatal is None and loop.time() < deadline:
        waited = True
        await asyncio.sleep(ANSWER_SECONDS)
    if waited and core.fatal is None:
        await asyncio.sleep(ANSWER_SECONDS)  # the answers leave
