"""``http:`` and ``memory:`` keep the contract of networks."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from raftkit_core.network.interface import RaftNetworkFactory
from raftkit_core.network.memory import MemoryNetworkFactory
from raftkit_core.testing import NetworkConformance
from raftkit_core.types.security import Security
from raftkit_http.network import HttpNetworkFactory
from raftkit_http.settings import HttpSettings


class TestHttpNetwork(NetworkConformance):
    url = "http://127.0.0.1:0"


class TestHttpsNetwork(NetworkConformance):
    """The same with TLS: every node has a certificate for its own id."""

    authority: ClassVar[trustme.CA]

    @pytest.fixture(autouse=True)
    def _certificates(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    def factory(self, node_id: str, peer: str | None = None) -> RaftNetworkFactory:
        issued = self.authority.issue_cert(node_id, "127.0.0.1")
        cert, key = self.folder / f"{node_id}.pem", self.folder / f"{node_id}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        security = Security(ca=self.folder / "ca.pem", cert=cert, key=key)
        return HttpNetworkFactory(HttpSettings.parse(peer or "https://127.0.0.1:0", security))


TestHttpsNetwork.authority = trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.mark.virtual_time
class TestMemoryNetwork(NetworkConformance):
    def factory(self, node_id: str, peer: str | None = None) -> RaftNetworkFactory:
        return MemoryNetworkFactory("conformance", node_id)
