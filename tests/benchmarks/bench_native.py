"""Whole writes of three nodes in one process, in memory: this Python, and one whose raftkit-core is native code.

    python tests/benchmarks/bench_native.py --native PYTHON

Runs in turns, on asyncio and on uvloop where both Pythons have it. Prints writes per second, and what that is of the
bare replicator's on the same loop (docs/accelerators.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases.in_process import bare_run, raftkit_run

LOOPS = ("asyncio", "uvloop")
RUN_S = 60


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    return None if name == "asyncio" else import_module(name).new_event_loop


def once(what: str, loop: str, outstanding: int, seconds: float, payload: int) -> dict[str, Any]:
    """One run, in this process."""
    run = bare_run if what == "bare" else raftkit_run
    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        sample = runner.run(run(outstanding, seconds, payload))
    return {"value": sample.value, "p50_ms": sample.p50_ms, "p99_ms": sample.p99_ms}


def command(python: str, what: str, loop: str, outstanding: int, seconds: float, payload: int = 100) -> list[str]:
    """What makes one run in a process of its own and says what :func:`once` gives, as JSON."""
    run = (what, loop, str(outstanding), str(seconds), str(payload))
    return [python, str(Path(__file__).resolve()), "--once", *run]


def elsewhere(python: str, what: str, loop: str, outstanding: int, seconds: float) -> float:
    done = subprocess.run(
        command(python, what, loop, outstanding, seconds), check=True, capture_output=True, timeout=RUN_S
    )
    return float(json.loads(done.stdout)["value"])


def has_uvloop(python: str) -> bool:
    return subprocess.run([python, "-c", "import uvloop"], capture_output=True, timeout=RUN_S).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--native", metavar="PYTHON", help="a Python with the native wheel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="length of one run")
    parser.add_argument("--outstanding", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument(
        "--once", nargs=5, metavar="ARGUMENT", help="what, loop, outstanding, seconds, bytes: one run, as JSON"
    )
    arguments = parser.parse_args()
    if arguments.once is not None:
        what, loop, outstanding, seconds, payload = arguments.once
        print(json.dumps(once(what, loop, int(outstanding), float(seconds), int(payload))))
        return
    pythons = {"pure": sys.executable} | ({"native": arguments.native} if arguments.native else {})
    loops = [loop for loop in LOOPS if loop == "asyncio" or all(map(has_uvloop, pythons.values()))]
    columns = [("bare", loop) for loop in loops] + [(name, loop) for loop in loops for name in pythons]
    print(f"{'':>11}" + "".join(f"{name + ', ' + loop:>24}" for name, loop in columns))
    for outstanding in arguments.outstanding:
        found: dict[tuple[str, str], list[float]] = {column: [] for column in columns}
        for _ in range(arguments.rounds):
            for name, loop in columns:
                python = pythons.get(name, sys.executable)
                what = "bare" if name == "bare" else "raftkit"
                found[name, loop].append(elsewhere(python, what, loop, outstanding, arguments.seconds))
        medians = {column: statistics.median(values) for column, values in found.items()}
        cells = [
            f"{medians[name, loop]:,.0f} ({medians[name, loop] / medians['bare', loop]:.3f})" for name, loop in columns
        ]
        print(f"{outstanding:>11}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
