"""``http:`` and ``memory:`` keep the contract of networks."""

from __future__ import annotations

import pytest

from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.network.memory import MemoryNetworkFactory
from raftkit_core.testing import NetworkConformance


class TestHttpNetwork(NetworkConformance):
    url = "http://127.0.0.1:0"


@pytest.mark.virtual_time
class TestMemoryNetwork(NetworkConformance):
    def factory(self, node_id: str, peer: str | None = None) -> RaftNetworkFactory:
        return MemoryNetworkFactory("conformance", node_id)
