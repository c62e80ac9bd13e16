"""Operations on the node that runs them: each one's room, by its type. ``operations`` finds the node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from raftkit_core.network.client import NodeReport
from raftkit_core.runtime.envelopes import Envelopes
from raftkit_core.runtime.membership_changes import MembershipChanges
from raftkit_core.runtime.messages import ClientWriteResponse
from raftkit_core.runtime.raft_core import RaftCore
from raftkit_core.runtime.session_service import SessionService
from raftkit_core.state_machine.interface import RaftStateMachine
from raftkit_core.types.operations import (
    AddLearner,
    ChangeMembership,
    CloseSession,
    KeepSession,
    LookAt,
    MembershipDone,
    OpenSession,
    Operation,
    TransferDone,
    TransferLeader,
    Write,
    WriteDone,
)


class OperationRunner:
    """Runs an operation here, and gives its result as it travels. Raises: ForwardToLeader where another one leads."""

    def __init__(
        self,
        core: RaftCore,
        machine: RaftStateMachine,
        envelopes: Envelopes,
        members: MembershipChanges,
        sessions: SessionService,
        report: Callable[[int], Awaitable[NodeReport]],
    ) -> None:
        self._core = core
        self._machine = machine
        self._envelopes = envelopes
        self._members = members
        self._sessions = sessions
        self._report = report

    async def run(self, operation: Operation, timeout: float) -> Any:
        match operation:
            case Write():
                return await self._write(operation, timeout)
            case AddLearner():
                added = await self._members.add_learner(
                    operation.node_id,
                    operation.node,
                    blocking=operation.blocking,
                    bind=operation.bind,
                    timeout=timeout,
                )
                return _membership_done(added)
            case ChangeMembership():
                changed = await self._members.change_membership(
                    operation.change, retain=operation.retain, force=operation.force, timeout=timeout
                )
                return _membership_done(changed)
            case LookAt():
                return await self._report(operation.events_after)
            case TransferLeader():
                return TransferDone(await self._members.transfer_leader(operation.to, timeout=timeout))
            case OpenSession():
                return await self._sessions.open(operation, timeout)
            case KeepSession():
                return await self._sessions.keep(operation, timeout)
            case CloseSession():
                return await self._sessions.close(operation, timeout)

    async def _write(self, operation: Write, timeout: float) -> WriteDone:
        command = self._machine.codec.decode_command(operation.body)  # a bad one ends here
        payload = self._envelopes.around(operation.body, operation.once)
        done = await self._core.propose(payload, timeout, command=command if operation.once is None else None)
        return WriteDone(done.log_id, self._machine.codec.encode_result(done.data))


def _membership_done(response: ClientWriteResponse) -> MembershipDone:
    assert response.membership is not None, "a membership entry answers with its membership"
    return MembershipDone(response.log_id, response.membership)
