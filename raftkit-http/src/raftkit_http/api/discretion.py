"""What of a node's troubles is told to whom: files, plugins and machines are for admins, and for the node's own log.

Code, outcome and whether to try again are for everybody. Without tokens everybody is an admin.
"""

from __future__ import annotations

import re

import msgspec

from raftkit_core import errors
from raftkit_core.errors import ErrorInfo
from raftkit_core.network.client import NodeReport, NodeStatus, PeerStatus
from raftkit_core.types.metrics import NodeEvent
from raftkit_http.access import Caller

ASK_AN_ADMIN = "the node's log says more, and so does the node to a token of the role admin"
STOPPED = "stopped for good"

_ABOUT_THE_MACHINE: dict[type[errors.RaftError], str] = {
    errors.Fatal: f"the node has {STOPPED}",
    errors.StorageError: "the node's storage failed",
    errors.PluginError: "a plugin of the node failed",
    errors.RemoteError: "another node failed",
}
_ABOUT_THE_REQUEST = (
    errors.AccessDenied,
    errors.BadCommand,
    errors.BadRequest,
    errors.CommandRejected,
    errors.ConditionFailed,
    errors.NotFound,
    errors.Stopped,
)
"""Said of what the caller sent: a key may look like a path."""
_PATH = re.compile(
    r"""[a-z][\w+.-]*:///[^\s'",;)]*  # the URL of a file
    | (?<![\w:/.-])~?/(?:[^\s/'",:;)]+/)+[^\s'",:;)]*
    | (?<![\w/:.-])[\w.-]+(?:/[\w.-]+)+\.\w+\b
    | \b[A-Za-z]:\\[^\s'",;)]*""",
    re.VERBOSE,
)


def without_paths(text: str) -> str:
    return _PATH.sub("…", text)


def info_for(caller: Caller, error: BaseException) -> ErrorInfo:
    """What of ``error`` this caller may be told."""
    info = errors.to_info(error)
    if caller.allows("admin") or isinstance(error, _ABOUT_THE_REQUEST):
        return info
    for kind, words in _ABOUT_THE_MACHINE.items():
        if isinstance(error, kind):
            return msgspec.structs.replace(info, message=words, hint=ASK_AN_ADMIN)
    hint = None if info.hint is None else without_paths(info.hint)
    return msgspec.structs.replace(info, message=without_paths(info.message), hint=hint)


def status_for(caller: Caller, status: NodeStatus) -> NodeStatus:
    if caller.allows("admin"):
        return status
    peers = status.replication
    return msgspec.structs.replace(
        status,
        fatal=None if status.fatal is None else f"{STOPPED}: {ASK_AN_ADMIN}",
        needs_rejoin=None if status.needs_rejoin is None else without_paths(status.needs_rejoin),
        storage=msgspec.structs.replace(status.storage, location=""),
        replication=None if peers is None else {peer: _peer(view) for peer, view in peers.items()},
    )


def events_for(caller: Caller, events: list[NodeEvent]) -> list[NodeEvent]:
    return events if caller.allows("admin") else [_event(event) for event in events]


def report_for(caller: Caller, report: NodeReport) -> NodeReport:
    if caller.allows("admin"):
        return report
    return msgspec.structs.replace(
        report,
        status=None if report.status is None else status_for(caller, report.status),
        events=events_for(caller, report.events),
        error=None if report.error is None else without_paths(report.error),
    )


def _peer(view: PeerStatus) -> PeerStatus:
    return view if view.last_error is None else msgspec.structs.replace(view, last_error=without_paths(view.last_error))


def _event(event: NodeEvent) -> NodeEvent:
    if event.kind != "fatal":
        return msgspec.structs.replace(event, message=without_paths(event.message))
    return msgspec.structs.replace(event, message=f"{event.message.partition(' ')[0]} {STOPPED}")
