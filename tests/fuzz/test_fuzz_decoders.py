"""Nothing but the typed error comes out of a decoder, whatever goes in; what is accepted is encoded to the same again.

A share of the inputs runs with every test run; ``-m fuzz`` runs more than a million (CONTRIBUTING). One input again:
``RAFTKIT_FUZZ=TARGET:NUMBER``.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from random import Random

import msgspec
import pytest
from mutate import made_by
from targets import TARGETS, Target

from raftkit_core.network import wire
from raftkit_core.network.wire import REQUEST_TYPES

ROOT = Path(__file__).resolve().parents[2]
SHARE = 400
"""Inputs of one target in every test run."""
MANY = 25_000
"""Inputs of one target in the long suite: with all targets more than a million."""
SLOW_SECONDS = 1.0
"""No input may take longer than that: a small one that does is an attack by itself."""


def run(name: str, target: Target, numbers: range) -> tuple[int, int]:
    """How many inputs were refused and how many accepted."""
    refused = accepted = 0
    for number in numbers:
        random = Random(f"{name}/{number}")
        data = made_by(random, target.structured, random.choice(target.seeds))
        began = time.perf_counter()
        try:
            target.decode(data)
            accepted += 1
        except target.allowed:
            refused += 1
        except BaseException as error:
            pytest.fail(f"RAFTKIT_FUZZ={name}:{number} ({data[:200]!r}): {type(error).__name__}: {error}")
        assert time.perf_counter() - began < SLOW_SECONDS, f"RAFTKIT_FUZZ={name}:{number} is slow"
    return refused, accepted


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_accepted(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].decode(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_only_the_typed_error_comes_out(name: str) -> None:
    """T10, N9."""
    single = os.environ.get("RAFTKIT_FUZZ", "")
    if single.startswith(f"{name}:"):
        number = int(single.rpartition(":")[2])
        run(name, TARGETS[name], range(number, number + 1))
        return
    refused, accepted = run(name, TARGETS[name], range(SHARE))
    assert refused or not TARGETS[name].allowed, "no input was wrong: the mutations do not reach this decoder"
    assert accepted, "every input was wrong: the mutations go no deeper than the first byte"


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_only_the_typed_error_comes_out_of_many(name: str) -> None:
    run(name, TARGETS[name], range(SHARE, SHARE + MANY))


def test_the_long_suite_has_more_than_a_million_inputs() -> None:
    assert MANY * len(TARGETS) >= 1_000_000


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_what_is_accepted_is_the_same_when_it_is_encoded_again(kind: wire.Kind) -> None:
    name = "wire.append" if kind is wire.Kind.APPEND_ENTRIES else f"wire.request.{kind.name.lower()}"
    target = TARGETS[name]
    for number in range(SHARE // 4):
        random = Random(f"again/{name}/{number}")
        data = made_by(random, target.structured, random.choice(target.seeds))
        try:
            message = wire.decode_request(kind, data)
        except wire.FrameError:
            continue
        assert wire.decode_request(kind, wire.encode_request(kind, message)) == message


def test_every_decoder_of_the_sources_is_fuzzed_or_named_here() -> None:
    """A new decoder appears here, with the target that reaches it, or why there is none."""
    reached = {
        "raftkit-core/src/raftkit_core/runtime/operations.py": "the body of a forward: refused as BadRequest, as api.*",
        "raftkit-core/src/raftkit_core/state_machine/system.py": "a snapshot's system section: sessions.records",
        "raftkit-core/src/raftkit_core/state_machine/simple.py": "a snapshot of the user's own state",
        "raftkit-core/src/raftkit_core/state_machine/interface.py": "kv.command",
        "raftkit-core/src/raftkit_core/state_machine/sessions.py": "sessions.records",
        "raftkit-core/src/raftkit_core/state_machine/system_commands.py": "system.command",
        "raftkit-core/src/raftkit_core/storage/snapshot_format.py": "snapshot.container",
        "raftkit-core/src/raftkit_core/offline/": "files an operator names, read while no node runs",
        "raftkit-core/src/raftkit_core/types/entry.py": "entry.*",
        "raftkit-core/src/raftkit_core/network/wire.py": "wire.*",
        "raftkit-core/src/raftkit_core/testing/": "files of the tests",
        "raftkit-core/src/raftkit_core/offline/archive.py": "a backup: behind a checksum and a digest, tests/offline",
        "raftkit-cli/src/raftkit_cli/": "files the command line wrote itself, and answers of client.answer",
        "raftkit-http/src/raftkit_http/": "api.*, socket.frame, client.answer, client.watch",
        "raftkit-redis/src/raftkit_redis/": "redis.*",
        "raftkit-sqlite/src/raftkit_sqlite/": "behind a checksum, as redis.*",
    }
    pattern = re.compile(r"(msgpack|json)\.(decode|Decoder)\b|json\.loads")
    missing = [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("raftkit-*/src/**/*.py"))
        if pattern.search(path.read_text())
        and not any(str(path.relative_to(ROOT)).startswith(known) for known in reached)
    ]
    assert missing == []
    assert msgspec


class Canary:
    """What a pickle would run if anybody loaded it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (CANARY,)


CANARY = "raftkit-canary-of-a-pickle"


@pytest.mark.parametrize("name", TARGETS)
def test_a_pickle_is_never_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T1."""
    import pickle

    monkeypatch.chdir(tmp_path)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(Canary(), protocol)
        for payload in (data, msgspec.msgpack.encode(data), msgspec.json.encode(data)):
            try:
                TARGETS[name].decode(payload)
            except TARGETS[name].allowed:
                continue
    assert not Path(CANARY).exists()
