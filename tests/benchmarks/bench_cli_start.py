"""How long ``raftkit --help`` takes: the median of some warm starts.

    python tests/benchmarks/bench_cli_start.py [--raftkit PATH] [--starts 5]

``--raftkit`` names the command of an environment made from wheels; without it, the one beside this Python. Prints, and
fails for nothing: figures depend on the machine. What keeps the start quick is asserted in ``tests/cli``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BUDGET_MS = 200


def start_ms(command: str) -> float:
    begin = time.perf_counter()
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raftkit", default=str(Path(sys.executable).with_name("raftkit")))
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    start_ms(arguments.raftkit)  # the first one compiles and fills caches
    starts = [start_ms(arguments.raftkit) for _ in range(arguments.starts)]
    median = statistics.median(starts)
    verdict = "within" if median <= BUDGET_MS else "ABOVE"
    shown = " ".join(f"{start:.0f}" for start in starts)
    print(f"raftkit --help: median {median:.0f} ms of {shown} ({verdict} the budget of {BUDGET_MS} ms)")


if __name__ == "__main__":
    main()
