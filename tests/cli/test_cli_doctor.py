"""``raftkit doctor``: what is wrong is an error with a hint, what a plugin checks is looked at too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raftkit_cli import health
from raftkit_core import hookimpl
from raftkit_core.plugins import DoctorCheck, DoctorFinding


def findings(document: Any, check: str) -> list[tuple[str, str]]:
    return [(item["level"], item["message"]) for item in document["data"]["findings"] if item["check"] == check]


def test_a_sound_installation_is_told_in_words(raftkit: Any) -> None:
    result = raftkit("doctor", "--data-dir", "here")
    assert result.exit_code == 0, result.stdout
    for expected in ("ok       packages: raftkit-core", "ok       plugins: active: ", " ms (the middle of 21)"):
        assert expected in result.stdout
    assert not Path("here").exists(), "nothing is made"
    assert list(Path().iterdir()) == []


def test_versions_that_differ_and_the_foreign_package_are_named(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"raftkit-core": "0.1.0", "raftkit-cli": "0.2.0", "raftkit": "0.1.0"}
    monkeypatch.setattr(health, "installed", numbers.get)
    document = raftkit.json("doctor", code=5)
    assert document["error"]["message"] == "versions differ: raftkit-core 0.1.0, raftkit-cli 0.2.0"
    assert "pip install --upgrade raftkit-core raftkit-cli" in document["error"]["hint"]
    assert ("warning", "the package raftkit 0.1.0 is another project") in findings(document, "packages")


def test_a_folder_that_cannot_be_written_is_an_error(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_place: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(health, "_sync_ms", refuse)
    document = raftkit.json("doctor", "--data-dir", "n1", code=5)
    assert "cannot be written: Permission denied" in document["error"]["message"]
    assert "--data-dir" in document["error"]["hint"]


def test_a_slow_disk_little_room_and_open_rights_are_warnings(raftkit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("n1").mkdir(mode=0o755)
    monkeypatch.setattr(health, "_sync_ms", lambda place: 55.0)
    monkeypatch.setattr(health, "FREE_BYTES_MIN", 1 << 62)
    told = findings(raftkit.json("doctor", "--data-dir", "n1"), "folder")
    assert [level for level, _ in told] == ["warning"] * 3
    assert "55 ms" in told[0][1]


class _Checks:
    @hookimpl
    def raftkit_doctor_checks(self) -> Iterable[DoctorCheck]:
        return [DoctorCheck("mine", _mine), DoctorCheck("hasty", _hasty)]


def _mine(data_dir: Path | None) -> Iterator[DoctorFinding]:
    yield DoctorFinding("warning", f"folder {data_dir}", hint="mend it")


def _hasty(_data_dir: Path | None) -> Iterable[DoctorFinding]:
    raise RuntimeError("no such thing")


def test_checks_of_plugins_are_run_and_one_that_breaks_is_a_finding(raftkit: Any) -> None:
    raftkit.plugins = (*raftkit.plugins, _Checks())
    document = raftkit.json("doctor", "--data-dir", "n1", code=5)
    assert findings(document, "mine") == [("warning", "folder n1")]
    assert findings(document, "hasty") == [("error", "the check itself failed: RuntimeError: no such thing")]
    result = raftkit("doctor")
    assert "warning  mine: folder None\n         Try:   mend it\n" in result.stdout
    assert "[CHECK_FAILED]" in result.stderr
