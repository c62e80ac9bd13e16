"""The format ``raftkit-backup/1``: its bytes are pinned, and every damage is found before anything is used."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from raftkit_core.errors import StorageCorrupt, StorageError
from raftkit_core.offline.archive import BackupFile, BackupHeader, BackupWriter, NewFile
from raftkit_core.storage.interface import LogState
from raftkit_core.types.entry import BLANK, NORMAL, Entry
from raftkit_core.types.identity import StoreIdentity
from raftkit_core.types.log_id import LogId
from raftkit_core.types.membership import Membership, Node, StoredMembership
from raftkit_core.types.snapshot import SnapshotMeta
from raftkit_core.types.vote import LeaderId, Vote

GOLDEN = Path(__file__).parent.parent / "golden" / "raftkit-backup-1.hex"
SNAPSHOT = b"raftkit-snapshot/1 and so on"


def at(index: int) -> LogId:
    return LogId(LeaderId(3, "n2"), index)


HEADER = BackupHeader(
    identity=StoreIdentity("n1", "ab" * 16, "demo", cluster_id="cd" * 16, machine="kv/1", largest_lease_ms=500),
    state=LogState(Vote(LeaderId(4, "n1")), at(8), at(6), at(9)),
    snapshot=SnapshotMeta(
        at(7),
        StoredMembership(at(2), Membership.of([["n1"]], {"n1": Node("memory:n1", store_id="ab" * 16)})),
        "7-a1",
        700,
        len(SNAPSHOT),
        "c0d7e23af296f6a1ddddc171415aecc79414918cb853df83d4f1fb22f3bd7114",
    ),
    source="/data/n1/raft.db",
    version="0.1.0",
    created_ms=1_700_000_000_000,
)
ENTRIES = [Entry(at(7), 700, BLANK, b""), Entry(at(8), 800, NORMAL, b"eight"), Entry(at(9), 900, NORMAL, b"nine")]


def write(
    path: Path, header: BackupHeader = HEADER, entries: list[Entry] = ENTRIES, snapshot: bytes = SNAPSHOT
) -> bytes:
    with NewFile(path) as file:
        writer = BackupWriter(file, header)
        writer.entries(entries[:2])
        writer.entries(entries[2:])
        writer.snapshot(snapshot[:10])
        writer.snapshot(snapshot[10:])
        writer.end()
        file.finish()
    return path.read_bytes()


def test_the_format_is_the_golden_file_s(tmp_path: Path) -> None:
    golden = bytes.fromhex("".join(GOLDEN.read_text().split()))
    assert write(tmp_path / "n1.backup").hex(" ", 4) == golden.hex(" ", 4)
    backup = BackupFile(tmp_path / "n1.backup")
    backup.check()
    assert backup.header == HEADER
    assert [entry for batch in backup.entries() for entry in batch] == ENTRIES
    assert b"".join(backup.snapshot()) == SNAPSHOT
    assert (backup.size_bytes, backup.header.entries) == (len(golden), 3)


def test_every_changed_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    data = write(tmp_path / "whole")
    path = tmp_path / "damaged"
    for position in [*range(40), *range(40, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :])
        with pytest.raises(StorageCorrupt):
            BackupFile(path).check()
    for length in [*range(40), *range(40, len(data), 11), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(StorageCorrupt):
            BackupFile(path).check()
    path.write_bytes(data + b"\0")
    with pytest.raises(StorageCorrupt):
        BackupFile(path).check()


def test_entries_that_are_not_those_of_the_header_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "gap", entries=[ENTRIES[0], ENTRIES[2]])
    write(tmp_path / "short", entries=ENTRIES[:2])
    write(tmp_path / "other", snapshot=SNAPSHOT[::-1])
    for name in ("gap", "short", "other"):
        with pytest.raises(StorageCorrupt):
            BackupFile(tmp_path / name).check()


def test_nothing_is_overwritten_and_half_a_file_never_gets_the_name(tmp_path: Path) -> None:
    path = tmp_path / "n1.backup"
    with NewFile(path) as file:
        file.write(b"half")  # and then it broke off: it was not finished
    assert os.listdir(tmp_path) == []
    write(path)
    with pytest.raises(StorageError, match="nothing is overwritten"):
        write(path)


def test_two_writers_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / "n1.backup"
    with NewFile(path) as file:
        file.write(b"mine")
        path.write_bytes(b"theirs")
        with pytest.raises(StorageError):
            file.finish()
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["n1.backup"]


def test_a_disk_without_hard_links_takes_a_backup_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "n1.backup"
    with NewFile(path) as file:
        file.write(b"all of it")
        file.finish()
    assert path.read_bytes() == b"all of it"
    assert os.listdir(tmp_path) == ["n1.backup"]
    with NewFile(tmp_path / "late") as file:
        file.write(b"new")
        (tmp_path / "late").write_bytes(b"somebody was quicker")
        with pytest.raises(StorageError):
            file.finish()
    assert (tmp_path / "late").read_bytes() == b"somebody was quicker"
