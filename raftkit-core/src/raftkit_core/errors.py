"""Every error of raftkit, grouped by what the caller does next.

Each carries ``code`` (stable, upper case), ``message`` (what happened and why, with the values), ``hint`` (what to type
or try next), ``retryable``, ``outcome`` (``applied``, ``not_applied`` or ``unknown``: what became of a write) and
``leader`` (a node id, if one is known). :func:`to_info` and :func:`from_info` carry them over a wire.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from raftkit_core.types.membership import Node

Outcome = Literal["applied", "not_applied", "unknown"]


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it travels: in JSON answers, peer frames and the CLI's ``--json``."""

    code: str
    message: str
    hint: str | None = None
    retryable: bool = False
    outcome: Outcome = "not_applied"
    leader: str | None = None
    leader_node: Node | None = None
    oldest: int | None = None
    """Of ``COMPACTED`` only."""


class RaftError(Exception):
    """Base of everything raftkit raises on purpose."""

    code: ClassVar[str] = "RAFT_ERROR"
    default_retryable: ClassVar[bool] = False
    default_outcome: ClassVar[Outcome] = "not_applied"
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        leader: str | None = None,
        leader_node: Node | None = None,
        retryable: bool | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        self.leader = leader
        self.leader_node = leader_node
        self.retryable = self.default_retryable if retryable is None else retryable
        self.outcome: Outcome = self.default_outcome if outcome is None else outcome

    def __str__(self) -> str:
        return self.message


# --- The node is dead -----------------------------------------------------------------------------------------------


class Fatal(RaftError):
    """The node has stopped for good; ``__cause__`` says why. Pending writes may still be applied by others."""

    code = "FATAL"
    default_outcome = "unknown"


class Stopped(Fatal):
    """The node was shut down."""

    code = "STOPPED"


# --- Go to the leader, or wait for one ------------------------------------------------------------------------------


class ForwardToLeader(RaftError):
    """Not the leader: ask ``leader`` (None while nobody is known to lead). Nothing entered any log."""

    code = "FORWARD_TO_LEADER"
    default_retryable = True


class QuorumNotEnough(RaftError):
    """The leader cannot reach a quorum, so nothing was written or read."""

    code = "NO_QUORUM"
    default_retryable = True


class LeadershipLost(RaftError):
    """The read lease of a held leadership is over: another node may lead."""

    code = "LEADERSHIP_LOST"
    default_retryable = True


# --- What became of a write -----------------------------------------------------------------------------------------


class NotApplied(RaftError):
    """Definite: another entry was committed in this one's place."""

    code = "NOT_APPLIED"
    default_retryable = True


class OutcomeUnknown(RaftError):
    """The write may or may not be applied, now or later."""

    code = "OUTCOME_UNKNOWN"
    default_outcome = "unknown"


class Overloaded(RaftError):
    """Too much is under way; nothing entered the log."""

    code = "OVERLOADED"
    default_retryable = True


class ConditionFailed(RaftError):
    """What a write was to depend on no longer holds; nothing entered the log."""

    code = "CONDITION_FAILED"


class BadCommand(RaftError):
    """The command cannot be decoded or is too large; nothing entered the log."""

    code = "BAD_COMMAND"


class CommandRejected(RaftError):
    """The state machine refused the command, alike on every node. The entry was applied and changed nothing."""

    code = "COMMAND_REJECTED"
    default_outcome = "applied"


class PreconditionFailed(CommandRejected):
    """A compare-and-set or revision precondition did not hold."""

    code = "PRECONDITION_FAILED"


class Compacted(RaftError):
    """A watch asks for changes that are no longer kept here; one from ``oldest`` on can be served."""

    code = "COMPACTED"
    default_hint = "list the keys anew and watch from the revision of the list, or go on at another node"

    def __init__(self, message: str = "", *, oldest: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.oldest = oldest


class SessionExpired(RaftError):
    """The client session is closed, expired, or of another cluster; this attempt changed nothing."""

    code = "SESSION_EXPIRED"
    default_hint = "open a new session"


class TooManySessions(RaftError):
    """The cluster keeps as many client sessions as it can; none was opened."""

    code = "TOO_MANY_SESSIONS"
    default_hint = "close sessions that are not used, or wait until they expire"


class SessionFull(RaftError):
    """The session has as many remembered results as it may: acknowledge earlier ones first. Nothing was changed."""

    code = "SESSION_FULL"
    default_retryable = True


class SerialReused(RaftError):
    """The serial belongs to another command of this session; this one was refused."""

    code = "SERIAL_REUSED"
    default_hint = "give every new command of a session the next serial"


class ResultForgotten(RaftError):
    """The write is not carried out again and its result is not remembered: the client acknowledged it (``unknown``), or
    it was too large to keep (``applied``)."""

    code = "RESULT_FORGOTTEN"
    default_outcome = "unknown"
    default_hint = "read the state"


# --- Membership -----------------------------------------------------------------------------------------------------


class ChangeMembershipError(RaftError):
    """A membership change was refused; nothing was written."""

    code = "CHANGE_MEMBERSHIP"


class InProgress(ChangeMembershipError):
    """A change, or the leader's own first entry, is not committed yet."""

    code = "MEMBERSHIP_IN_PROGRESS"
    default_retryable = True


class EmptyMembership(ChangeMembershipError):
    """No voter would be left."""

    code = "EMPTY_MEMBERSHIP"


class LearnerNotFound(ChangeMembershipError):
    """A voter would have no node."""

    code = "LEARNER_NOT_FOUND"


class QuorumWouldBeLost(ChangeMembershipError):
    """The reachable voters could not survive the change; ``force`` overrides."""

    code = "QUORUM_WOULD_BE_LOST"


class StoreIdChange(ChangeMembershipError):
    """The change would alter or clear the store id of a voter."""

    code = "STORE_ID_CHANGE"


class TransferFailed(RaftError):
    """Leadership was not handed over."""

    code = "TRANSFER_FAILED"
    default_retryable = True


class InitializeError(RaftError):
    """The cluster was not initialized."""

    code = "INITIALIZE"


class NotAllowed(InitializeError):
    """This store already has a vote, a log or another cluster id."""

    code = "ALREADY_INITIALIZED"


class NotInMembers(InitializeError):
    """The node is not a voter of the membership it was given."""

    code = "NOT_IN_MEMBERS"


# --- Identity -------------------------------------------------------------------------------------------------------


class IdentityError(RaftError):
    """A store, a peer or a cluster is not the one expected."""

    code = "IDENTITY"


class NeedsRejoin(IdentityError):
    """This store is not the one the cluster's membership names: remove the node, add it as a learner, promote it."""

    code = "NEEDS_REJOIN"


class LogReversion(IdentityError):
    """The store went back behind what it had acknowledged: it is retired."""

    code = "LOG_REVERSION"


# --- Storage --------------------------------------------------------------------------------------------------------


class StorageError(RaftError):
    """A storage call failed. The handle is dead and the node stops: never retried.

    ``subject`` is what was touched (``vote``, ``log``, ``snapshot``, ``identity``, ``state machine``, ``store``),
    ``verb`` what was tried (``read``, ``write``, ``open``…).
    """

    code: ClassVar[str] = "STORAGE"
    default_outcome: ClassVar[Outcome] = "unknown"

    def __init__(
        self, message: str = "", *, subject: str = "store", verb: str = "write", hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.subject = subject
        self.verb = verb


class StorageLocked(StorageError):
    """Another process or handle holds the store; the message names it."""

    code = "STORAGE_LOCKED"
    default_outcome = "not_applied"


class StorageCorrupt(StorageError):
    """What was read is not what was written."""

    code = "STORAGE_CORRUPT"


class StorageFull(StorageError):
    """No space is left."""

    code = "STORAGE_FULL"


class StoreLostWrites(StorageError):
    """The store lacks what it had confirmed."""

    code = "STORE_LOST_WRITES"


# --- Between peers --------------------------------------------------------------------------------------------------


class RPCError(RaftError):
    """A call to a peer failed. Never fatal."""

    code = "RPC"
    default_retryable = True
    default_outcome = "unknown"


class Unreachable(RPCError):
    """The peer cannot be reached: back off."""

    code = "UNREACHABLE"


class NetworkError(RPCError):
    """The connection broke: try again."""

    code = "NETWORK"


class RPCTimeout(RPCError):
    """No answer within the deadline."""

    code = "RPC_TIMEOUT"


class PayloadTooLarge(RPCError):
    """The peer or transport takes at most ``entries_hint`` entries at once."""

    code = "PAYLOAD_TOO_LARGE"

    def __init__(self, message: str = "", *, entries_hint: int = 1) -> None:
        super().__init__(message)
        self.entries_hint = entries_hint


class PeerBusy(RPCError):
    """The peer cannot take the request now: back off. Never counts as contact."""

    code = "PEER_BUSY"


class RemoteError(RPCError):
    """The peer answered with an error of its own; ``info`` is what it said."""

    code = "REMOTE"

    def __init__(self, message: str = "", *, info: ErrorInfo | None = None) -> None:
        super().__init__(message)
        self.info = info


# --- Configuration and plugins --------------------------------------------------------------------------------------


class ConfigError(RaftError):
    """A setting is wrong; the message names it."""

    code = "CONFIG"


class PluginError(RaftError):
    """A plugin cannot be used."""

    code = "PLUGIN"


class UnknownScheme(PluginError):
    """No adapter is registered for a URL's scheme or a machine's name."""

    code = "UNKNOWN_SCHEME"


class UnknownOption(PluginError):
    """An adapter URL has an option the adapter does not know."""

    code = "UNKNOWN_OPTION"


class BadAdapterUrl(PluginError):
    """An adapter URL cannot be read."""

    code = "BAD_ADAPTER_URL"


class DuplicateScheme(PluginError):
    """Two plugins register the same scheme or name."""

    code = "DUPLICATE_SCHEME"


class BrokenPlugin(PluginError):
    """The plugin that was asked for cannot be loaded."""

    code = "BROKEN_PLUGIN"


class WaitTimeout(RaftError):
    """``raft.wait`` ended before its condition held."""

    code = "WAIT_TIMEOUT"
    default_retryable = True


class AddressInUse(RaftError):
    """The node cannot listen where it should."""

    code = "ADDRESS_IN_USE"


class AccessDenied(RaftError):
    """The token or certificate does not allow this."""

    code = "ACCESS_DENIED"


class NotFound(RaftError):
    """What was asked for does not exist."""

    code = "NOT_FOUND"


class BadRequest(RaftError):
    """A request cannot be understood; nothing was done."""

    code = "BAD_REQUEST"


class RequestTooLarge(BadRequest):
    """A request, or the command in it, is larger than this node takes; nothing was done."""

    code = "REQUEST_TOO_LARGE"


def _all_errors(base: type[RaftError]) -> dict[str, type[RaftError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found |= _all_errors(child)
    return found


ERRORS_BY_CODE: dict[str, type[RaftError]] = _all_errors(RaftError)


def to_info(error: BaseException) -> ErrorInfo:
    """What of ``error`` may travel: never a traceback, and of a foreign exception only its type."""
    if isinstance(error, RaftError):
        return ErrorInfo(
            code=error.code,
            message=error.message,
            hint=error.hint,
            retryable=error.retryable,
            outcome=error.outcome,
            leader=error.leader,
            leader_node=error.leader_node,
            oldest=error.oldest if isinstance(error, Compacted) else None,
        )
    return ErrorInfo(code="INTERNAL", message=f"internal error: {type(error).__name__}", outcome="unknown")


def from_info(info: ErrorInfo) -> RaftError:
    """The typed error an :class:`ErrorInfo` was made from; :class:`RemoteError` for a code unknown here."""
    cls = ERRORS_BY_CODE.get(info.code)
    if cls is None:
        unknown = RemoteError(info.message, info=info)
        unknown.hint, unknown.outcome, unknown.retryable = info.hint, info.outcome, info.retryable
        return unknown
    error = cls.__new__(cls)
    Exception.__init__(error, info.message)
    error.message = info.message
    error.hint = info.hint
    error.leader = info.leader
    error.leader_node = info.leader_node
    error.retryable = info.retryable
    error.outcome = info.outcome
    if isinstance(error, StorageError):
        error.subject, error.verb = "store", "write"
    elif isinstance(error, Compacted):
        error.oldest = info.oldest or 0
    elif isinstance(error, PayloadTooLarge):
        error.entries_hint = 1
    elif isinstance(error, RemoteError):
        error.info = info
    return error
