"""``raftkit demo`` passes 50 times in a row. Resumable; prints as it goes; about 8 minutes.

uv run pytest -m soak tests/soak/test_demo_50_times.py -n 0 -s
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from ledger import Ledger, percentile, say

RUNS = 50


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_demo_passes_50_times_in_a_row() -> None:
    ledger = Ledger("demo")
    while len(ledger.rounds) < RUNS:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "raftkit_cli", "demo", "--json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONWARNINGS": "default"},
        )
        seconds = time.monotonic() - started
        assert done.returncode == 0, f"run {len(ledger.rounds) + 1} failed:\n{done.stdout}\n{done.stderr}"
        document = json.loads(done.stdout.splitlines()[-1])
        assert document["schema"] == "raftkit.demo/1"
        assert document["ok"] is True
        data = document["data"]
        assert data["acknowledged"] >= 200
        assert data["lost"] == 0
        ledger.add({"seconds": round(seconds, 2), "acknowledged": data["acknowledged"], "lost": data["lost"]})
        say(f"demo {len(ledger.rounds)}/{RUNS}: PASS in {seconds:.1f} s")
    took = [entry["seconds"] for entry in ledger.rounds]
    say(f"demo: {RUNS} of {RUNS} PASS; median {percentile(took, 0.5):.1f} s, longest {max(took):.1f} s\n")
    assert sum(entry["lost"] for entry in ledger.rounds) == 0
