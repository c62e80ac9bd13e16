"""Two of the seed's defects that live in the loop itself (D12, D17); the others are named ``test_dNN_…`` elsewhere."""

from __future__ import annotations

import pytest

from raftkit_core.errors import StorageError
from raftkit_core.runtime.inbox import Balancer
from raftkit_core.runtime.log_writer import LogWriter
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.testing.cluster import memory_cluster
from raftkit_core.types.entry import Entry
from raftkit_core.types.kv import Put

pytestmark = pytest.mark.virtual_time


class ForgetfulStorage(MemoryLogStorage):
    """Gives nothing for a range it should hold."""

    async def read(self, start: int, stop: int, max_bytes: int) -> list[Entry]:
        return []


async def test_d12_an_empty_read_of_a_range_that_must_be_there_is_a_storage_error_not_the_log_s_end() -> None:
    async def no_lease(lease_ms: int) -> None:
        raise AssertionError("nothing is written here")

    writer = LogWriter(ForgetfulStorage(), no_lease, lambda io_id: None, lambda error: None)
    writer.start_at(0, 10)
    with pytest.raises(StorageError):
        await writer.read(3, 10, 1000)


async def test_d17_every_message_of_a_full_inbox_is_handled_and_its_commands_are_carried_out() -> None:
    async with memory_cluster(1) as cluster:
        leader = await cluster.leader()
        share = Balancer().raft_msg
        futures = [leader.client_write_ff(Put(f"k{number}", b"v")) for number in range(3 * share + 1)]
        indexes = [(await future).log_id.index for future in futures]
        assert indexes == list(range(indexes[0], indexes[0] + len(futures)))


def test_d17_the_side_that_used_its_whole_share_gets_more_and_never_all() -> None:
    balancer = Balancer(1600)
    start = balancer.raft_msg
    balancer.turned(raft_msgs=start, notifications=0)
    assert balancer.raft_msg > start
    for _ in range(1000):
        balancer.turned(raft_msgs=balancer.raft_msg, notifications=0)
    assert balancer.raft_msg <= 800
    for _ in range(1000):
        balancer.turned(raft_msgs=0, notifications=balancer.notification)
    assert balancer.raft_msg == 1
