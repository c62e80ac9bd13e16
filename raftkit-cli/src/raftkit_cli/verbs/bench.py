"""``raftkit bench``: how fast a running cluster is, seen from here."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.client import with_client
from raftkit_cli.failures import CliError
from raftkit_cli.load import Load
from raftkit_cli.options import Duration, Invocation, Verb, pass_invocation

if TYPE_CHECKING:
    from raftkit_core.network.client import ClusterClient

PROGRESS_S = 1.0
WHAT = {"put": "writes", "get": "linearizable reads", "lease": "lease reads", "stale": "stale reads"}


@click.command("bench", cls=Verb)
@click.option("--operation", type=click.Choice(["put", "get", "lease", "stale"]), default="put", show_default=True)
@click.option("--callers", type=click.IntRange(1, 4096), default=16, show_default=True, metavar="N", help="At once.")
@click.option("--duration", type=Duration(), default="5s", show_default=True, metavar="TIME", help="How long.")
@click.option("--size", type=click.IntRange(0, 1 << 20), default=84, show_default=True, metavar="BYTES", help="Values.")
@click.option("--rate", type=click.FloatRange(min=0.1), metavar="N", help="At most N a second. [default: no limit]")
@pass_invocation
def bench(invocation: Invocation, operation: str, callers: int, duration: float, size: int, rate: float | None) -> None:
    """How fast a running cluster is, seen from here. One request for each call, through the client API.

    Values go to keys under raftkit-bench/, which are removed afterwards; get reads one of them linearizably, lease and
    stale with less of a promise. What is measured is the cluster, the network and this client together: a client in
    Python makes some thousand requests a second, whatever the cluster can take. Programs that send many writes or reads
    in one frame of /v1/ws get more out of it (docs/performance.md says how much).
    """
    load = Load(callers, duration, rate)
    try:
        measured(invocation, load, operation, size)
    except KeyboardInterrupt:
        if load.latencies_ms and not invocation.out.as_json:  # what was measured until then was measured
            invocation.out.note("")  # behind the ^C of the terminal
            shown(invocation, _data(load, operation, size))
        raise
    data = _data(load, operation, size)
    invocation.out.result("bench", data, lambda: shown(invocation, data))


def _data(load: Load, operation: str, size: int) -> dict[str, Any]:
    return {"operation": operation, "size_bytes": size, **load.as_data()}


def measured(invocation: Invocation, load: Load, operation: str, size: int) -> None:
    """Run ``load`` against the cluster; its keys are removed, also after Ctrl-C.

    Raises: CliError if nothing was answered.
    """
    from raftkit_core.errors import RaftError

    prefix = f"raftkit-bench/{secrets.token_hex(4)}/"
    value = b"v" * size

    async def use(client: ClusterClient) -> None:
        keys = [f"{prefix}{number}" for number in range(load.callers)]
        await client.kv_put(keys[0], value)
        if operation == "put":

            async def call(number: int) -> object:
                return await client.kv_put(keys[number], value)

        else:
            consistency: Any = "linearizable" if operation == "get" else operation

            async def call(number: int) -> object:
                return await client.kv_get(keys[0], consistency=consistency)

        try:
            await load.run(call, invocation.out.note, PROGRESS_S)
        finally:
            for key in keys if operation == "put" else keys[:1]:
                with suppress(RaftError):  # a cluster that cannot do that now keeps it: it is in nobody's way
                    await client.kv_delete(key)

    with_client(invocation, use, limit_s=load.seconds + 60)
    if not load.latencies_ms:
        raise CliError("CHECK_FAILED", f"nothing was answered: {dict(load.errors)}", hint="raftkit status")


def shown(invocation: Invocation, data: dict[str, Any]) -> None:
    """For people: the rate, and a table of percentiles."""
    out = invocation.out
    failed = sum(data["errors"].values())
    out.line(
        f"{data['operations']:,} {WHAT[data['operation']]}, {data['size_bytes']} B each and each a request, in"
        f" {data['seconds']:.1f} s by {data['callers']} callers:"
        f" {data['operations_per_second']:,.0f} a second"
        + (f"; {failed} failed ({', '.join(data['errors'])})" if failed else "")
    )
    latency = data["latency_ms"]
    out.table(list(latency), [[f"{latency[name]:.2f} ms" for name in latency]])
