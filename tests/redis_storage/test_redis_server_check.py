"""A server that may forget is refused at open, with the setting to change."""

from __future__ import annotations

from typing import Any

import pytest

from raftkit_core.errors import StorageError
from raftkit_core.storage.interface import LogBatch
from raftkit_core.types.vote import LeaderId, Vote


async def refusal(store: Any, *options: str) -> StorageError:
    with pytest.raises(StorageError) as caught:
        async with store.opened(*options):
            pass
    return caught.value


async def test_each_unsafe_setting_is_refused_with_the_command_that_corrects_it(redis_server: Any, store: Any) -> None:
    has_waitaof = redis_server.has_waitaof()
    unsafe = [
        ("appendfsync", "no", "always", "appendfsync is no"),
        ("maxmemory-policy", "allkeys-lru", "noeviction", "maxmemory-policy is allkeys-lru"),
        ("proto-max-bulk-len", "1048576", "536870912", "at most 1048576 bytes"),
        ("appendonly", "no", "yes", "appendonly is no"),
    ]
    if not has_waitaof:
        unsafe += [
            ("appendfsync", "everysec", "always", "appendfsync is everysec"),
            ("no-appendfsync-on-rewrite", "yes", "no", "no-appendfsync-on-rewrite is yes"),
        ]
    for name, bad, good, words in unsafe:
        redis_server.command("CONFIG", "SET", name, bad)
        try:
            error = await refusal(store)
        finally:
            redis_server.command("CONFIG", "SET", name, good)
        assert words in error.message
        assert error.hint is not None
        assert f"CONFIG SET {name} {good}" in error.hint
    async with store.opened():
        pass


async def test_everysec_is_served_where_waitaof_can_wait_for_the_flush(start_redis: Any, store_at: Any) -> None:
    server = start_redis(appendfsync="everysec")
    if not server.has_waitaof():
        pytest.skip("this server has no WAITAOF")
    store = store_at(server)
    async with store.opened() as log:
        await log.write(LogBatch(vote=Vote(LeaderId(1, "n1"))))
        assert (await log.info()).durability == "WAITAOF"
        server.kill()
        server.start()
        assert (await log.read_state()).vote == Vote(LeaderId(1, "n1"))


async def test_relaxed_accepts_a_server_without_a_file_and_says_so(start_redis: Any, store_at: Any) -> None:
    server = start_redis(appendonly="no")
    async with store_at(server).opened("durability=relaxed") as log:
        await log.write(LogBatch(vote=Vote(LeaderId(1, "n1"))))
        assert (await log.info()).durability.startswith("relaxed")


async def test_a_setting_changed_later_is_noticed_by_counting_waitaof(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    if not server.has_waitaof():
        pytest.skip("this server has no WAITAOF")
    async with store_at(server).opened() as log:
        server.command("CONFIG", "SET", "appendonly", "no")
        with pytest.raises(StorageError, match="cannot tell whether a write is on disk"):
            await log.write(LogBatch(vote=Vote(LeaderId(1, "n1"))))


async def test_replicas_and_cluster_nodes_are_refused(start_redis: Any, store_at: Any, redis_server: Any) -> None:
    replica = start_redis(replicaof=f"127.0.0.1 {redis_server.port}")
    assert "is a replica" in (await refusal(store_at(replica), "durability=relaxed")).message
    clustered = start_redis(cluster_enabled="yes")
    error = await refusal(store_at(clustered), "durability=relaxed")
    assert "Cluster node" in error.message
    assert "standalone" in str(error.hint)


async def test_a_server_watched_by_a_sentinel_is_refused(start_redis: Any, store_at: Any) -> None:
    import redis

    server = start_redis()
    with redis.Redis(port=server.port) as client, client.pubsub() as subscription:
        subscription.subscribe("__sentinel__:hello")  # as every Sentinel does
        subscription.get_message(timeout=1)
        assert "watched by a Sentinel" in (await refusal(store_at(server))).message


async def test_keys_of_another_kind_are_refused_and_kept(store: Any, redis_server: Any) -> None:
    meta, log = f"{{{store.prefix}}}:meta", f"{{{store.prefix}}}:log"
    redis_server.command("SET", meta, "mine")
    assert "a string" in (await refusal(store)).message
    assert redis_server.command("GET", meta) == b"mine"
    redis_server.command("DEL", meta)
    redis_server.command("HSET", meta, "name", "mine")
    assert "neither is ours" in (await refusal(store)).message
    redis_server.command("DEL", meta)
    redis_server.command("RPUSH", log, "mine")
    assert "damaged or gone" in (await refusal(store)).message
    assert redis_server.command("LRANGE", log, 0, -1) == [b"mine"]


async def test_a_wrong_password_is_told_without_it(start_redis: Any, store_at: Any, monkeypatch: Any) -> None:
    server = start_redis(requirepass="right-pw")
    store = store_at(server)
    assert "refuses the user name or password" in (await refusal(store)).message
    store.url_before = store.url
    monkeypatch.setattr(store, "url", lambda *options: store.url_before(*options).replace("//", "//:wrong-pw@"))
    log = store.make()
    error = await refusal(store)
    for text in (str(error), repr(error), error.hint, repr(log), repr(vars(log)), repr(error.__cause__)):
        assert "wrong-pw" not in str(text)
    monkeypatch.undo()
    monkeypatch.setenv("LOG_PW", "right-pw")
    async with store.opened("password_env=LOG_PW") as log:
        info = await log.info()
        assert "right-pw" not in repr(info) + repr(log)
    secret = server.folder / "pw"
    secret.write_text("right-pw\n")
    async with store.opened(f"password_file={secret}"):
        pass
    assert "LOG_OTHER is not set" in (await refusal(store, "password_env=LOG_OTHER")).message


async def test_a_user_without_a_needed_right_is_told_which(start_redis: Any, store_at: Any) -> None:
    server = start_redis()
    server.command("ACL", "SETUSER", "default", "-eval", "-evalsha")
    error = await refusal(store_at(server))
    assert "may not run a command" in error.message
    assert "+@scripting" in str(error.hint)


async def test_the_least_rights_the_hint_names_are_enough(start_redis: Any, store_at: Any, monkeypatch: Any) -> None:
    server = start_redis()
    store = store_at(server)
    rules = ["on", "nopass", f"~{{{store.prefix}}}:*", "resetchannels", "&__sentinel__:hello"]
    rules += ["+@read", "+@write", "+@scripting", "+@connection", "+info", "+config|get", "+pubsub|numsub"]
    rules += ["+memory|usage"] + (["+waitaof"] if server.has_waitaof() else [])
    server.command("ACL", "SETUSER", "node", "-@all", *rules)
    url = store.url()
    monkeypatch.setattr(store, "url", lambda *options: url.replace("//", "//node:any@"))
    async with store.opened() as log:
        await log.write(LogBatch(vote=Vote(LeaderId(1, "n1"))))
        assert (await log.info()).size_bytes > 0


async def test_nobody_listening_is_told_with_host_and_port(store: Any) -> None:
    store.port = 1
    error = await refusal(store)
    assert "no connection to Redis at redis://127.0.0.1:1/0" in error.message
    assert "start the server" in str(error.hint)
