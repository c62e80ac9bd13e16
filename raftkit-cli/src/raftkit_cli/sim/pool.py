"""Worker processes that run seeds. Every one is owned: it ends with the pool, whatever ends that.

Jobs and answers are lines of JSON on pipes; a worker also ends by itself when its input is closed.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from raftkit_cli.failures import CliError

if TYPE_CHECKING:
    from raftkit_core.testing.simulation.worker import Done, Job

JOB_SECONDS = 90.0
"""A seed that takes longer hangs: its worker is ended, and that is a violation (V10)."""


class Worker:
    """One process, and a thread that hands its answers on."""

    def __init__(self, answers: queue.Queue[tuple[Worker, bytes]], hash_seed: int) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raftkit_core.testing.simulation.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )
        self.job: Job | None = None
        self.since = 0.0
        self._errors = b""
        self._threads = [
            threading.Thread(target=self._read, args=(answers,), daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, answers: queue.Queue[tuple[Worker, bytes]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answers.put((self, line))
        answers.put((self, b""))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = (self._errors + line)[-4000:]

    def give(self, job: Job) -> None:
        assert self._process.stdin is not None
        self.job, self.since = job, time.monotonic()
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()

    def end(self) -> str:
        """End the process; gives the last line it complained with."""
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(1.0)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):  # what was not written is for nobody
                    stream.close()
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no message"


class WorkerPool:
    """Runs jobs on ``size`` processes, each with a hash seed of its own (from ``hash_seed`` on)."""

    def __init__(self, size: int, *, hash_seed: int = 1) -> None:
        self._answers: queue.Queue[tuple[Worker, bytes]] = queue.Queue()
        self._size = size
        self._hash_seed = hash_seed
        self._workers: list[Worker] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _start(self) -> Worker:
        worker = Worker(self._answers, self._hash_seed)
        self._hash_seed += 1
        self._workers.append(worker)
        return worker

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """The answers as they come, in no order. Jobs are taken from the iterable only when a worker is free."""
        from raftkit_core.testing.simulation.worker import Done

        waiting = iter(jobs)
        idle = [worker for worker in self._workers if worker.job is None]
        busy = 0
        while True:
            while idle or len(self._workers) < self._size:
                job = next(waiting, None)
                if job is None:
                    break
                worker = idle.pop() if idle else self._start()
                worker.give(job)
                busy += 1
            if not busy:
                return
            found = self._next()
            if found is None:
                continue
            worker, line = found
            job = worker.job
            if job is None:
                continue  # it ended while it had nothing to do
            busy -= 1
            worker.job = None
            if line:
                idle.append(worker)
                yield msgspec.json.decode(line, type=Done)
            else:
                self._workers.remove(worker)
                yield self._lost(worker, job)

    def _next(self) -> tuple[Worker, bytes] | None:
        """The next answer; an empty one for a worker that ended, or that was ended for being too slow."""
        try:
            return self._answers.get(timeout=1.0)
        except queue.Empty:
            now = time.monotonic()
            for worker in self._workers:
                if worker.job is not None and now - worker.since > JOB_SECONDS + worker.job.shrink_s:
                    worker.end()
            return None

    def _lost(self, worker: Worker, job: Job) -> Done:
        """A worker is gone in the middle of a job: for taking too long, or because of a defect of its own."""
        from raftkit_core.testing.simulation.report import SeedReport, Violation
        from raftkit_core.testing.simulation.worker import Done

        took = time.monotonic() - worker.since
        complaint = worker.end()
        if took < JOB_SECONDS:
            raise CliError(
                "SIM_WORKER",
                f"the process that ran seed {job.seed} of the {job.ring} ring ended: {complaint}",
                hint=f"run it alone: python -m raftkit_core.testing.simulation.worker, then {job.command or job.seed}",
            )
        violation = Violation("V10", f"V10: seed {job.seed} took longer than {JOB_SECONDS:g} s of real time")
        report = SeedReport(job.ring, job.seed, job.profile, violation, "", {}, 0.0, 0, 0)
        return Done(job.id, report)
