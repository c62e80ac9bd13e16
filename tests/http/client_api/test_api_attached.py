"""The network factory of a node serves the client API beside its peers, and the plugin makes the client."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from raftkit_core import load_plugins
from raftkit_core.errors import UnknownOption
from raftkit_http.client import HttpClusterClient
from raftkit_http.network import HttpNetworkFactory
from raftkit_http.settings import HttpSettings


async def test_a_node_attached_to_its_transport_is_reached_by_the_plugins_client(fake_raft: Any) -> None:
    factory = HttpNetworkFactory(HttpSettings.parse("http://127.0.0.1:0"))
    factory.attach(fake_raft())
    try:
        await factory.server.start()
        async with load_plugins().client([factory.server.url], {"timeout": 2.0}) as client:
            assert isinstance(client, HttpClusterClient)
            assert (await client.kv_put("k", b"v")).revision == 1
            assert (await client.status()).id == "n1"
    finally:
        await factory.close()


async def test_an_option_the_client_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(UnknownOption, match="colour"):
        load_plugins().client(["http://127.0.0.1:1"], {"colour": "red"})


def test_the_package_and_the_schema_load_no_http_library() -> None:
    code = (
        "import sys, raftkit_http, raftkit_http.plugin, raftkit_http.api.schema;"
        "sys.exit(bool({'aiohttp', 'prometheus_client'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
