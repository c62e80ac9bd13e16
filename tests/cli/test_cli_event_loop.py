"""Which event loop a node runs on: uvloop where it is installed, asyncio everywhere.

What needs uvloop skips without it: ``uv run --group fast pytest -m process -n 0 tests/cli/test_cli_event_loop.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from raftkit_cli import event_loop
from raftkit_cli.cluster.layout import free_ports
from raftkit_cli.event_loop import INSTALL, loop_factory
from raftkit_core.errors import ConfigError


def _new_loop() -> asyncio.AbstractEventLoop:
    """Stands for uvloop's in tests that choose a loop and start none: to call it is a mistake of the test."""
    raise NotImplementedError("only its name matters here")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("uvloop")
    module.__spec__ = ModuleSpec("uvloop", None)
    module.__dict__["new_event_loop"] = _new_loop
    monkeypatch.setitem(sys.modules, "uvloop", module)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loop, "find_spec", lambda _name: None)


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is for Unix")
@pytest.mark.usefixtures("installed")
def test_uvloop_is_taken_where_it_is_installed_and_wanted() -> None:
    assert loop_factory("auto") is _new_loop
    assert loop_factory("uvloop") is _new_loop
    assert loop_factory("asyncio") is None


@pytest.mark.usefixtures("missing")
def test_nothing_needs_uvloop_unless_it_is_asked_for_by_name() -> None:
    assert loop_factory("auto") is None
    assert loop_factory("asyncio") is None
    with pytest.raises(ConfigError, match="not installed") as caught:
        loop_factory("uvloop")
    assert caught.value.hint == INSTALL


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("name", "value"), [("platform", "win32"), ("implementation", ModuleType("pypy"))])
def test_other_platforms_never_try(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    if isinstance(value, ModuleType):
        value.__dict__["name"] = "pypy"
    monkeypatch.setattr(event_loop.sys, name, value)
    assert loop_factory("auto") is None
    with pytest.raises(ConfigError, match="CPython on Unix"):
        loop_factory("uvloop")


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is for Unix")
def test_a_broken_uvloop_stops_only_who_named_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError('made for another Python')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    assert loop_factory("auto") is None
    with pytest.raises(ConfigError, match="made for another Python"):
        loop_factory("uvloop")


# --- real nodes -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def node(folder: Path, *words: str, network: str) -> Iterator[subprocess.Popen[str]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAFTKIT_")}
    command = [sys.executable, "-m", "raftkit_cli", "node", "run", "--id", "n1", "--network", network, *words]
    with subprocess.Popen(
        [*command, "--initial-cluster", f"n1={network}"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=folder,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(process: subprocess.Popen[str], word: str) -> str:
    """The line that says ``word``."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return line
    raise AssertionError(f"it ended without saying {word!r}")


def raftkit(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "raftkit_cli", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, timeout=30).stdout


@pytest.mark.process
@pytest.mark.parametrize(("choice", "is_uvloop"), [("auto", True), ("uvloop", True), ("asyncio", False)])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_node_serves_and_ends_in_order(tmp_path: Path, choice: str, is_uvloop: bool, end: signal.Signals) -> None:
    if is_uvloop:
        pytest.importorskip("uvloop", reason="needs uvloop: uv run --group fast pytest …")
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with node(tmp_path, "--loop", choice, network=url) as process:
        assert ("uvloop" in until(process, "starting:")) == is_uvloop
        until(process, "LEADER")
        raftkit(tmp_path, "-e", url, "kv", "put", "key", "value")
        assert raftkit(tmp_path, "-e", url, "kv", "get", "key").strip() == "value"
        process.send_signal(end)
        assert process.wait(15) == 0


@pytest.mark.process
def test_a_node_on_uvloop_ends_with_its_parent(tmp_path: Path) -> None:
    pytest.importorskip("uvloop", reason="needs uvloop: uv run --group fast pytest …")
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with node(tmp_path, "--loop", "uvloop", "--tied", network=url) as process:
        until(process, "ready:")
        assert process.stdin is not None
        process.stdin.close()
        until(process, "end of the parent process")
        assert process.wait(15) == 0
