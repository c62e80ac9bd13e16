"""Every failure as one record: what happened and why, what to type next, and the exit status.

The core's errors are recognised without importing the core: if it was never imported, nothing of it was raised.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click

from raftkit_cli.exit_codes import exit_code_of


class CliError(Exception):
    """A failure the command line itself found. ``data`` is what was learned before it failed (for ``--json``)."""

    def __init__(self, code: str, message: str, *, hint: str | None = None, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.data = data


class Terminated(SystemExit):
    """SIGTERM arrived: unwinds like Ctrl-C, so that what was started is stopped.

    A SystemExit, because an event loop lets only that and KeyboardInterrupt out of a callback.
    """


class Failure:
    """What is told about an error, on a terminal or as JSON."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        retryable: bool = False,
        outcome: str = "not_applied",
        leader: str | None = None,
        exit_code: int | None = None,
        data: Any = None,
    ) -> None:
        self.code = code
        self.message = message
        self.hint = hint if hint is not None else HINTS.get(code)
        self.retryable = retryable
        self.outcome = outcome
        self.leader = leader
        self.exit_code = exit_code_of(code) if exit_code is None else exit_code
        self.data = data

    def as_error(self) -> dict[str, Any]:
        """The ``error`` member of the JSON document."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
            "outcome": self.outcome,
            "leader": self.leader,
        }


def failure_of(error: BaseException) -> Failure:
    """Any exception that reached the boundary, told. Never a traceback."""
    if isinstance(error, CliError):
        return Failure(error.code, error.message, hint=error.hint, data=error.data)
    if isinstance(error, click.UsageError):
        return _usage_failure(error)
    if isinstance(error, click.ClickException):
        return Failure("USAGE", error.format_message())
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return Failure("INTERRUPTED", "interrupted", outcome="unknown")
    if isinstance(error, Terminated):
        return Failure("TERMINATED", "terminated by SIGTERM", outcome="unknown")
    core = sys.modules.get("raftkit_core.errors")
    if core is not None and isinstance(error, core.RaftError):
        return _raft_failure(error)
    if isinstance(error, TimeoutError):
        return Failure("TIMEOUT", str(error) or "no answer within the deadline", retryable=True, outcome="unknown")
    if isinstance(error, OSError) and error.filename is not None:
        return Failure(
            "CONFIG",
            f"cannot use {os.fsdecode(error.filename)}: {error.strerror or error}",
            hint="check that its folder exists and that this user may write there, or name another path",
        )
    return Failure("UNEXPECTED", f"{type(error).__name__}: {error}", outcome="unknown")


def _raft_failure(error: Any) -> Failure:
    outcome = error.outcome
    if error.code == "UNREACHABLE":
        # By contract of ClusterClient nothing was sent: what may have happened is OutcomeUnknown.
        outcome = "not_applied"
    cause = error.__cause__
    message = error.message or type(error).__doc__ or error.code
    exit_code = exit_code_of(error.code)
    hint = error.hint
    core = sys.modules["raftkit_core.errors"]
    if isinstance(error, core.Fatal) and isinstance(cause, core.RaftError):
        # A node that stopped says why: the cause decides what a script and its reader do next.
        exit_code = exit_code_of(cause.code)
        hint = hint or cause.hint
        if cause.message not in message:
            message = f"{message}: {cause.message}"
    return Failure(
        error.code,
        message,
        hint=hint,
        retryable=error.retryable,
        outcome=outcome,
        leader=error.leader,
        exit_code=exit_code,
    )


def _usage_failure(error: click.UsageError) -> Failure:
    path = error.ctx.command_path if error.ctx is not None else "raftkit"
    message = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = f"{path} needs a command"
    return Failure("USAGE", message, hint=f"{path} --help")


_STATUS: Final = "raftkit status"

HINTS: Final[dict[str, str]] = {
    "RAFT_ERROR": _STATUS,
    "FATAL": "read the node's log, then start it again: raftkit local logs",
    "STOPPED": "start the node again: raftkit local up, or raftkit node run …",
    "FORWARD_TO_LEADER": "nobody is known to lead yet; try again, or look: raftkit status",
    "NO_QUORUM": "raftkit status shows who is missing; on this machine: raftkit local up. Reads without a promise still"
    " work: raftkit kv get KEY --consistency stale",
    "LEADERSHIP_LOST": "another node may lead now; look at: raftkit leader show",
    "CONDITION_FAILED": "nothing was written; look at: raftkit status --json",
    "NOT_APPLIED": "nothing was written; run the same command again",
    "OUTCOME_UNKNOWN": "the write may or may not be there: read it back (raftkit kv get KEY) before you repeat it",
    "OVERLOADED": "nothing was written; wait a moment and run the same command again",
    "BAD_COMMAND": "nothing was written; correct the command (--help shows its form, Config.max_entry_bytes its limit)",
    "COMMAND_REJECTED": "the state machine refused; nothing was changed",
    "PRECONDITION_FAILED": "nothing was changed; read the current value and revision: raftkit kv get KEY --json",
    "COMPACTED": "list the keys, then watch from the revision behind the list's: raftkit kv list PREFIX --json",
    "SESSION_EXPIRED": "begin a new session; look at what was not confirmed before you repeat it",
    "TOO_MANY_SESSIONS": "close sessions that are not used, or wait until they expire",
    "SESSION_FULL": "wait for earlier writes of the session: the next one acknowledges them",
    "SERIAL_REUSED": "give every new command of a session the next serial",
    "RESULT_FORGOTTEN": "read the state",
    "CHANGE_MEMBERSHIP": "raftkit member list",
    "MEMBERSHIP_IN_PROGRESS": "wait until it is committed (raftkit status), then run the same command again",
    "EMPTY_MEMBERSHIP": "keep at least one voter: raftkit member list",
    "LEARNER_NOT_FOUND": "add the node first: raftkit member add ID URL",
    "QUORUM_WOULD_BE_LOST": "bring the unreachable voters back (raftkit status), or repeat with --force",
    "STORE_ID_CHANGE": "a wiped node rejoins: start it with an empty folder, then raftkit member rejoin ID",
    "TRANSFER_FAILED": "raftkit status shows who is caught up; name a target: raftkit leader transfer NODE",
    "INITIALIZE": "raftkit cluster init --help",
    "ALREADY_INITIALIZED": "the cluster exists: raftkit status; to change its members: raftkit member --help",
    "NOT_IN_MEMBERS": "the node you ask must be in the list: raftkit -e URL cluster init ID=URL …",
    "IDENTITY": "check --id, --cluster and --data-dir: they name another node's or cluster's store",
    "NEEDS_REJOIN": "start the node with an empty folder, then: raftkit member rejoin ID",
    "LOG_REVERSION": "this store is retired: start the node with an empty data folder and let it rejoin",
    "STORAGE": "check the disk and the permissions of the data folder, then start the node again",
    "STORAGE_LOCKED": "stop the process that holds the store, or choose another --data-dir",
    "STORAGE_CORRUPT": "keep the files, start the node with an empty data folder and let it rejoin",
    "STORAGE_FULL": "free space on the disk of the data folder, then start the node again",
    "STORE_LOST_WRITES": "start the node with an empty data folder and let it rejoin",
    "RPC": _STATUS,
    "UNREACHABLE": "is a node running there? Start a cluster with raftkit local up, or name one with -e URL",
    "NETWORK": "the connection broke; run the same command again",
    "RPC_TIMEOUT": "try again, or give it longer: --timeout 30s",
    "PAYLOAD_TOO_LARGE": "send less at once",
    "PEER_BUSY": "wait a moment and run the same command again",
    "REMOTE": _STATUS,
    "CONFIG": "correct that setting; docs/configuration.md has every one with its default, --help the flags of a verb",
    "PLUGIN": "raftkit plugins list",
    "UNKNOWN_SCHEME": "raftkit plugins list shows what is installed; install what is missing, e.g. pip install"
    " 'raftkit-cli[all]'",
    "UNKNOWN_OPTION": "raftkit plugins list",
    "BAD_ADAPTER_URL": "write it like sqlite:node.db or http://127.0.0.1:7401",
    "DUPLICATE_SCHEME": "uninstall one of the two: raftkit plugins list",
    "BROKEN_PLUGIN": "raftkit plugins list says why; reinstall or uninstall it",
    "WAIT_TIMEOUT": "try again, or give it longer: --timeout 30s",
    "ADDRESS_IN_USE": "stop what listens there, or choose another port",
    "ACCESS_DENIED": "give a token that may do this: --token-file FILE",
    "BAD_REQUEST": "--help shows the form of the command",
    "REQUEST_TOO_LARGE": "nothing was written; send a smaller value (the limit is max_entry_bytes of the nodes)",
    "NOT_FOUND": "raftkit kv list shows what exists",
    "FILE_EXISTS": "name another file, or move that one away",
    "TIMEOUT": "try again, or give it longer: --timeout 30s",
    "INTERRUPTED": "what had been sent may still happen: raftkit status",
    "UNEXPECTED": "this should not happen: run it again with -v for the traceback, and report it",
}
