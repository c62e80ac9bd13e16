"""A verb's way to the cluster: the client of the endpoints' scheme, and a loop to run it in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from raftkit_cli.endpoints import Target, resolve
from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation
from raftkit_cli.plugin_commands import loaded_plugins
from raftkit_core.errors import AccessDenied, ConfigError, OutcomeUnknown, RPCError, Unreachable
from raftkit_core.network.client import ClusterClient

T = TypeVar("T")

GRACE_S = 2.0
"""What a call may take beyond its own timeout before the command line stops waiting for it."""


def make_client(invocation: Invocation, endpoints: list[str], *, timeout_s: float | None = None) -> ClusterClient:
    """A client, not yet entered.

    Raises:
        ConfigError: a token file that cannot be read.
        PluginError: nothing speaks the endpoints' scheme, or they have several.
    """
    options: dict[str, Any] = {"timeout": invocation.timeout_s if timeout_s is None else timeout_s}
    token = read_token(invocation)
    if token is not None:
        options["token"] = token
    ca = invocation.ca_file or resolve(invocation).ca
    if ca is not None:
        options["ca"] = ca
    return loaded_plugins(invocation).client(endpoints, options)


def read_token(invocation: Invocation) -> str | None:
    """The access token, without the newline that editors add. None when no file was named."""
    path = invocation.token_file or resolve(invocation).token_file
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the token file {path} cannot be read: {error}", hint="name a readable file: --token-file FILE"
        ) from error
    if not token:
        raise AccessDenied(f"the token file {path} is empty", hint="put the token into it, on one line")
    return token


def with_client(
    invocation: Invocation,
    work: Callable[[ClusterClient], Awaitable[T]],
    *,
    changes: str | None = None,
    limit_s: float | None = None,
) -> T:
    """Run ``work`` with a client of the cluster the command line means, in a loop of its own.

    ``changes`` names what the work changes (``"the write"``): then a broken connection is an unknown outcome, never
    "nothing happened". ``limit_s`` bounds work that makes many calls; without it one request's timeout does.
    """
    target = resolve(invocation)

    async def session() -> T:
        limit = (invocation.timeout_s if limit_s is None else limit_s) + GRACE_S
        try:
            async with asyncio.timeout(limit), opened(invocation, target) as client:
                return await work(client)
        except TimeoutError as error:
            raise _overdue(changes, limit) from error
        except OutcomeUnknown:
            raise
        except AccessDenied as error:
            raise _told_whose(error, invocation, target) from error
        except Unreachable as error:
            raise told_where(error, target) from error
        except RPCError as error:
            if changes is None or error.outcome != "unknown":
                raise
            raise OutcomeUnknown(f"{changes} may or may not have happened: {error.message}") from error

    return run(session())


@asynccontextmanager
async def opened(invocation: Invocation, target: Target) -> AsyncIterator[ClusterClient]:
    """A client of ``target``, closed at the end."""
    async with make_client(invocation, target.endpoints) as client:
        yield client


def _told_whose(error: AccessDenied, invocation: Invocation, target: Target) -> AccessDenied:
    """Who has named a token already is not told to name one, but that it is not known."""
    path = invocation.token_file or target.token_file
    if path is None or "--token-file" not in (error.hint or ""):
        return error
    return AccessDenied(
        f"the node does not know the token in {path}",
        hint="raftkit token list --tokens FILE shows whose tokens a node knows; a new one: raftkit token new NAME",
    )


def _overdue(changes: str | None, limit_s: float) -> Exception:
    if changes is not None:
        return OutcomeUnknown(f"{changes} may or may not have happened: no answer within {limit_s:g} s")
    return CliError("TIMEOUT", f"no answer within {limit_s:g} s")


def told_where(error: Unreachable, target: Target) -> Unreachable:
    """Say which addresses were tried and why these. What a node answered about another one stays as it is."""
    if error.hint is not None and not error.message.startswith("no node "):
        return error
    tried = ", ".join(target.endpoints)
    message = error.message
    if any(endpoint not in message for endpoint in target.endpoints):
        message = f"no node answers at {tried}: {message}"
    hint = error.hint
    if target.source.startswith("context "):
        message += f" (addresses from {target.source})"
        if target.is_local:
            hint = "raftkit local ps shows what runs, raftkit local up starts it; other nodes: -e URL"
        elif "--cacert" not in (hint or ""):
            hint = "start a node there, or name others: -e URL, raftkit context use NAME (raftkit context list)"
    return Unreachable(message, hint=hint, outcome="not_applied")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in a fresh loop."""
    return asyncio.run(work)
