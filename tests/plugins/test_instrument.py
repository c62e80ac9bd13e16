"""Instruments are told, and can do no harm."""

from __future__ import annotations

import logging

import pytest

from raftkit_core.instrument import Instrument, Instruments
from raftkit_core.types.membership import StoredMembership
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.snapshot import SnapshotMeta


class Recorder(Instrument):
    def __init__(self) -> None:
        self.told: list[object] = []

    def on_server_state(self, state: ServerState) -> None:
        self.told.append(state)

    def on_leader_change(self, leader: str | None, term: int) -> None:
        self.told.append((leader, term))

    def on_membership(self, membership: StoredMembership) -> None:
        self.told.append(membership)

    def on_snapshot(self, meta: SnapshotMeta) -> None:
        self.told.append(meta)

    def on_storage_stall(self, seconds: float) -> None:
        self.told.append(seconds)

    def on_plugin_stall(self, name: str, seconds: float) -> None:
        self.told.append((name, seconds))

    def on_fatal(self, error: BaseException) -> None:
        self.told.append(error)

    def trace(self, step: str) -> None:
        self.told.append(step)


class Faulty(Instrument):
    def on_storage_stall(self, seconds: float) -> None:
        raise KeyError("stall")


def test_every_instrument_is_told_everything() -> None:
    recorders = [Recorder(), Recorder()]
    instruments = Instruments(recorders)
    meta, error, membership = SnapshotMeta(None, StoredMembership(), "a-1"), ValueError(), StoredMembership()
    instruments.on_server_state(ServerState.LEADER)
    instruments.on_leader_change("n1", 2)
    instruments.on_membership(membership)
    instruments.on_snapshot(meta)
    instruments.on_storage_stall(2.5)
    instruments.on_plugin_stall("KvStateMachine.apply", 0.3)
    instruments.on_fatal(error)
    instruments.trace("LogWriter.write")
    for recorder in recorders:
        stall = ("KvStateMachine.apply", 0.3)
        assert recorder.told == [ServerState.LEADER, ("n1", 2), membership, meta, 2.5, stall, error, "LogWriter.write"]


def test_an_error_of_an_instrument_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    instruments = Instruments([Faulty(), recorder])
    with caplog.at_level(logging.WARNING, "raftkit.instrument"):
        for _ in range(3):
            instruments.on_storage_stall(1.0)
    assert recorder.told == [1.0, 1.0, 1.0]
    assert instruments.errors == {("Faulty", "on_storage_stall", "KeyError"): 3}
    assert len(caplog.records) == 1


def test_tracing_costs_nothing_unless_somebody_listens() -> None:
    instruments = Instruments([Faulty()])
    assert not instruments.is_tracing
    instruments.add(Recorder())
    assert instruments.is_tracing


def test_an_instrument_may_have_just_the_methods_it_needs() -> None:
    class Small:
        def __init__(self) -> None:
            self.steps: list[str] = []

        def trace(self, step: str) -> None:
            self.steps.append(step)

    small = Small()
    instruments = Instruments([small])  # type: ignore[list-item]
    instruments.trace("x")
    instruments.on_storage_stall(1.0)
    assert small.steps == ["x"]
