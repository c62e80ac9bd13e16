"""HTTP and WebSocket transport, client API and client library for raftkit.

Names are resolved when they are first used (PEP 562), so that listing the plugin loads no aiohttp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_http.client import HttpClusterClient
    from raftkit_http.client import HttpClusterClient as Client

__all__ = ["Client", "HttpClusterClient"]


def __getattr__(name: str) -> object:
    if name in ("Client", "HttpClusterClient"):
        from raftkit_http.client import HttpClusterClient

        return HttpClusterClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
