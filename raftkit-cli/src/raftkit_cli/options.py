"""The options every verb shares, accepted before or after it, and what they amount to: an :class:`Invocation`.

Here too: the command and group classes that carry them, and the parameter types verbs share.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import click

from raftkit_cli.failures import CliError
from raftkit_cli.output import Output, is_terminal

if TYPE_CHECKING:
    from pathlib import Path

    _DurationType = click.ParamType[float]
    _AssignmentType = click.ParamType[tuple[str, str]]
else:  # generic in newer click only
    _DurationType = _AssignmentType = click.ParamType

DEFAULT_TIMEOUT_S = 5.0


class Invocation:
    """What was asked for beyond the verb itself; ``ctx.obj`` of every command.

    ``timeout_s`` bounds one request to the cluster. ``config_path`` is a ``raftkit.toml`` that was named explicitly.
    ``plugins`` are used besides the installed ones: how a program that embeds the command line hands over its own.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.verb = ""
        self.out = Output(as_json=as_json)
        self.endpoints: tuple[str, ...] = ()
        self.context: str | None = None
        self.config_path: Path | None = None
        self.token_file: Path | None = None
        self.ca_file: Path | None = None
        self.timeout_s = DEFAULT_TIMEOUT_S
        self.no_input = False
        self.yes = False
        self.plugins: tuple[object, ...] = ()
        self.is_endless = False
        """The verb only looks, until it is interrupted: its end is no failure to speak of."""

    def confirm(self, question: str) -> None:
        """Ask before something that cannot be undone; ``--yes`` answers.

        Raises:
            CliError: nobody can be asked (no terminal, ``--json``, ``--no-input``), or the answer was no.
        """
        if self.yes:
            return
        if self.no_input or self.out.as_json or not is_terminal(sys.stdin):
            raise CliError(
                "CONFIRMATION_REQUIRED",
                f"{question.rstrip('?')}: this needs a confirmation, and nobody can be asked here",
                hint="repeat the command with --yes, or with --dry-run to see what it would do",
            )
        if not click.confirm(question, err=True):
            raise CliError("DECLINED", "nothing was changed: not confirmed", hint="answer y, or repeat with --yes")


pass_invocation = click.make_pass_decorator(Invocation)


class Duration(_DurationType):
    """``250ms``, ``5s``, ``2m`` or seconds, as seconds."""

    name = "duration"
    _UNITS: ClassVar[dict[str, float]] = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", str(value).strip())
        if match is None or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a duration: write 250ms, 5s or 2m", param, ctx)
        return float(match[1]) * self._UNITS[match[2]]


class NodeAssignment(_AssignmentType):
    """``n1=http://127.0.0.1:7401``, as a pair."""

    name = "ID=URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        node_id, separator, url = str(value).partition("=")
        if not separator or not node_id or not url:
            self.fail(f"{value!r} is not ID=URL: write n1=http://127.0.0.1:7401", param, ctx)
        return node_id, url


def split_client(url: str) -> tuple[str, str | None]:
    """A member's URL as its peer address and its clients' address: ``tcp://h:1?client=http://h:2``.

    None where clients are served on the peer address. Other options stay with the peer address.
    """
    peer, _, query = url.partition("?")
    options = [option for option in query.split("&") if option]
    client = next((option.removeprefix("client=") for option in options if option.startswith("client=")), None)
    others = "&".join(option for option in options if not option.startswith("client="))
    return (f"{peer}?{others}" if others else peer), client


def _store(target: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Keep an option that was given, wherever it stood; the last one typed wins."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        source = ctx.get_parameter_source(param.name or "")
        if source in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT):
            invocation = ctx.ensure_object(Invocation)
            if target == "endpoints":
                value = split_endpoints(value)
            elif target in ("config_path", "token_file", "ca_file"):
                from pathlib import Path  # not at the top: the front page needs no paths

                value = Path(value)
            owner = invocation.out if target in ("as_json", "quiet", "verbose", "color") else invocation
            setattr(owner, target, value)
        return value

    return callback


def split_endpoints(values: tuple[str, ...] | str) -> tuple[str, ...]:
    """``("a,b", "c")`` as ``("a", "b", "c")``."""
    texts = (values,) if isinstance(values, str) else values
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def _contexts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from raftkit_cli.completion import contexts  # not at the top: it stands above this file

    return contexts(ctx, param, incomplete)


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """Fresh copies of the shared options. The root shows them and reads the environment; a verb accepts them."""

    def option(*declarations: str, target: str, env: str | None = None, **attrs: Any) -> click.Option:
        return click.Option(
            list(declarations),
            expose_value=False,
            hidden=hidden,
            callback=_store(target),
            envvar=None if hidden else env,
            **attrs,
        )

    path = click.Path(dir_okay=False)
    return [
        option(
            "-e",
            "--endpoints",
            target="endpoints",
            multiple=True,
            metavar="URL[,URL]",
            help="Nodes to ask; one is enough.",
        ),
        option(
            "--context",
            target="context",
            metavar="NAME",
            env="RAFTKIT_CONTEXT",
            help="A cluster known by name.",
            shell_complete=_contexts,
        ),
        option("-c", "--config", "config_file", target="config_path", type=path, help="A raftkit.toml to read."),
        option(
            "--token-file", target="token_file", type=path, env="RAFTKIT_TOKEN_FILE", help="File with the access token."
        ),
        option(
            "--cacert",
            "ca_file",
            target="ca_file",
            type=path,
            env="RAFTKIT_CACERT",
            help="Certificates of the CA that signed the nodes'.",
        ),
        option(
            "--timeout", target="timeout_s", type=Duration(), metavar="TIME", help="Limit of one request. [default: 5s]"
        ),
        option("--json", target="as_json", is_flag=True, help="Exactly one JSON document on stdout."),
        option("-q", "--quiet", target="quiet", is_flag=True, help="No progress or notes on stderr."),
        option("-v", "--verbose", target="verbose", count=True, help="More detail; -vv for still more."),
        option(
            "--color",
            target="color",
            type=click.Choice(["auto", "always", "never"]),
            env="RAFTKIT_COLOR",
            help="When to use colours.",
        ),
        option("--no-input", target="no_input", is_flag=True, help="Never ask; fail instead."),
        option("--yes", target="yes", is_flag=True, help="Answer yes to every question."),
    ]


_CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verb(click.Command):
    """A command that accepts the shared options and tells the error boundary its name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = _CONTEXT_SETTINGS | (kwargs.get("context_settings") or {})
        kwargs.setdefault("epilog", "Options of every verb (-e, --json, --timeout …): raftkit --help")
        super().__init__(*args, **kwargs)
        self.params.extend(global_options(hidden=True))

    def invoke(self, ctx: click.Context) -> Any:
        invocation = ctx.ensure_object(Invocation)
        invocation.verb = verb_name(ctx)
        if not invocation.verb.startswith("kv."):  # whose arguments are data: a value may be any URL
            self._refuse_secrets(ctx)
        return super().invoke(ctx)

    def _refuse_secrets(self, ctx: click.Context) -> None:
        """Everybody on a machine can read the arguments of a process. Raises: UsageError."""
        for param in self.params:
            value = ctx.params.get(param.name or "")
            if ctx.get_parameter_source(param.name or "") is not click.core.ParameterSource.COMMANDLINE:
                continue
            for text in _texts(value):
                if ("@" in text or "=" in text) and _holds_secret(text):
                    raise click.UsageError(_no_secret_here(text, param.opts[0]), ctx=ctx)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if isinstance(value, tuple | list) else []


def _holds_secret(text: str) -> bool:
    from raftkit_core.plugins.url import holds_secret  # not at the top: most arguments are no URLs

    return holds_secret(text)


def _no_secret_here(text: str, option: str) -> str:
    """What to type instead, without showing what was typed."""
    scheme = text.partition(":")[0].lower()
    if scheme.startswith("redis"):
        instead = f"{scheme}://USER@HOST:6379/0?password_env=VARIABLE, or …?password_file=FILE"
    else:
        instead = "the URL in a file: [storage] url and [network] url of -c raftkit.toml"
    return f"a password in {option} is seen by everybody on this machine (ps); write {instead}"


class VerbGroup(click.Group):
    """A noun: its commands are :class:`Verb`, and an unknown one is answered with the nearest."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = _CONTEXT_SETTINGS | (kwargs.get("context_settings") or {})
        super().__init__(*args, **kwargs)
        self.params.extend(global_options(hidden=True))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            suffix = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{suffix}", ctx=ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(VerbGroup):
    """A group whose commands are imported when they are typed: ``name -> (module:attribute, one line of help)``.

    The line stands here and not in the module, because ``--help`` must not import what it lists.
    """

    lazy: ClassVar[dict[str, tuple[str, str]]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *sorted(set(self.commands) - set(self.lazy))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        if known is not None or cmd_name not in self.lazy:
            return known
        import importlib

        module_name, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        self.commands[cmd_name] = command
        return command

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command of a plugin: it gets the shared options too, and may not take the place of a built-in.

        Raises:
            ValueError: the name is taken.
        """
        name = name or cmd.name or ""
        if name in self.lazy or name in self.commands:
            raise ValueError(f"there is a command {name!r} already")
        taken = {text for param in cmd.params for text in (*param.opts, *param.secondary_opts)}
        cmd.params.extend(param for param in global_options(hidden=True) if not taken.intersection(param.opts))
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in self.lazy.items()]
        rows += [
            (name, command.get_short_help_str())
            for name, command in sorted(self.commands.items())
            if name not in self.lazy
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def verb_name(ctx: click.Context) -> str:
    """``kv.get`` for ``raftkit kv get``: the name in the JSON schema."""
    return ".".join(ctx.command_path.split()[1:])
