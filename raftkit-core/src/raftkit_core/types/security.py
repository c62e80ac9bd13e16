"""What makes a node's network safe: names of files and rules. Never a secret itself, so that it may be shown."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of ``[security]``. Which a transport uses is its own matter; ``memory:`` uses none.

    - ``ca``: certificates (PEM, one or several) that sign peers. ``cert`` and ``key``: this node's own.
    - ``tokens``: hashes of the tokens that clients may show, with their roles (``raftkit token new`` writes it).
    - ``insecure``: listen beyond this machine without TLS and tokens, because somebody said so.
    - ``allowed_hosts``: names under which clients may address a node, besides its own and IP addresses.
    - ``peer_networks``: networks (``10.0.0.0/8``) that members' addresses must lie in; empty: anywhere but link-local.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    peer_networks: tuple[str, ...] = ()
