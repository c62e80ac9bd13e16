"""Commands as somebody runs them who has no checkout: nothing of this run's environment reaches them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

OURS = ("RAFTKIT_", "PYTHON", "VIRTUAL_ENV", "COV_", "PYTEST_")


def run(*command: str | Path, cwd: Path, seconds: float, **variables: str) -> str:
    """What it printed. Raises: AssertionError with all it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | variables
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-4000:]}"
    return done.stdout
