"""How many connections a listener may hold, with the descriptors that the process may have."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

RESERVED = 256
"""For storage, snapshots, calls to peers and what an application opens besides."""
CONNECTIONS_MIN = 64
"""Fewer serve nobody: below that it is better to run out, and say so."""
FEW = 256
"""Worth a warning."""


def connections_allowed(wanted: int, listeners: int = 1) -> int:
    """``wanted``, or what the process's limit leaves for each of ``listeners``; less is logged with what to do."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = max(CONNECTIONS_MIN, (soft - RESERVED) // listeners)
    if allowed >= wanted:
        return wanted
    logger.log(
        logging.WARNING if allowed < FEW else logging.INFO,
        "a listener holds %d connections at most, not %d: the process may open %d files (ulimit -n; hard limit %s)",
        allowed,
        wanted,
        soft,
        "none" if hard == resource.RLIM_INFINITY else hard,
    )
    return allowed


__all__ = ["CONNECTIONS_MIN", "RESERVED", "connections_allowed"]
