"""The plugin of raftkit-http: ``http://`` as a network and as a client. Imports no aiohttp until one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raftkit_core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient
    from raftkit_core.network.interface import RaftNetworkFactory
    from raftkit_core.plugins.registry import ClientRegistry, NetworkRegistry
    from raftkit_core.plugins.url import AdapterUrl
    from raftkit_core.types.adapter import AdapterContext


@hookimpl
def raftkit_register_network(registry: NetworkRegistry) -> None:
    registry.add("http", _make_network)
    registry.add("https", _make_network)


@hookimpl
def raftkit_register_clients(registry: ClientRegistry) -> None:
    registry.add("http", _make_client)
    registry.add("https", _make_client)


def _make_network(url: AdapterUrl, context: AdapterContext) -> RaftNetworkFactory:
    from raftkit_http.settings import HttpSettings

    settings = HttpSettings.parse(url.text, context.security)
    from raftkit_http.network import HttpNetworkFactory

    if settings.listen.scheme == "https":
        from raftkit_http.tls import check_own

        check_own(settings.security, context.node_id)
    return HttpNetworkFactory(settings)


def _make_client(endpoints: list[str], options: Mapping[str, Any]) -> ClusterClient:
    from raftkit_http.client import make_client

    return make_client(endpoints, options)
