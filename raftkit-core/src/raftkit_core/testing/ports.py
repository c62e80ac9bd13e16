"""Ports for nodes and servers of a test, on the loopback address.

They lie below the range that systems give to outgoing connections: while nobody listens on one, the other end of
somebody's connection must not take it. Processes that run tests side by side have ranges of their own, and none gives a
port twice within hundreds.
"""

from __future__ import annotations

import os
import socket
from itertools import count as counted

LOCAL = "127.0.0.1"
FIRST = 10_000
RANGES = 20
PORTS_PER_RANGE = 500

_next = counted()


def free_ports(count: int) -> list[int]:
    """``count`` ports nobody listens on now, all different."""
    first = FIRST + os.getpid() % RANGES * PORTS_PER_RANGE
    found: list[int] = []
    for _ in range(PORTS_PER_RANGE):
        if len(found) == count:
            break
        port = first + next(_next) % PORTS_PER_RANGE
        if _is_free(port):
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports between {first} and {first + PORTS_PER_RANGE}")
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name == "posix":  # as servers do, so that a port of connections that have just ended counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL, port))
        except OSError:
            return False
    return True


def free_urls(count: int) -> list[str]:
    """As :func:`free_ports`, as ``http:`` URLs."""
    return [f"http://{LOCAL}:{port}" for port in free_ports(count)]
