"""``raftkit status``: one table and one verdict."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from raftkit_cli.client import make_client, run, told_where, with_client
from raftkit_cli.endpoints import resolve
from raftkit_cli.options import Duration, Invocation, Verb, pass_invocation
from raftkit_cli.output import Output, human_bytes, human_ms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from raftkit_cli.survey import Survey
    from raftkit_core.network.client import ClusterClient

HEADERS = ("NODE", "ROLE", "UP", "TERM", "LAST", "COMMIT", "APPLIED", "BEHIND", "SEEN", "SNAP", "SIZE")

_COLOURS = {"healthy": "green", "degraded": "yellow"}
_NEXT_STEPS = {
    "not initialized": "begin one: raftkit cluster init ID=URL ID=URL ID=URL",
    "no quorum": "start the missing nodes (raftkit local up, or raftkit node run where they live); reads without a"
    " promise work: raftkit kv get KEY --consistency stale; if a majority lost its data for good: raftkit recover",
    "no leader": "look again in a second: raftkit status --watch",
}


@click.command(cls=Verb, name="status")
@click.option("--watch", is_flag=True, help="Look again and again until Ctrl-C; with --json one document a line.")
@click.option("--interval", type=Duration(), default="1s", show_default=True, help="How often --watch looks.")
@click.option("--digest", is_flag=True, help="Also a digest of every node's state (reads all of it).")
@pass_invocation
def status(invocation: Invocation, watch: bool, interval: float, digest: bool) -> None:
    """Who leads, who follows, who is missing, and what that means.

    One endpoint is asked, then every member of its cluster. A node that does not answer stays in the list.
    """
    from raftkit_cli.survey import take_survey

    per_node_s = min(2.0, invocation.timeout_s)

    async def once(client: ClusterClient) -> Survey:
        return await take_survey(client, per_node_s=per_node_s, digest=digest)

    if not watch:
        show(invocation, with_client(invocation, once, limit_s=invocation.timeout_s + 2 * per_node_s))
        return
    invocation.is_endless = True
    run(_watch(invocation, once, interval))


async def _watch(invocation: Invocation, once: Callable[[ClusterClient], Awaitable[Survey]], interval: float) -> None:
    """Look until interrupted. A cluster that does not answer is news, not the end."""
    from raftkit_cli.failures import failure_of
    from raftkit_core.errors import RaftError, Unreachable

    target = resolve(invocation)
    out = invocation.out
    async with make_client(invocation, target.endpoints) as client:
        while True:
            try:
                survey = await once(client)
            except RaftError as error:
                told = told_where(error, target) if isinstance(error, Unreachable) else error
                out.failure("status", failure_of(told))
            else:
                if out.is_coloured(sys.stdout):
                    click.clear()
                show(invocation, survey)
            await asyncio.sleep(interval)


def show(invocation: Invocation, survey: Survey) -> None:
    """Print a survey as the global options want it."""
    from raftkit_cli.survey import as_data

    invocation.out.result("status", as_data(survey), lambda: _show_human(invocation.out, survey))


def _show_human(out: Output, survey: Survey) -> None:
    from raftkit_cli.survey import verdict

    state, sentence = verdict(survey)
    leader = f"leader {survey.leader}" if survey.leader else "no leader"
    shown_state = out.style(state, _COLOURS.get(state, "red"))
    head = [survey.asked.cluster, shown_state]
    if state != "no leader":
        head.append(leader)
    out.line("  ".join([*head, f"term {survey.term}"]))
    out.line(sentence)
    out.table(HEADERS, [_row(out, survey, node_id) for node_id in survey.answers])
    for node_id, answer in survey.answers.items():
        if answer is not None and answer.digest is not None:
            out.line(f"{node_id}  state at {_index(answer.applied)}: {answer.digest}")
    for node_id, error in survey.errors.items():
        out.note(f"{node_id}: {error}")
    if state in _NEXT_STEPS:
        out.note(f"Try:   {_NEXT_STEPS[state]}")


def _row(out: Output, survey: Survey, node_id: str) -> list[str]:
    from raftkit_cli.survey import contact_ms, lag_entries, lag_ms

    answer = survey.answers[node_id]
    if answer is None:
        behind = lag_entries(survey, node_id)
        contact = human_ms(contact_ms(survey, node_id))
        blank = ["-"] * 4
        return [node_id, "?", out.style("NO", "red"), *blank, "-" if behind is None else str(behind), contact, "-", "-"]
    is_leader = node_id == survey.leader
    role = out.style("LEADER", "green") if is_leader else answer.role
    if all(member.id != node_id for member in survey.members):
        role = "no member"
    if answer.fatal:
        role = out.style("stopped", "red")
    elif answer.needs_rejoin:
        role = out.style("parked", "red")
    return [
        node_id,
        role,
        "ok",
        str(answer.term),
        _index(answer.last_log_index),
        _index(answer.committed),
        _index(answer.applied),
        "-" if is_leader else _behind(lag_entries(survey, node_id), lag_ms(survey, node_id)),
        human_ms(contact_ms(survey, node_id)),
        _index(answer.snapshot),
        human_bytes(answer.storage.size_bytes),
    ]


def _index(index: int | None) -> str:
    return "-" if index is None else str(index)


def _behind(entries: int | None, milliseconds: int | None) -> str:
    """``12 / 1.4 s``; ``0`` when nothing is missing."""
    if entries is None:
        return "-"
    return f"{entries} / {human_ms(milliseconds)}" if entries and milliseconds else str(entries)
