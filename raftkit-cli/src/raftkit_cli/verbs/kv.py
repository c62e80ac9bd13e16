"""``raftkit kv``: the key-value machine from the command line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.client import with_client
from raftkit_cli.completion import keys
from raftkit_cli.options import Invocation, VerbGroup, pass_invocation
from raftkit_cli.output import bytes_fields, is_terminal

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient, Consistency
    from raftkit_core.types.kv import KeyValue, KvEvent, WriteResult

PAGE = 1000
FOREVER_S = 10 * 365 * 86400.0
"""Of a watch: it ends when it is interrupted."""


class _Text(click.types.StringParamType):
    """A key. What a shell hands over as bytes that are no UTF-8 is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8; a key is text, only values are any bytes", param, ctx)
        return text


@click.group(cls=VerbGroup, name="kv", no_args_is_help=True)
def kv() -> None:
    """Read and write keys.

    Any node accepts any request. A value is text, or - for standard input (any bytes).
    """


_if_revision = click.option(
    "--if-revision",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only if the key's revision is N (0: only if it does not exist).",
)
_consistency = click.option(
    "--consistency",
    type=click.Choice(["linearizable", "lease", "stale"]),
    default="linearizable",
    show_default=True,
    help="stale answers from the node that is asked, also without a leader.",
)


@kv.command("put")
@click.argument("key", type=_Text(), shell_complete=keys)
@click.argument("value")
@_if_revision
@pass_invocation
def put(invocation: Invocation, key: str, value: str, if_revision: int | None) -> None:
    """Set KEY to VALUE (- reads standard input)."""
    content = _read_value(value)
    _written(invocation, "kv.put", key, lambda client: client.kv_put(key, content, if_revision=if_revision))


@kv.command("get")
@click.argument("key", type=_Text(), shell_complete=keys)
@_consistency
@pass_invocation
def get(invocation: Invocation, key: str, consistency: Consistency) -> None:
    """Print the value of KEY, byte for byte. Exit 3 if there is none."""
    from raftkit_core.errors import NotFound

    async def work(client: ClusterClient) -> KeyValue | None:
        return await client.kv_get(key, consistency=consistency)

    found = with_client(invocation, work)
    if found is None:
        raise NotFound(f"there is no key {key!r}", hint="raftkit kv list shows the keys there are")

    def human() -> None:
        stdout = sys.stdout.buffer
        stdout.write(found.value)
        if is_terminal(sys.stdout) and not found.value.endswith(b"\n"):
            stdout.write(b"\n")
        stdout.flush()

    invocation.out.result("kv.get", _fields(found), human)


@kv.command("delete")
@click.argument("key", type=_Text(), shell_complete=keys)
@_if_revision
@pass_invocation
def delete(invocation: Invocation, key: str, if_revision: int | None) -> None:
    """Remove KEY. Exit 3 if there is none."""
    from raftkit_core.errors import NotFound

    async def work(client: ClusterClient) -> WriteResult:
        return await client.kv_delete(key, if_revision=if_revision)

    result = with_client(invocation, work, changes="the delete")
    if not result.changed:
        raise NotFound(f"there is no key {key!r}", hint="raftkit kv list shows the keys there are")
    _show_written(invocation, "kv.delete", key, result)


@kv.command("cas")
@click.argument("key", type=_Text(), shell_complete=keys)
@click.argument("values", nargs=-1, required=True, metavar="[EXPECTED] VALUE")
@click.option("--absent", is_flag=True, help="Expect that the key does not exist; give no EXPECTED.")
@pass_invocation
def cas(invocation: Invocation, key: str, values: tuple[str, ...], absent: bool) -> None:
    """Set KEY to VALUE if it holds EXPECTED now. Exit 3 if it does not.

    \b
    raftkit kv cas KEY EXPECTED VALUE
    raftkit kv cas KEY VALUE --absent
    """
    if len(values) != (1 if absent else 2):
        raise click.UsageError("give EXPECTED and VALUE, or --absent and VALUE")
    wanted = None if absent else values[0].encode("utf-8", "surrogateescape")
    content = _read_value(values[-1])
    _written(invocation, "kv.cas", key, lambda client: client.kv_cas(key, wanted, content))


@kv.command("list")
@click.argument("prefix", type=_Text(), shell_complete=keys, default="")
@click.option("--limit", type=click.IntRange(min=1), default=None, metavar="N", help="At most N keys. [default: all]")
@click.option("--after", metavar="KEY", help="Only keys after KEY.")
@click.option("--keys-only", is_flag=True, help="Keys without values.")
@_consistency
@pass_invocation
def list_keys(
    invocation: Invocation,
    prefix: str,
    limit: int | None,
    after: str | None,
    keys_only: bool,
    consistency: Consistency,
) -> None:
    """Keys that begin with PREFIX, in order."""

    async def work(client: ClusterClient) -> list[KeyValue]:
        found: list[KeyValue] = []
        start = after
        while limit is None or len(found) < limit:
            wanted = PAGE if limit is None else min(PAGE, limit - len(found))
            page = await client.kv_list(prefix, limit=wanted, after=start, consistency=consistency)
            found += page
            if len(page) < wanted:
                break
            start = page[-1].key
        return found

    found = with_client(invocation, work, limit_s=max(60.0, invocation.timeout_s))
    items = [{"key": item.key, "revision": item.revision} if keys_only else _fields(item) for item in found]

    def human() -> None:
        if keys_only:
            for item in found:
                invocation.out.line(item.key)
        else:
            rows = [(item.key, str(item.revision), _one_line(item.value)) for item in found]
            invocation.out.table(("KEY", "REVISION", "VALUE"), rows)

    invocation.out.result("kv.list", {"prefix": prefix, "count": len(items), "items": items}, human)


@kv.command("watch")
@click.argument("prefix", type=_Text(), shell_complete=keys, default="")
@click.option(
    "--from",
    "from_revision",
    type=click.IntRange(min=1),
    metavar="REVISION",
    help="Begin with this revision. [default: the next change]",
)
@click.option("--limit", type=click.IntRange(min=1), default=None, metavar="N", help="End after N changes.")
@pass_invocation
def watch(invocation: Invocation, prefix: str, from_revision: int | None, limit: int | None) -> None:
    """Show changes of the keys that begin with PREFIX, as they happen, in order and without gaps.

    Follows the cluster from node to node. With --json each change is a document on a line of its own. Exit 8 if no
    node keeps the changes from REVISION on any more: list the keys, then watch behind the revision of the list.
    """

    async def work(client: ClusterClient) -> None:
        from contextlib import aclosing

        left = limit
        async with aclosing(client.watch(prefix, from_revision=from_revision)) as events:
            async for event in events:
                _show_event(invocation, event)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return

    invocation.is_endless = True
    with_client(invocation, work, limit_s=FOREVER_S)


def _show_event(invocation: Invocation, event: KvEvent) -> None:
    kind = "delete" if event.value is None else "put"
    value = {} if event.value is None else bytes_fields(event.value)
    data = {
        "type": kind,
        "key": event.key,
        **value,
        "revision": event.revision,
        "previous_revision": event.previous_revision,
    }

    def human() -> None:
        shown = "" if event.value is None else f"  {_one_line(event.value)}"
        invocation.out.line(f"{event.revision:>8}  {kind:6}  {event.key}{shown}")

    invocation.out.streamed("kv.watch", data, human)


def _read_value(argument: str) -> bytes:
    if argument != "-":
        return argument.encode("utf-8", "surrogateescape")
    return sys.stdin.buffer.read()


def _written(invocation: Invocation, verb: str, key: str, write: Any) -> None:
    async def work(client: ClusterClient) -> WriteResult:
        result: WriteResult = await write(client)
        return result

    _show_written(invocation, verb, key, with_client(invocation, work, changes="the write"))


def _show_written(invocation: Invocation, verb: str, key: str, result: WriteResult) -> None:
    data = {
        "key": key,
        "revision": result.revision,
        "previous_revision": result.previous_revision,
        "changed": result.changed,
    }
    invocation.out.result(verb, data, lambda: invocation.out.line(f"ok  revision {result.revision}"))


def _fields(item: KeyValue) -> dict[str, Any]:
    return {"key": item.key, **bytes_fields(item.value), "revision": item.revision}


def _one_line(value: bytes, width: int = 60) -> str:
    """A value as a table shows it: printable, on one line, cut where it is long."""
    text = value.decode("utf-8", "backslashreplace")
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= width else f"{text[: width - 1]}…"
