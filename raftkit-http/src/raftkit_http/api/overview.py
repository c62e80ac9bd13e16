"""``/v1/cluster`` and ``/v1/events``: the whole cluster as this node sees it, and what happened to this node lately.

The other members are asked over the peer connections, so a page or a person needs to reach one node only, and a browser
never talks to a second origin.
"""

from __future__ import annotations

from aiohttp import web

from raftkit_core.errors import BadRequest
from raftkit_core.network.client import MemberStatus, NodeReport, NodeStatus
from raftkit_core.network.survey import Survey, contact_ms, lag_entries, next_step, verdict
from raftkit_core.types.ids import is_node_id
from raftkit_http.api.decode import quoted
from raftkit_http.api.discretion import events_for, report_for
from raftkit_http.api.envelope import success
from raftkit_http.api.guard import Call
from raftkit_http.api.schema import MAX_SAFE_INT, ClusterAnswer, ClusterNode, EventsAnswer, Quorum

MAX_EVENTS = 512
SURVEY_SHARE = 0.5
"""Of the caller's time, for members that do not answer: the answer must still arrive."""


async def get_cluster(call: Call) -> web.Response:
    reports = await call.raft.survey(_events_after(call), timeout=min(1.5, call.remaining * SURVEY_SHARE))
    told = [report_for(call.caller, report) for report in reports]
    return success(call.request, "cluster", cluster_answer(call.raft.id, told))


async def get_events(call: Call) -> web.Response:
    after = call.query.integer("after", minimum=0, maximum=MAX_SAFE_INT - 1) or 0
    limit = call.query.integer("limit", minimum=1, maximum=MAX_EVENTS) or MAX_EVENTS
    events = events_for(call.caller, call.raft.events(after, limit))
    return success(call.request, "events", EventsAnswer(id=call.raft.id, events=events))


def _events_after(call: Call) -> dict[str, int]:
    """``n1:12,n2:40``: of each node only what is newer. Raises: BadRequest."""
    text = call.query.text("events_after")
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        node_id, _, number = part.rpartition(":")
        is_number = number.isascii() and number.isdecimal() and len(number) <= 16
        if not is_node_id(node_id) or not is_number or int(number) >= MAX_SAFE_INT:
            raise BadRequest(
                f"events_after is ID:NUMBER,ID:NUMBER, and {quoted(part)} is not", hint="take the numbers of events"
            )
        found[node_id] = int(number)
    return found


def cluster_answer(asked: str, reports: list[NodeReport]) -> ClusterAnswer:
    """What the reports mean, by the rules of ``raftkit status``."""
    own = next(report.status for report in reports if report.id == asked)
    assert own is not None, "a node always reports itself"
    answers: dict[str, NodeStatus | None] = {report.id: report.status for report in reports}
    survey = Survey(own, answers, {report.id: report.error for report in reports if report.error})
    state, sentence = verdict(survey)
    working, needed, voters = survey.quorum()
    members: dict[str, MemberStatus] = {member.id: member for member in survey.members}
    for member in members:
        answers.setdefault(member, None)
    events = {report.id: report.events for report in reports}
    return ClusterAnswer(
        asked=asked,
        cluster=own.cluster,
        cluster_id=own.cluster_id,
        state=state,
        verdict=sentence,
        next_step=next_step(survey),
        leader=survey.leader,
        term=survey.term,
        joint=survey.is_joint,
        quorum=Quorum(working=working, needed=needed, voters=voters),
        nodes=[
            ClusterNode(
                id=node_id,
                node=members[node_id].node if node_id in members else None,
                voter=node_id in members and members[node_id].voter,
                error=survey.errors.get(node_id),
                lag_entries=lag_entries(survey, node_id),
                last_contact_ms=contact_ms(survey, node_id),
                status=answers[node_id],
                events=events.get(node_id, []),
            )
            for node_id in sorted(answers)
        ],
    )
