"""Ports for nodes of a test, on the loopback address.

They are of the range that systems give to outgoing connections: while a node is down its port may be taken. Tests that
start a node again take ports of ``raftkit_cli.cluster.layout.free_ports``.
"""

from __future__ import annotations

import socket

LOCAL = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """``count`` ports nobody listens on now; held together while they are looked for, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOCAL, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def free_urls(count: int) -> list[str]:
    """As :func:`free_ports`, as ``http:`` URLs."""
    return [f"http://{LOCAL}:{port}" for port in free_ports(count)]
