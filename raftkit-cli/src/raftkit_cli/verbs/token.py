"""``raftkit token``: who may use a client API. Nodes read the file again when it changes; no restart is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raftkit_cli.options import Invocation, VerbGroup, pass_invocation

DEFAULT_TOKENS = Path("tokens")

_tokens_option = click.option(
    "--tokens",
    "tokens",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The file of hashes that nodes read. [default: as in -c raftkit.toml, else {DEFAULT_TOKENS}]",
)


@click.group(cls=VerbGroup, name="token", no_args_is_help=True)
def token() -> None:
    """Make, list and revoke access tokens."""


@token.command("new")
@click.argument("name")
@click.option("--role", type=click.Choice(["read", "write", "admin"]), required=True, help="What it allows.")
@_tokens_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the token itself goes, readable by you alone. [default: NAME.token]",
)
@click.option("--show", is_flag=True, help="Print the token instead of writing it to a file.")
@pass_invocation
def new(invocation: Invocation, /, name: str, role: Any, tokens: Path | None, out: Path | None, show: bool) -> None:
    """Make a token. Nodes get its hash only; the token itself is written once and cannot be shown again.

    \b
    raftkit token new ops --role admin
    raftkit --token-file ops.token status
    """
    from raftkit_core.errors import ConfigError
    from raftkit_core.network.tokens import new_token, write_private

    if show and out is not None:
        raise click.UsageError("--show prints the token, --out writes it: keep one")
    path = _tokens_file(invocation, tokens)
    out = out or Path(f"{name}.token")
    if not show and out.exists():
        raise ConfigError(f"{out} is there already", hint="remove it, or name another file: --out FILE")
    secret = new_token(path, name, role)
    data: dict[str, Any] = {"name": name, "role": role, "tokens": str(path)}
    if show:
        data["token"] = secret
    else:
        try:
            write_private(out, secret + "\n", replace=False)
        except OSError as error:
            raise ConfigError(
                f"{out} cannot be written: {error.strerror or error}", hint=f"raftkit token revoke {name}, then again"
            ) from None
        data["token_file"] = str(out)

    def tell() -> None:
        if show:
            invocation.out.line(secret)
        else:
            invocation.out.line(f"{out}  the token {name}, role {role}")
        invocation.out.note(f"{path} holds its hash: name it on every node as [security] tokens, or as --tokens")

    invocation.out.result("token.new", data, tell)


@token.command("list")
@_tokens_option
@pass_invocation
def list_tokens(invocation: Invocation, /, tokens: Path | None) -> None:
    """Names and roles, never the tokens."""
    from raftkit_core.network.tokens import read_tokens

    path = _tokens_file(invocation, tokens)
    known = read_tokens(path).tokens
    data = {"tokens": str(path), "entries": [{"name": one.name, "role": one.role} for one in known]}
    invocation.out.result(
        "token.list", data, lambda: invocation.out.table(["NAME", "ROLE"], [[one.name, one.role] for one in known])
    )


@token.command("revoke")
@click.argument("name")
@_tokens_option
@pass_invocation
def revoke(invocation: Invocation, /, name: str, tokens: Path | None) -> None:
    """Take a token away. Nodes notice within seconds."""
    from raftkit_core.network.tokens import revoke_token

    path = _tokens_file(invocation, tokens)
    revoke_token(path, name)
    invocation.out.result(
        "token.revoke",
        {"name": name, "tokens": str(path)},
        lambda: invocation.out.line(f"{name} is revoked; copy {path} to every node"),
    )


def _tokens_file(invocation: Invocation, given: Path | None) -> Path:
    """``--tokens``, else ``[security] tokens`` of the file that was named or lies here, else ``./tokens``."""
    from raftkit_cli.endpoints import DEFAULT_CONFIG_FILE
    from raftkit_core.config_file import load_node_file

    if given is not None:
        return given
    config = invocation.config_path or (DEFAULT_CONFIG_FILE if DEFAULT_CONFIG_FILE.is_file() else None)
    found = None if config is None else load_node_file(config).security.tokens
    return found or DEFAULT_TOKENS
