"""How many files and connections a node's process may have open: as many as the system lets it, without being asked."""

from __future__ import annotations

import logging

log = logging.getLogger("raftkit.node")

WANTED = 16_384
"""Two listeners of 4 096 connections, calls to peers and storage, with room to spare."""


def raise_limit() -> None:
    """Raise the soft limit of open files up to the hard one, or :data:`WANTED`. Usually it is 1 024 for the sake of old
    programs. What a listener can serve with what there is, it works out by itself."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    raised = WANTED if hard == unlimited else min(WANTED, hard)
    if soft == unlimited or soft >= raised:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError) as error:
        log.warning("the limit of open files stays at %d: %s", soft, error)
    else:
        log.info("the limit of open files is raised from %d to %d", soft, raised)


__all__ = ["WANTED", "raise_limit"]
