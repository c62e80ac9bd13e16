"""What only a leader knows. A node leads iff it holds this object; it is made by winning an election, never loaded."""

from __future__ import annotations

from collections import deque

from raftkit_core.engine.progress import ProgressEntry
from raftkit_core.types.ids import NodeId, RequestId
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import Vote


class PendingRead:
    """A read waiting for a quorum of answers to messages that left after it arrived (``seq`` above its own)."""

    __slots__ = ("arrived_at", "read_log_id", "request_id", "seq")

    def __init__(self, request_id: RequestId, read_log_id: LogId, seq: int, arrived_at: float) -> None:
        self.request_id = request_id
        self.read_log_id = read_log_id
        self.seq = seq
        self.arrived_at = arrived_at


class Transfer:
    """A hand-over under way: writes are refused until it ends."""

    __slots__ = ("deadline", "request_id", "sent", "target")

    def __init__(self, target: NodeId, request_id: RequestId | None, deadline: float) -> None:
        self.target = target
        self.request_id = request_id
        self.deadline = deadline
        self.sent = False


class Leader:
    """One leadership. ``session`` is unique in this process: reports of an earlier one are dropped."""

    __slots__ = (
        "acked_at",
        "acked_seq",
        "base_time_ms",
        "epoch",
        "established_at",
        "greatest_acked",
        "membership_since",
        "next_heartbeat",
        "noop_log_id",
        "noticed_commit",
        "owes_notice",
        "progress",
        "quorum_known_until",
        "read_round_at",
        "read_round_seq",
        "reads",
        "reads_by_lease",
        "seq",
        "session",
        "transfer",
        "uncommitted",
        "uncommitted_bytes",
        "vote",
        "vote_io",
    )

    def __init__(
        self, *, vote: Vote, vote_io: int, session: int, noop_log_id: LogId, now: float, base_time_ms: int
    ) -> None:
        assert vote.committed, f"a leader needs a granted vote, not {vote}"
        self.vote = vote
        self.vote_io = vote_io
        """Nothing is sent under this vote before this write is flushed."""
        self.session = session
        self.noop_log_id = noop_log_id
        self.progress: dict[NodeId, ProgressEntry] = {}
        """Every other node, removed ones included for a while."""
        self.established_at = now
        self.membership_since = now
        """Since when the effective membership is in force here."""
        self.quorum_known_until = now
        """Until when a quorum is known to have answered within the lease; forgotten when another quorum is needed."""
        self.base_time_ms = base_time_ms
        self.next_heartbeat = now
        self.seq = 0
        """Grows with every message emitted; answers carry it back."""
        self.epoch = 0
        self.greatest_acked = -1
        """The greatest index that any peer has acknowledged."""
        self.acked_at: dict[NodeId, float] = {}
        """Send time of the last message a peer answered: a lease runs from the *send* time."""
        self.acked_seq: dict[NodeId, float] = {}
        self.reads: deque[PendingRead] = deque()
        self.read_round_seq = 0
        self.read_round_at = now
        self.reads_by_lease = True
        """False for the rest of this leader id once a transfer was started, finished or not."""
        self.transfer: Transfer | None = None
        self.owes_notice = False
        """A notice of the commits up to ``noticed_commit`` is ordered, for peers that do not hear of them otherwise."""
        self.noticed_commit = -1
        self.uncommitted: deque[tuple[int, int]] = deque()
        self.uncommitted_bytes = 0

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def time_ms(self, now: float, last_time_ms: int) -> int:
        """Cluster time: where the log stood plus this leader's own monotonic time; never falls."""
        return max(last_time_ms, self.base_time_ms + int((now - self.established_at) * 1000))

    def committed_to(self, index: int) -> None:
        """Everything up to ``index`` is committed: its bytes are no longer held against new writes."""
        while self.uncommitted and self.uncommitted[0][0] <= index:
            self.uncommitted_bytes -= self.uncommitted.popleft()[1]
