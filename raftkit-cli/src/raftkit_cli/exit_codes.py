"""What the exit status of ``raftkit`` says: one table from error codes, stable, documented and tested.

Holds strings only, so that ``raftkit --help`` needs nothing of the core.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
UNEXPECTED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
"""Not found, or a comparison did not hold."""
NO_QUORUM: Final = 4
"""No leader, no quorum or no answer: nothing was applied."""
CHECK_FAILED: Final = 5
"""A check ran and found something wrong."""
OUTCOME_UNKNOWN: Final = 6
ACCESS: Final = 7
CONFLICT: Final = 8
"""The cluster refused: a change is under way or a precondition of the change does not hold."""
CONFIG: Final = 9
"""Configuration, plugin or environment (a port in use)."""
STORAGE: Final = 10
"""A store is corrupt, locked, fenced, or somebody else's."""
NOT_COVERED: Final = 11
"""A check found nothing wrong, but saw too little for that to mean anything."""
TIMEOUT: Final = 124
INTERRUPTED: Final = 130
TERMINATED: Final = 143

EXIT_CODES: Final[dict[str, int]] = {
    # core: raftkit_core.errors
    "RAFT_ERROR": UNEXPECTED,
    "FATAL": UNEXPECTED,
    "STOPPED": UNEXPECTED,
    "FORWARD_TO_LEADER": NO_QUORUM,
    "NO_QUORUM": NO_QUORUM,
    "LEADERSHIP_LOST": NO_QUORUM,
    "NOT_APPLIED": NO_QUORUM,
    "OUTCOME_UNKNOWN": OUTCOME_UNKNOWN,
    "OVERLOADED": NO_QUORUM,
    "CONDITION_FAILED": CONFLICT,
    "BAD_COMMAND": USAGE,
    "COMMAND_REJECTED": CONFLICT,
    "PRECONDITION_FAILED": NOT_FOUND,
    "COMPACTED": CONFLICT,
    "SESSION_EXPIRED": CONFLICT,
    "TOO_MANY_SESSIONS": CONFLICT,
    "SESSION_FULL": CONFLICT,
    "SERIAL_REUSED": CONFLICT,
    "RESULT_FORGOTTEN": OUTCOME_UNKNOWN,
    "CHANGE_MEMBERSHIP": CONFLICT,
    "MEMBERSHIP_IN_PROGRESS": CONFLICT,
    "EMPTY_MEMBERSHIP": CONFLICT,
    "LEARNER_NOT_FOUND": CONFLICT,
    "QUORUM_WOULD_BE_LOST": CONFLICT,
    "STORE_ID_CHANGE": CONFLICT,
    "TRANSFER_FAILED": CONFLICT,
    "INITIALIZE": CONFLICT,
    "ALREADY_INITIALIZED": CONFLICT,
    "NOT_IN_MEMBERS": CONFLICT,
    "IDENTITY": STORAGE,
    "NEEDS_REJOIN": STORAGE,
    "LOG_REVERSION": STORAGE,
    "STORAGE": STORAGE,
    "STORAGE_LOCKED": STORAGE,
    "STORAGE_CORRUPT": STORAGE,
    "STORAGE_FULL": STORAGE,
    "STORE_LOST_WRITES": STORAGE,
    "RPC": NO_QUORUM,
    "UNREACHABLE": NO_QUORUM,
    "NETWORK": NO_QUORUM,
    "RPC_TIMEOUT": TIMEOUT,
    "PAYLOAD_TOO_LARGE": USAGE,
    "PEER_BUSY": NO_QUORUM,
    "REMOTE": UNEXPECTED,
    "CONFIG": CONFIG,
    "PLUGIN": CONFIG,
    "UNKNOWN_SCHEME": CONFIG,
    "UNKNOWN_OPTION": CONFIG,
    "BAD_ADAPTER_URL": CONFIG,
    "DUPLICATE_SCHEME": CONFIG,
    "BROKEN_PLUGIN": CONFIG,
    "WAIT_TIMEOUT": TIMEOUT,
    "ADDRESS_IN_USE": CONFIG,
    "ACCESS_DENIED": ACCESS,
    "BAD_REQUEST": USAGE,
    "REQUEST_TOO_LARGE": USAGE,
    "NOT_FOUND": NOT_FOUND,
    # the command line's own: raftkit_cli.failures
    "UNEXPECTED": UNEXPECTED,
    "USAGE": USAGE,
    "CONFIRMATION_REQUIRED": USAGE,
    "DECLINED": UNEXPECTED,
    "INTERRUPTED": INTERRUPTED,
    "TERMINATED": TERMINATED,
    "TIMEOUT": TIMEOUT,
    "DEMO_FAILED": CHECK_FAILED,
    "CHECK_FAILED": CHECK_FAILED,
    "SIM_VIOLATION": CHECK_FAILED,
    "SIM_NOT_COVERED": NOT_COVERED,
    "SIM_WORKER": UNEXPECTED,
    "NOT_LINEARIZABLE": CHECK_FAILED,
    "UNDECIDED": CHECK_FAILED,
    "UNKNOWN_CONTEXT": CONFIG,
    "NO_LOCAL_CLUSTER": NOT_FOUND,
    "UNKNOWN_NODE": NOT_FOUND,
    "NODE_NOT_RUNNING": CONFLICT,
    "NODE_FAILED": CHECK_FAILED,
    "NO_LEADER": NO_QUORUM,
    "FILE_EXISTS": CONFLICT,
}


def exit_code_of(code: str) -> int:
    """The exit status for an error code; 1 for one nobody knows (a plugin's own)."""
    return EXIT_CODES.get(code, UNEXPECTED)
