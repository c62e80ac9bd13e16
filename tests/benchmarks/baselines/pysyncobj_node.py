"""One PySyncObj node: ``ADDRESS OTHERS OPTIONS``, driven like ours. Its client is in its own process, its cheapest way.

Options (JSON): ``batch``, ``tick`` and ``period`` seconds. The journal is left out: 0.3.17 never syncs it, so it would
promise no more than memory does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated


class KeyValues(SyncObj):
    def __init__(self, address: str, others: list[str], conf: SyncObjConf) -> None:
        super().__init__(address, others, conf)
        self.cells: dict[str, str] = {}

    @replicated
    def put(self, key: str, value: str) -> None:
        self.cells[key] = value


def conf_of(options: dict[str, Any], **more: Any) -> SyncObjConf:
    return SyncObjConf(
        appendEntriesUseBatch=options["batch"],
        appendEntriesPeriod=options["period"],
        autoTickPeriod=options["tick"],
        logCompactionMinEntries=10**9,
        logCompactionMinTime=10**9,
        commandsQueueSize=10**6,
        **more,
    )


def write(node: KeyValues, outstanding: int, seconds: float, value: str) -> dict[str, Any]:
    """A closed loop of so many callers, by callbacks."""
    latencies: list[float] = []
    finished = threading.Event()
    clock = time.perf_counter
    active = outstanding
    started = clock()
    end = started + seconds

    def issue(number: int) -> None:
        begin = clock()

        def done(result: Any, reason: int) -> None:
            nonlocal active
            now = clock()
            if reason == FAIL_REASON.SUCCESS:
                latencies.append(now - begin)
            if now < end:
                issue(number)
            else:
                active -= 1
                if not active:
                    finished.set()

        node.put(f"key{number:05d}", value, callback=done)

    for number in range(outstanding):
        issue(number)
    finished.wait(seconds + 20)
    took = clock() - started
    latencies.sort()
    count = len(latencies)
    return {
        "value": count / took,
        "p50_ms": latencies[count // 2] * 1000 if count else None,
        "p99_ms": latencies[int(count * 0.99)] * 1000 if count else None,
    }


def main(address: str, others: str, options: str) -> None:
    node = KeyValues(address, others.split(","), conf_of(json.loads(options), autoTick=True))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "status":
            leader = node._getLeader()
            answer: dict[str, Any] = {"leader": None if leader is None else str(leader)}
        elif order["do"] == "write":
            answer = write(node, order["outstanding"], order["seconds"], "v" * (order["payload"] - 12))
        else:
            break
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:4])
