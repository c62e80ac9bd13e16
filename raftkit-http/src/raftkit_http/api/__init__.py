"""The client API of a node: JSON under ``/v1``, MessagePack over ``/v1/ws``, ``/livez``, ``/readyz`` and ``/metrics``.

- ``schema`` what travels · ``decode`` bounded bodies to typed values · ``envelope`` answers and error statuses
- ``guard`` deadlines, limits and error translation around every handler
- ``kv``, ``write``, ``cluster``, ``health``, ``socket`` the handlers · ``metrics`` the Prometheus collector
- ``routes`` is the table, and puts it on a node's server

Nothing here decides anything about consensus: every handler is one call on the ``Raft`` handle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkit_http.api.routes import ClientApi, attach

__all__ = ["ClientApi", "attach"]


def __getattr__(name: str) -> object:
    # Lazy (PEP 562): the client imports `schema` alone and must not pay for the server side.
    if name in __all__:
        from raftkit_http.api import routes as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
