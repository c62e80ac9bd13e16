"""``raftkit context``: clusters known by name, with their CA and the file of the token. Holds no secret itself."""

from __future__ import annotations

from pathlib import Path

import click

from raftkit_cli.completion import contexts
from raftkit_cli.options import Invocation, VerbGroup, pass_invocation


@click.group(cls=VerbGroup, name="context", no_args_is_help=True)
def context() -> None:
    """Clusters known by name."""


@context.command("list")
@pass_invocation
def list_contexts(invocation: Invocation, /) -> None:
    """Every context, and which one is used."""
    from raftkit_cli.endpoints import all_contexts

    current, known = all_contexts()
    data = {
        "current": current,
        "contexts": [
            {
                "name": name,
                "endpoints": one["endpoints"],
                "ca": one.get("ca"),
                "token_file": one.get("token_file"),
            }
            for name, one in sorted(known.items())
        ],
    }

    def tell() -> None:
        if not known:
            invocation.out.note("no contexts yet; remember a cluster: raftkit context set NAME -e URL")
            return
        rows = [
            [
                "*" if name == current else "",
                name,
                ",".join(one["endpoints"]),
                one.get("ca") or "-",
                one.get("token_file") or "-",
            ]
            for name, one in sorted(known.items())
        ]
        invocation.out.table(["", "NAME", "ENDPOINTS", "CA", "TOKEN FILE"], rows)

    invocation.out.result("context.list", data, tell)


@context.command("set")
@click.argument("name")
@pass_invocation
def set_context(invocation: Invocation, /, name: str) -> None:
    """Remember -e, --cacert and --token-file under NAME, and use it from now on.

    \b
    raftkit context set prod -e https://n1:7501 --cacert certs/ca.pem --token-file ops.token
    """
    from raftkit_cli.endpoints import save_context, with_scheme

    if not invocation.endpoints:
        raise click.UsageError("name at least one node: -e https://HOST:PORT")
    endpoints = with_scheme(invocation.endpoints)
    save_context(
        name,
        endpoints=endpoints,
        ca=_absolute(invocation.ca_file),
        token_file=_absolute(invocation.token_file),
    )
    invocation.out.result(
        "context.set",
        {"name": name, "endpoints": endpoints},
        lambda: invocation.out.line(f"{name} is used from now on"),
    )


@context.command("use")
@click.argument("name", shell_complete=contexts)
@pass_invocation
def use(invocation: Invocation, /, name: str) -> None:
    """Use NAME from now on."""
    from raftkit_cli.endpoints import use_context

    use_context(name)
    invocation.out.result("context.use", {"name": name}, lambda: invocation.out.line(f"{name} is used from now on"))


@context.command("delete")
@click.argument("name", shell_complete=contexts)
@pass_invocation
def delete(invocation: Invocation, /, name: str) -> None:
    """Forget NAME; the cluster itself is not touched."""
    from raftkit_cli.endpoints import delete_context

    delete_context(name)
    invocation.out.result("context.delete", {"name": name}, lambda: invocation.out.line(f"{name} is forgotten"))


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()
