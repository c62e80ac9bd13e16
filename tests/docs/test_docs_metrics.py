"""docs/metrics.md names every metric a node serves, with its type and labels, and no other.

uv run python tests/docs/test_docs_metrics.py    # prints the table
"""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from raftkit_core.network.client import NodeStatus, PeerStatus, StorageStatus
from raftkit_core.runtime.figures import NodeFigures
from raftkit_core.types.metrics import NodeCounters
from raftkit_http.api.metrics import ApiMetrics, Measured

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.+) \|$", re.MULTILINE)


def served() -> list[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of everything a node with a peer serves."""
    figures = NodeFigures()
    figures.called("append_entries", "n2", 0.01, True)
    figures.called("append_entries", "n2", 0.01, False)
    metrics = ApiMetrics()
    metrics.request("/v1/kv", 200)
    metrics.proposal(0.01)
    metrics.proposal_failed("NO_QUORUM")
    status = NodeStatus(
        id="n1",
        cluster="demo",
        last_log_index=9,
        committed=9,
        applied=9,
        snapshot=3,
        purged=2,
        millis_since_quorum_ack=1,
        millis_since_leader_contact=1,
        storage=StorageStatus(adapter="sqlite"),
        replication={"n2": PeerStatus(matching=9, last_contact_ms=4)},
    )
    text = metrics.expose(status, Measured(NodeCounters(), figures, False, 0, 0)).decode()
    found = []
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.append((name, family.type, ", ".join(labels), family.documentation))
    return sorted(found)


def test_the_page_names_what_is_served_and_nothing_else() -> None:
    documented = [(name, kind, labels.strip(), text) for name, kind, labels, text in ROW.findall(PAGE.read_text())]
    assert sorted(documented) == served()


def test_every_name_has_the_prefix_and_counters_end_in_total() -> None:
    for name, kind, _, _ in served():
        assert name.startswith("raftkit_")
        assert name.endswith("_total") == (kind == "counter")


if __name__ == "__main__":
    for row in served():
        print("| `{}` | {} | {} | {} |".format(*row))
