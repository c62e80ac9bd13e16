"""What costs nothing and needs no server: the entry point, options, formats, and who is dead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from raftkit_core.clock import SystemClock
from raftkit_core.errors import BadAdapterUrl, StorageCorrupt, UnknownOption
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.types.adapter import AdapterContext
from raftkit_core.types.entry import NORMAL, Entry
from raftkit_core.types.log_id import LogId
from raftkit_core.types.vote import LeaderId, Vote
from raftkit_redis import codec
from raftkit_redis.holder import Holder, is_known_dead, this_process
from raftkit_redis.options import RedisOptions

CONTEXT = AdapterContext("n1", clock=SystemClock(), cluster="shop")


def options(text: str) -> RedisOptions:
    return RedisOptions.from_url(AdapterUrl.parse(text), CONTEXT)


def test_loading_the_plugin_imports_no_driver() -> None:
    code = "import raftkit_redis.plugin, sys; print([m for m in ('redis', 'asyncio', 'msgspec') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_a_url_says_where_and_how() -> None:
    found = options("rediss://u:pw@h:7000/2?prefix=n1&durability=relaxed&takeover&timeout_ms=2s&ca=/c.pem")
    assert (found.host, found.port, found.database, found.tls, found.ca) == ("h", 7000, 2, True, "/c.pem")
    assert (found.durability, found.takeover, found.timeout_s) == ("relaxed", True, 2.0)
    assert (found.username, found.read_password()) == ("u", "pw")
    assert (found.meta_key, found.log_key) == ("{n1}:meta", "{n1}:log")
    assert "pw" not in repr(found)
    assert found.location == "rediss://h:7000/2?prefix=n1"


def test_without_a_prefix_cluster_and_node_name_the_keys() -> None:
    assert options("redis:").meta_key == "{raftkit:shop/default/n1}:meta"
    assert options("redis:").location == "redis://127.0.0.1:6379/0?prefix=raftkit:shop/default/n1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://h/x", "not a database number"),
        ("redis://h/0?prefix=a{b}", "cannot start a key"),
        ("redis://h/0?durability=maybe", "durability"),
        ("redis://h/0?ca=/x", "need TLS"),
        ("redis://:a@h/0?password_env=B", "more than one password"),
        ("redis://h/0?timeout_ms=0", "at least 1 ms"),
    ],
)
def test_a_bad_url_is_told_before_anything_is_connected(url: str, words: str) -> None:
    with pytest.raises(BadAdapterUrl, match=words):
        options(url)


def test_an_unknown_option_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownOption, match="did you mean 'durability'") as caught:
        options("redis://h/0?durabilty=strict")
    assert "takeover" in str(caught.value.hint)


def test_the_format_of_entry_and_vote_is_pinned() -> None:
    entry = Entry(LogId(LeaderId(3, "n1"), 258), 70, NORMAL, b"\x00x")
    assert codec.encode_entry(entry).hex() == "aeb5c98494929203a26e31cd01024601c4020078"
    assert codec.encode_vote(Vote(LeaderId(3, "n1"), True)).hex() == "66fa4336929203a26e31c3"


def test_an_entry_at_another_index_is_damage() -> None:
    blob = codec.encode_entry(Entry(LogId(LeaderId(3, "n1"), 5), 70, NORMAL, b"x"))
    assert codec.decode_entry(blob, 5).payload == b"x"
    with pytest.raises(StorageCorrupt, match="entry 6"):
        codec.decode_entry(blob, 6)


def test_a_vote_in_the_place_of_another_value_is_damage() -> None:
    with pytest.raises(StorageCorrupt, match="purged"):
        codec.decode_log_id("purged", codec.encode_vote(Vote(LeaderId(3, "n1"), True)))


def test_only_a_process_known_to_be_gone_counts_as_dead() -> None:
    me = this_process(CONTEXT)
    change = msgspec.structs.replace
    gone = change(me, pid=2**22 + 7)  # beyond what Linux gives out
    assert not is_known_dead(me, me)
    assert is_known_dead(gone, me)
    assert not is_known_dead(change(gone, host="elsewhere"), me)
    assert not is_known_dead(change(gone, pid_space="pid:[1]"), me)
    assert not is_known_dead(change(gone, machine_id="another"), me)
    if me.process_start:
        assert is_known_dead(change(me, process_start="1"), me), "the pid was given to another process"
    rebooted = change(me, boot_id="before", machine_id="m")
    assert is_known_dead(rebooted, change(me, machine_id="m"))
    assert not is_known_dead(Holder("n1", 1, "elsewhere", "now"), me)
    assert Path("/proc").exists() == bool(me.process_start)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_loader_finds_both_schemes_by_name(scheme: str) -> None:
    from raftkit_core.plugins.loaded import load_plugins

    log = load_plugins().log_storage(f"{scheme}://h:7000/1?prefix=n1", CONTEXT)
    assert repr(log) == f"RedisLogStorage('{scheme}://h:7000/1?prefix=n1')"
