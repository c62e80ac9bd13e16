"""What a shell completes besides verbs and options: names of nodes, members, contexts and keys that there are now.

A completion that cannot be had is none: nothing here raises, and nobody is waited for longer than a second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raftkit_cli.options import Invocation

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient

TIMEOUT_S = 1.0
KEYS_MAX = 100


def rejoin_urls(environ: MutableMapping[str, str]) -> None:
    """bash takes ``http://host:1`` for five words. Before the word that is completed they become one again."""
    words, position = environ.get("COMP_WORDS", "").split("\n"), int(environ.get("COMP_CWORD", "0"))
    before: list[str] = []
    for word in words[:position]:
        if before and (word == ":" or before[-1].endswith(":")):
            before[-1] += word
        else:
            before.append(word)
    environ["COMP_WORDS"] = "\n".join([*before, *words[position:]])
    environ["COMP_CWORD"] = str(len(before))


def contexts(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Clusters known by name."""
    from raftkit_cli.endpoints import all_contexts
    from raftkit_cli.failures import CliError

    try:
        return _beginning(all_contexts()[1], incomplete)
    except CliError:
        return []


def local_nodes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Nodes of the local cluster."""
    from raftkit_cli.cluster.layout import ClusterFolder
    from raftkit_cli.failures import CliError
    from raftkit_cli.verbs.local import default_dir

    try:
        folder = ClusterFolder.load(Path(ctx.params.get("directory") or default_dir()))
    except (CliError, OSError):
        return []
    return [] if folder is None else _beginning([node.id for node in folder.cluster.nodes], incomplete)


def members(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Members of the cluster that the command line means, as the first node that answers sees them."""

    async def ask(client: ClusterClient) -> list[str]:
        return [member.id for member in (await client.status()).members]

    return _beginning(_asked(ctx, ask), incomplete)


def keys(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Keys that begin so, as the first node that answers has them."""

    async def ask(client: ClusterClient) -> list[str]:
        found = await client.kv_list(incomplete, limit=KEYS_MAX, consistency="stale")
        return [item.key for item in found]

    return _asked(ctx, ask)


def _asked(ctx: click.Context, ask: Callable[[ClusterClient], Awaitable[list[str]]]) -> list[str]:
    import asyncio

    from raftkit_cli.client import make_client, run
    from raftkit_cli.endpoints import resolve
    from raftkit_cli.failures import CliError
    from raftkit_core.errors import RaftError

    invocation = ctx.ensure_object(Invocation)

    async def session() -> list[str]:
        endpoints = resolve(invocation).endpoints
        async with (
            asyncio.timeout(TIMEOUT_S),
            make_client(invocation, endpoints, timeout_s=TIMEOUT_S) as client,
        ):
            return await ask(client)

    try:
        return run(session())
    except (RaftError, CliError, OSError):  # TimeoutError is an OSError
        return []


def _beginning(names: object, incomplete: str) -> list[str]:
    assert isinstance(names, list | dict), "made here"
    return sorted(name for name in names if name.startswith(incomplete))
