"""Certificates of a CA made for the tests, and nodes that use them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trustme

from raftkit_core.types.security import Security

sys.path.insert(0, str(Path(__file__).parent))


class Authority:
    """A CA in a folder, which signs for nodes by their id."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.ca = trustme.CA(organization_name=name, key_type=trustme.KeyType.ECDSA)
        self.ca_file = folder / f"{name}.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))

    def node(self, node_id: str, *names: str, file: str | None = None) -> Security:
        """Certificate and key for ``node_id`` at 127.0.0.1; ``names`` in its place, if any are given."""
        cert = self.ca.issue_cert(*(names or (node_id, "127.0.0.1", "localhost")))
        base = file or node_id
        cert_file, key_file = self.folder / f"{base}.crt", self.folder / f"{base}.key"
        cert_file.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
        cert.private_key_pem.write_to_path(str(key_file))
        key_file.chmod(0o600)
        return Security(ca=self.ca_file, cert=cert_file, key=key_file)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def other_authority(tmp_path: Path) -> Authority:
    """Another cluster's."""
    return Authority(tmp_path, "other-ca")
