"""The demo's books are honest: what was not answered is not acknowledged, what is missing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_cli.demo.report import Report
from raftkit_cli.demo.writer import Writer
from raftkit_cli.failures import CliError
from raftkit_core import errors
from raftkit_core.types.kv import KeyValue


def _new_report() -> Report:
    return Report(nodes=3, storage="sqlite:", network="http:")


async def _write(fake_client: Any, report: Report, count: int = 1) -> Writer:
    async with fake_client as client:
        writer = Writer(client, report, lambda: None, "nonce")
        for number in range(count):
            await writer.write(number)
        report.lost = await writer.missing()
    return writer


@pytest.mark.virtual_time
@pytest.mark.parametrize(("is_written", "found"), [(True, 1), (False, 0)])
async def test_an_unknown_write_is_read_back_and_only_an_answer_counts(
    is_written: bool, found: int, cluster: Any, fake_client: Any
) -> None:
    cluster.put_failures = [(errors.OutcomeUnknown("the leader went away"), is_written)]
    report = _new_report()
    await _write(fake_client, report)
    assert (report.unknown, report.unknown_applied, report.acknowledged) == (1, found, 1)
    assert [name for name, _ in cluster.calls] == ["kv_put", "kv_get", "kv_put", "kv_list"]


@pytest.mark.virtual_time
async def test_a_refused_write_is_repeated_and_never_counted_as_unknown(cluster: Any, fake_client: Any) -> None:
    cluster.put_failures = [(errors.ForwardToLeader("no leader"), False), (errors.Unreachable("refused"), False)]
    report = _new_report()
    await _write(fake_client, report)
    assert (report.refused, report.unknown, report.acknowledged) == (2, 0, 1)


@pytest.mark.virtual_time
async def test_a_refusal_that_no_repetition_helps_ends_the_demo(cluster: Any, fake_client: Any) -> None:
    cluster.put_failures = [(errors.BadCommand("the key is too long"), False)]
    with pytest.raises(CliError, match="the key is too long"):
        await _write(fake_client, _new_report())


@pytest.mark.virtual_time
async def test_a_missing_and_a_changed_key_are_lost(cluster: Any, fake_client: Any) -> None:
    report = _new_report()
    async with fake_client as client:
        writer = Writer(client, report, lambda: None, "nonce")
        for number in range(3):
            await writer.write(number)
        del cluster.keys["demo/0000"]
        cluster.keys["demo/0001"] = KeyValue(key="demo/0001", value=b"older", revision=3)
        assert await writer.missing() == ["demo/0000", "demo/0001"]


def test_digests_are_equal_only_if_every_node_gave_one() -> None:
    report = _new_report()
    assert not report.digests_equal
    report.digests = {"n1": "a", "n2": "a"}
    assert report.digests_equal
    report.digests = {"n1": "a", "n2": None}
    assert not report.digests_equal
    report.digests = {"n1": None, "n2": None}
    assert not report.digests_equal
