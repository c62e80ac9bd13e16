"""The identity is saved once at a time, and a save that has begun is carried through."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from raftkit_core.errors import IdentityError, StorageError
from raftkit_core.runtime.service import Identity
from raftkit_core.storage.memory import MemoryLogStorage
from raftkit_core.types.identity import StoreIdentity

pytestmark = pytest.mark.virtual_time

NEW = StoreIdentity(node_id="n1", store_id="5a" * 16, cluster="default")


class SlowStorage(MemoryLogStorage):
    """Takes a second for a save; counts saves, and those under way at once."""

    def __init__(self) -> None:
        super().__init__()
        self.saves = 0
        self.under_way = 0
        self.most = 0
        self.fails = False

    async def save_identity(self, identity: StoreIdentity) -> None:
        self.saves += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.shield(asyncio.sleep(1))
            if self.fails:
                raise StorageError("I/O error")
            self.disk.identity = identity
        finally:
            self.under_way -= 1


async def adopt_and_give_up(identity: Identity) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.25):  # as a served hello is given up
            await identity.adopt_cluster("c1")


async def test_a_caller_that_gives_up_leaves_no_second_save_beside_the_first() -> None:
    """Found by simulation: a hello ran into its deadline on a slow disk, and the next one saved at the same time."""
    storage = SlowStorage()
    identity = Identity(storage, NEW)
    await adopt_and_give_up(identity)
    await identity.adopt_cluster("c1")
    assert (storage.saves, storage.most) == (1, 1)
    assert identity.current.cluster_id == "c1"
    assert storage.disk.identity == msgspec.structs.replace(NEW, cluster_id="c1")


async def test_changes_of_different_kinds_come_one_after_the_other_and_none_is_lost() -> None:
    storage = SlowStorage()
    identity = Identity(storage, NEW)
    await asyncio.gather(identity.adopt_cluster("c1"), identity.save_lease(500), identity.save_lease(300))
    assert (storage.saves, storage.most) == (2, 1)
    assert storage.disk.identity == msgspec.structs.replace(NEW, cluster_id="c1", largest_lease_ms=500)
    with pytest.raises(IdentityError, match="belongs to cluster c1"):
        await identity.adopt_cluster("c2")


async def test_a_save_that_fails_when_nobody_waits_any_more_ends_the_node() -> None:
    """S28: the store is dead whether or not the caller is still there."""
    storage = SlowStorage()
    storage.fails = True
    identity = Identity(storage, NEW)
    told: list[BaseException] = []
    identity.failed = told.append
    await adopt_and_give_up(identity)
    await asyncio.sleep(1)
    assert [str(error) for error in told] == ["I/O error"]
    assert identity.current == NEW


async def test_closing_waits_for_a_save_and_gives_up_one_that_hangs() -> None:
    storage = SlowStorage()
    identity = Identity(storage, NEW)
    await adopt_and_give_up(identity)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await identity.close()
    await asyncio.sleep(1)
    assert storage.under_way == 0
