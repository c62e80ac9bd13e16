"""The entry point. Imports no driver: redis-py costs a third of a second, which `raftkit --help` need not pay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftkit_core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from raftkit_core.plugins.registry import StateMachineRegistry, StorageRegistry
    from raftkit_core.plugins.url import AdapterUrl
    from raftkit_core.state_machine.interface import RaftStateMachine
    from raftkit_core.storage.interface import RaftLogStorage
    from raftkit_core.types.adapter import AdapterContext


@hookimpl
def raftkit_register_storage(registry: StorageRegistry) -> None:
    registry.add("redis", make_log_storage)
    registry.add("rediss", make_log_storage)


@hookimpl
def raftkit_register_state_machine(registry: StateMachineRegistry) -> None:
    registry.add("redis-kv", make_kv_machine)
    registry.add("rediss-kv", make_kv_machine)


def make_log_storage(url: AdapterUrl, context: AdapterContext) -> RaftLogStorage:
    """A log storage for ``redis://`` or ``rediss://``. Does no IO.

    Raises: BadAdapterUrl, UnknownOption.
    """
    from raftkit_redis.options import RedisOptions

    options = RedisOptions.from_url(url, context)
    from raftkit_redis.log_storage import RedisLogStorage

    return RedisLogStorage(options)


def make_kv_machine(url: AdapterUrl, context: AdapterContext) -> RaftStateMachine:
    """A durable ``kv/1`` for ``redis-kv://`` or, with TLS, ``rediss-kv://``. Does no IO.

    Raises: BadAdapterUrl, UnknownOption.
    """
    from raftkit_redis.options import RedisOptions

    options = RedisOptions.from_url(url, context)
    from raftkit_redis.kv_machine import RedisKvStateMachine

    return RedisKvStateMachine(options)
