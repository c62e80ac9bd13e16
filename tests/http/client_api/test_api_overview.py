"""``/v1/cluster``, ``/v1/events`` and the page that shows them."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

from raftkit_core.types.membership import Membership, Node
from raftkit_http.api.ui import page


async def test_the_cluster_is_every_member_and_a_verdict_with_the_next_step(api_node: Any, fake_raft: Any) -> None:
    raft = fake_raft()
    nodes = {name: Node(f"http://127.0.0.1:{port}") for port, name in enumerate(("n1", "n2", "n3"), 1)}
    raft.membership = Membership.of([list(nodes)], nodes)
    async with api_node(raft) as node:
        status, document = await node.ask("GET", "/v1/cluster")
        data = document["data"]
        assert (status, document["schema"]) == (200, "raftkit.cluster/1")
        assert data["state"] == "no quorum"
        assert data["verdict"] == "1 of 3 voters answer, 2 needed; missing: n2, n3"
        assert data["next_step"] == "start n2 or n3"
        assert data["quorum"] == {"working": 1, "needed": 2, "voters": 3}
        assert [member["id"] for member in data["nodes"]] == ["n1", "n2", "n3"]
        assert data["nodes"][0]["status"]["role"] == "leader"
        assert data["nodes"][1]["status"] is None
        assert data["nodes"][1]["error"] == "connection refused"
        assert data["nodes"][1]["lag_entries"] == 2


async def test_only_newer_events_come_and_nonsense_is_refused(api_node: Any) -> None:
    async with api_node() as node:
        _, document = await node.ask("GET", "/v1/cluster?events_after=n1:2")
        assert [event["number"] for event in document["data"]["nodes"][0]["events"]] == [3]
        _, document = await node.ask("GET", "/v1/events?after=1&limit=1")
        assert document["data"]["events"] == [
            {"number": 2, "at_ms": 1002, "term": 1, "kind": "role", "message": "n1 leads"}
        ]
        for bad in ("n1", "n1:", "n1:-1", "n1:x", "%00:1", "n1:99999999999999999"):
            status, document = await node.ask("GET", f"/v1/cluster?events_after={bad}")
            assert (status, document["error"]["code"]) == (400, "BAD_REQUEST"), bad


async def test_the_page_runs_only_what_its_policy_names_and_talks_to_its_node_only(api_node: Any) -> None:
    async with api_node() as node, node.http.get(f"{node.url}/ui") as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert response.headers["X-Frame-Options"] == "DENY"


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page()[0].decode()
    addresses = set(re.findall(r"https?://[\w./-]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r'\s(src|style|on\w+)=["\']', text)
    assert "innerHTML" not in text
    assert "localStorage" not in text
    assert len(text) < 48 * 1024
