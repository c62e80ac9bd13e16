"""Status, members, leader, snapshots, health and metrics over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_core.errors import StorageFull
from raftkit_core.types.membership import Node, RemoveNodes, ReplaceAllVoters
from raftkit_core.types.metrics import ServerState
from raftkit_core.types.operations import AddLearner, ChangeMembership, TransferLeader
from raftkit_http.api.openapi import path_of
from raftkit_http.api.routes import routes

STORE = "0123456789abcdef0123456789abcdef"


async def test_status_is_the_nodes_own_and_has_a_digest_only_when_asked(api_node: Any) -> None:
    async with api_node() as node:
        _, plain = await node.ask("GET", "/v1/status")
        _, digest = await node.ask("GET", "/v1/status?digest=1")
    assert plain["schema"] == "raftkit.status/1"
    assert (plain["data"]["id"], plain["data"]["role"], plain["data"]["digest"]) == ("n1", "leader", None)
    assert plain["data"]["members"] == [{"id": "n1", "node": {"peer": "http://127.0.0.1:1"}, "voter": True}]
    assert digest["data"]["digest"] == "d1"


async def test_members_and_leader_come_from_published_metrics(api_node: Any) -> None:
    async with api_node() as node:
        node.raft.failure = AssertionError("the Raft itself must not be asked")
        _, members = await node.ask("GET", "/v1/members")
        _, leader = await node.ask("GET", "/v1/leader")
        node.raft.leader = None
        _, nobody = await node.ask("GET", "/v1/leader")
    assert members["data"]["members"][0]["id"] == "n1"
    assert (members["data"]["joint"], members["data"]["log_index"]) == (False, 0)
    assert leader["data"] == {"leader": "n1", "node": {"peer": "http://127.0.0.1:1"}, "term": 1}
    assert nobody["data"]["leader"] is None


async def test_a_cluster_is_initialized_with_the_members_given(api_node: Any) -> None:
    body = {"members": {"n2": {"peer": "http://h:2"}, "n1": {"peer": "http://h:1", "tags": {"zone": "a"}}}}
    async with api_node() as node:
        status, _ = await node.ask("POST", "/v1/initialize", json=body)
    assert status == 200
    assert node.raft.membership.nodes == {"n1": Node("http://h:1", tags={"zone": "a"}), "n2": Node("http://h:2")}


async def test_members_are_added_changed_and_removed(api_node: Any) -> None:
    added = {"id": "n2", "node": {"peer": "http://h:2", "client": "http://c:2", "store_id": STORE}}
    async with api_node() as node:
        status, answer = await node.ask("POST", "/v1/members", json=added)
        assert status == 200
        assert [member["id"] for member in answer["data"]["members"]] == ["n1", "n2"]
        await node.ask("POST", "/v1/members", json={"id": "n3", "node": {"peer": "http://h:3"}, "blocking": False})
        change = {"voters": ["n2", "n1", "n2"], "retain": True, "force": True}
        _, answer = await node.ask("POST", "/v1/members/change", json=change)
        assert [member["voter"] for member in answer["data"]["members"]] == [True, True, False]
        assert (await node.ask("DELETE", "/v1/members/n3"))[0] == 200
        await node.ask("POST", "/v1/members/change", json={"voters": ["n1"]})
        assert (await node.ask("POST", "/v1/members/remove", json={"ids": ["n2"]}))[0] == 200
    assert node.raft.operations == [
        AddLearner("n2", Node("http://h:2", "http://c:2", STORE)),
        AddLearner("n3", Node("http://h:3"), blocking=False),
        ChangeMembership(ReplaceAllVoters(("n1", "n2")), retain=True, force=True),
        ChangeMembership(RemoveNodes(("n3",))),
        ChangeMembership(ReplaceAllVoters(("n1",))),
        ChangeMembership(RemoveNodes(("n2",))),
    ]


async def test_leadership_is_handed_over_and_a_snapshot_triggered(api_node: Any) -> None:
    json_type = {"Content-Type": "application/json"}
    async with api_node() as node:
        _, given = await node.ask("POST", "/v1/leader/transfer", json={"to": "n1"})
        status, _ = await node.ask("POST", "/v1/leader/transfer", headers=json_type)
        assert (status, given["data"]) == (200, {"leader": "n1"})
        assert (await node.ask("POST", "/v1/snapshot", headers=json_type))[0] == 200
    assert node.raft.operations == [TransferLeader("n1"), TransferLeader(None)]
    assert node.raft.snapshots == 1


async def test_a_node_is_ready_only_while_it_knows_a_leader_and_alive_until_it_is_dead(api_node: Any) -> None:
    async with api_node() as node:
        assert (await node.ask("GET", "/livez"))[0] == 200
        assert (await node.ask("GET", "/readyz"))[0] == 200
        node.raft.is_stopping = True
        status, answer = await node.ask("GET", "/readyz")
        assert (status, answer["error"]["code"]) == (503, "STOPPED"), "while it hands over, too"
        assert (await node.ask("GET", "/livez"))[0] == 200
        assert (await node.ask("GET", "/v1/kv/a"))[0] == 404, "what comes all the same is served"
        node.raft.is_stopping = False
        node.raft.quorum_ack_ms = node.raft.config.leader_lease_ms
        assert (await node.ask("GET", "/readyz"))[0] == 200
        node.raft.quorum_ack_ms += 1
        status, answer = await node.ask("GET", "/readyz")
        assert (status, answer["error"]["code"]) == (503, "NO_QUORUM"), "a leader that is cut off refuses writes"
        node.raft.leader = None
        status, answer = await node.ask("GET", "/readyz")
        assert (status, answer["error"]["code"]) == (503, "NO_QUORUM")
        assert (await node.ask("GET", "/livez"))[0] == 200
        node.raft.fatal = "the disk is full"
        assert (await node.ask("GET", "/readyz"))[0] == 503
        status, answer = await node.ask("GET", "/livez")
        assert (status, answer["error"]["code"]) == (500, "FATAL")


async def test_metrics_show_the_node_and_what_clients_did(api_node: Any) -> None:
    async with api_node() as node:
        await node.ask("PUT", "/v1/kv/k", data=b"v")
        await node.ask("PUT", "/v1/kv/k?if_revision=9", data=b"v")
        async with node.http.get(f"{node.url}/metrics") as response:
            text = await response.text()
            assert response.content_type == "text/plain"
    for line in (
        "raftkit_is_leader 1.0",
        "raftkit_has_leader 1.0",
        "raftkit_commit_index 2.0",
        'raftkit_peer_lag_entries{peer="n2"} 2.0',
        'raftkit_peer_last_contact_seconds{peer="n2"} 0.04',
        "raftkit_proposal_seconds_count 1.0",
        'raftkit_proposals_failed_total{reason="PRECONDITION_FAILED"} 1.0',
        'raftkit_http_requests_total{route="/v1/kv/{key:.+}",status="200"} 1.0',
    ):
        assert line in text.splitlines()
    assert "\nraftkit_snapshot_index " not in text, "a position that does not exist has no sample"


async def test_metrics_are_served_even_when_the_node_does_not_answer(api_node: Any) -> None:
    async with api_node() as node:
        node.raft.failure = StorageFull("no space left")
        async with node.http.get(f"{node.url}/metrics") as response:
            assert response.status == 200
            assert "raftkit_http_requests_total" in await response.text()


async def test_two_nodes_of_one_process_count_for_themselves(api_node: Any, fake_raft: Any) -> None:
    async with api_node() as one, api_node(fake_raft("n2")) as two:
        await one.ask("PUT", "/v1/kv/k", data=b"v")
        async with two.http.get(f"{two.url}/metrics") as response:
            assert "raftkit_proposal_seconds_count 0.0" in (await response.text()).splitlines()


async def test_the_index_lists_every_route(api_node: Any) -> None:
    async with api_node() as node:
        status, answer = await node.ask("GET", "/v1")
    assert status == 200
    listed = {(route["method"], route["path"]) for route in answer["data"]["routes"]}
    assert listed == {(route.method, path_of(route)) for route in routes()}


@pytest.mark.parametrize("role", [ServerState.FOLLOWER, ServerState.LEARNER])
async def test_a_node_that_does_not_lead_says_so_in_its_metrics(api_node: Any, role: ServerState) -> None:
    async with api_node() as node:
        node.raft.role = role
        async with node.http.get(f"{node.url}/metrics") as response:
            lines = (await response.text()).splitlines()
    assert "raftkit_is_leader 0.0" in lines
    assert f"raftkit_is_learner {float(role is ServerState.LEARNER)}" in lines


@pytest.mark.parametrize("field", ["peer", "client"])
async def test_members_are_not_set_to_addresses_that_would_not_be_taken(field: str, api_node: Any) -> None:
    """The request said where they are, the answer was 200, and they were somewhere else."""
    there = "http://127.0.0.1:1"
    async with api_node() as node:
        members = {"n1": {"peer": there, field: "http://127.0.0.1:2"}, "n2": {"peer": "http://127.0.0.1:3"}}
        status, answer = await node.ask("POST", "/v1/members/set", json={"members": members})
        assert (status, answer["error"]["code"]) == (400, "BAD_REQUEST")
        assert "n1 is at http://127.0.0.1:1, not at http://127.0.0.1:2" in answer["error"]["message"]
        assert node.raft.operations == []
        members["n1"][field] = there
        assert (await node.ask("POST", "/v1/members/set", json={"members": members}))[0] == 200
