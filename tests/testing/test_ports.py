"""Ports of tests: nobody else is given one while it waits for its server."""

from __future__ import annotations

import os
import socket

import pytest

from raftkit_core.testing import ports
from raftkit_core.testing.ports import LOCAL, free_ports, free_urls


def test_ports_lie_below_those_of_outgoing_connections_and_are_not_given_twice() -> None:
    given = [port for _ in range(20) for port in free_ports(5)]
    assert len(set(given)) == 100
    assert max(given) < 32_768
    assert free_urls(1)[0].startswith(f"http://{LOCAL}:1")
    assert free_ports(0) == []


def test_processes_side_by_side_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = set(free_ports(50))
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert not here & set(free_ports(50))


def test_a_port_that_is_listened_on_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "PORTS_PER_RANGE", 2)
    first, second = sorted(free_ports(2))
    with socket.socket() as taken:
        taken.bind((LOCAL, first))
        taken.listen()
        assert free_ports(1) == [second]
        with pytest.raises(OSError, match="no 2 free ports"):
            free_ports(2)
