"""What ``node run`` tells: one line per change of state, for a person on a terminal, plain elsewhere, JSON with --json.

With ``--json`` the lines go to stdout, one document each (``raftkit.node.event/1``); otherwise to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raftkit_cli.output import Output, is_terminal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from raftkit_core.types.metrics import RaftMetrics


class NodeLog:
    """The log of one node. Remembers what it said, so that only news is told."""

    def __init__(self, node_id: str, out: Output) -> None:
        self._node_id = node_id
        self._out = out
        self._before: dict[str, Any] = {}
        self.address: str | None = None
        """Where others reach this node, once that is known."""

    def capture_warnings(self) -> None:
        """Send what libraries and the core log to stderr: warnings, with -v informations, with -vv everything."""
        level = {0: logging.WARNING, 1: logging.INFO}.get(self._out.verbose, logging.DEBUG)
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
        )
        if level == logging.WARNING:
            handler.addFilter(_without_known_traces)
        logging.basicConfig(level=level, handlers=[handler], force=True)
        if level > logging.DEBUG:
            logging.getLogger("asyncio").setLevel(logging.ERROR)
        logging.getLogger("raftkit.audit").setLevel(logging.INFO)  # who changed the cluster is always told

    def starting(self, data_dir: Path, storage: str, network: str, accelerators: Sequence[str] = ()) -> None:
        """On stderr even with ``--json``: a start that fails must leave its error as the only document."""
        text = f"starting: storage {_shown(storage)}, network {_shown(network)}, folder {data_dir}"
        if accelerators:
            text += f"; with {', '.join(accelerators)}"
        self._line("starting", text)

    def ready(self, network: str, cluster: str) -> None:
        """The node listens. Said exactly once, so that scripts can wait for it."""
        shown = _shown(network)
        self._event("ready", f"ready: cluster {cluster}, listening on {shown}", network=shown, cluster=cluster)

    def waiting(self, is_pristine: bool, initial_cluster: Mapping[str, object] | None) -> None:
        """What an empty store waits for: somebody has to begin the cluster, and it may not be this node."""
        if not is_pristine:
            return
        if not initial_cluster:
            self.say("belongs to no cluster yet: raftkit cluster init …, or raftkit member add … on a member")
        elif min(initial_cluster) == self._node_id:
            others = [name for name in sorted(initial_cluster) if name != self._node_id]
            self.say("begins the cluster" + (f" as soon as {', '.join(others)} answer" if others else ""))
        else:
            self.say(f"waits for {min(initial_cluster)} to begin the cluster")

    def elsewhere(self, listed: str) -> None:
        """The members will call this node where it does not listen: the usual slip in a list of addresses."""
        self.say(f"WARNING: the initial cluster names {listed} for this node, which is reached at {self.address}")

    def stopped(self, reason: str) -> None:
        self._event("stopped", f"stopped ({reason})" if reason else "stopped")

    def say(self, text: str) -> None:
        self._event("note", text)

    def changed(self, metrics: RaftMetrics) -> None:
        """Tell what is new in ``metrics``: role, leader, membership, snapshot, trouble. Nothing per entry."""
        now: dict[str, Any] = {
            "role": metrics.state.value,
            "term": metrics.current_term,
            "leader": metrics.current_leader,
            "members": _members(metrics),
            "listed": self._listed(metrics),
            "snapshot": metrics.snapshot.index if metrics.snapshot is not None else None,
            "needs_rejoin": metrics.needs_rejoin,
            "fatal": metrics.fatal,
        }
        before, self._before = self._before, now
        if not before:
            before = dict.fromkeys(now)
        if now["role"] != before["role"]:
            was = f"{before['role']} → " if before["role"] else ""
            role = now["role"].upper() if now["role"] == "leader" else now["role"]
            self._event("role", f"{was}{role}, term {now['term']}", role=now["role"], term=now["term"])
        if now["leader"] != before["leader"] and (now["leader"] or before["leader"]):
            text = f"leader is {now['leader']}" if now["leader"] else "no leader"
            self._event("leader", f"{text}, term {now['term']}", leader=now["leader"], term=now["term"])
        if now["members"] != before["members"] and now["members"]:
            is_member = self._node_id in metrics.membership.membership.nodes
            stranger = "" if is_member else f"; {self._node_id} is not one of them"
            self._event("membership", f"members: {now['members']}{stranger}", members=now["members"])
        if now["listed"] != before["listed"] and now["listed"]:
            here = f"it is at {self.address}; from any node: raftkit member rejoin {self._node_id} --url {self.address}"
            self._event("moved", f"the members call this node at {now['listed']}, but {here}")
        if now["snapshot"] != before["snapshot"] and now["snapshot"] is not None:
            self._event("snapshot", f"snapshot up to {now['snapshot']}", index=now["snapshot"])
        if now["needs_rejoin"] != before["needs_rejoin"] and now["needs_rejoin"]:
            next_step = f"from any node: raftkit member rejoin {self._node_id}"
            self._event("needs_rejoin", f"parked, needs to rejoin: {now['needs_rejoin']}; {next_step}")
        if now["fatal"] != before["fatal"] and now["fatal"]:
            self._event("fatal", f"fatal: {now['fatal']}")

    def _listed(self, metrics: RaftMetrics) -> str | None:
        """The address the membership has of this node, if that is another one than it has."""
        node = metrics.membership.membership.nodes.get(self._node_id)
        if node is None or self.address is None or bare_address(node.peer) == self.address:
            return None
        return node.peer

    def _event(self, event: str, text: str, **fields: Any) -> None:
        if self._out.as_json:
            data = {"node": self._node_id, "event": event, "message": text, **fields}
            with _unheard():
                self._out.result("node.event", data)
        else:
            self._line(event, text)

    def _line(self, event: str, text: str) -> None:
        clock = time.strftime("%H:%M:%S") if is_terminal(sys.stderr) else time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if not self._out.quiet or event in ("fatal", "needs_rejoin"):
            with _unheard():
                self._out.note(f"{clock} {self._node_id} {text}")


def bare_address(url: str) -> str:
    """What others call, without options."""
    from raftkit_cli.endpoints import advertised

    return advertised(url).rstrip("/").lower()


def _without_known_traces(record: logging.LogRecord) -> bool:
    """What a storage says of itself is said in words; where in it that was found is for ``-v``."""
    from raftkit_core.errors import StorageError

    if record.exc_info and isinstance(record.exc_info[1], StorageError):
        record.exc_info = record.exc_text = None
    return True


def _unheard() -> AbstractContextManager[None]:
    """A log that cannot be written (its disk is full, its reader is gone) is no reason for a node to stop, and least of
    all for one that wants to say why it stops."""
    return contextlib.suppress(OSError)


def _members(metrics: RaftMetrics) -> str:
    membership = metrics.membership.membership
    voters = " → ".join("{" + " ".join(config) + "}" for config in membership.configs)
    learners = " ".join(membership.learner_ids)
    return f"{voters} learners {learners}" if learners else voters


def _shown(url: str) -> str:
    """A URL without the passwords that may stand in it."""
    from raftkit_core.plugins.url import AdapterUrl

    return AdapterUrl("", text=url).masked()
