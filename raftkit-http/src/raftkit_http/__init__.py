"""HTTP and WebSocket transport, client API and client library for raftkit.

Names are resolved when they are first used (PEP 562), so that listing the plugin loads no aiohttp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_http.client import HttpClusterClient
    from raftkit_http.pipelined import Client, HttpSession
    from raftkit_http.sync_client import SyncClient, SyncSession

_HOMES = {
    "Client": "pipelined",
    "HttpClusterClient": "client",
    "HttpSession": "pipelined",
    "SyncClient": "sync_client",
    "SyncSession": "sync_client",
}

__all__ = ["Client", "HttpClusterClient", "HttpSession", "SyncClient", "SyncSession"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
