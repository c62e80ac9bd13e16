"""The ``raftkit`` command: the tree of verbs, and the boundary where every error becomes words and an exit status.

Nothing here imports the core or a verb: ``raftkit --help`` answers from this file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn

import click

from raftkit_cli.exit_codes import OK, UNEXPECTED
from raftkit_cli.failures import Terminated, failure_of
from raftkit_cli.options import Invocation, LazyGroup, VerbGroup, global_options, verb_name

_COMPLETE = "_RAFTKIT_COMPLETE"
"""Set by the shell that wants to know how a command line may go on."""
_ASKED_PLUGINS = "raftkit_cli.asked_plugins"


class Root(LazyGroup):
    """``raftkit`` itself: lazy verbs, verbs of plugins, and the error boundary around all of them."""

    group_class = VerbGroup
    lazy: ClassVar[dict[str, tuple[str, str]]] = {
        "demo": ("raftkit_cli.verbs.demo:demo", "Kill the leader of a real cluster and lose nothing."),
        "local": ("raftkit_cli.verbs.local:local", "A persistent cluster on this machine."),
        "node": ("raftkit_cli.verbs.node:node", "Run one node."),
        "status": ("raftkit_cli.verbs.status:status", "Who leads, who follows, who is missing, and what that means."),
        "ui": ("raftkit_cli.verbs.ui:ui", "Where a page shows the cluster."),
        "cluster": ("raftkit_cli.verbs.cluster:cluster", "Begin a cluster, and see what happened to it."),
        "member": ("raftkit_cli.verbs.member:member", "List, add, promote and remove members."),
        "leader": ("raftkit_cli.verbs.leader:leader", "Show or hand over leadership."),
        "kv": ("raftkit_cli.verbs.kv:kv", "Read and write keys."),
        "bench": ("raftkit_cli.verbs.bench:bench", "How fast a running cluster is, seen from here."),
        "check": ("raftkit_cli.verbs.check:check", "Record what clients see, and judge whether it was right."),
        "certs": ("raftkit_cli.verbs.certs:certs", "Make and show TLS certificates."),
        "token": ("raftkit_cli.verbs.token:token", "Make, list and revoke access tokens."),
        "context": ("raftkit_cli.verbs.context:context", "Clusters known by name."),
        "storage": ("raftkit_cli.verbs.storage:storage", "Check, back up, restore and move a node's store."),
        "snapshot": ("raftkit_cli.verbs.snapshot:snapshot", "Make, save, look into and restore snapshots."),
        "recover": (
            "raftkit_cli.verbs.recover:recover",
            "Begin again from one survivor of a lost quorum.",
        ),
        "sim": ("raftkit_cli.verbs.sim:sim", "Simulate clusters under faults and check every step."),
        "plugins": ("raftkit_cli.verbs.plugins:plugins", "What is installed and what it provides."),
        "doctor": ("raftkit_cli.verbs.doctor:doctor", "What is wrong here, and how to mend it."),
        "version": ("raftkit_cli.verbs.version:version", "Versions of raftkit and its parts."),
    }

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and not ctx.meta.get(_ASKED_PLUGINS):
            # Only a verb that is not built in pays for loading plugins.
            ctx.meta[_ASKED_PLUGINS] = True
            from raftkit_cli.plugin_commands import register_plugin_commands

            register_plugin_commands(self, ctx.ensure_object(Invocation))
            command = super().get_command(ctx, cmd_name)
        return command

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run one command line. Always ends the process, with a code of ``exit_codes``.

        ``plugins=`` (a tuple of modules or objects with hooks) are used besides the installed ones.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        invocation = Invocation(as_json=_asks_for_json(arguments))
        invocation.plugins = extra.pop("plugins", ())
        extra["standalone_mode"] = False
        if os.environ.get(_COMPLETE, "").startswith("bash_complete"):
            from raftkit_cli.completion import rejoin_urls

            rejoin_urls(os.environ)
        try:
            code = super().main(args=arguments, prog_name="raftkit", obj=invocation, **extra)
        except (Exception, KeyboardInterrupt, Terminated) as error:
            if _COMPLETE in os.environ:  # somebody is typing: nothing may be written between the words
                sys.exit(UNEXPECTED)
            code = _tell(invocation, error)
        finally:
            # What plugins brought is of this command line alone: a program may run another one with others.
            self.commands = {name: command for name, command in self.commands.items() if name in self.lazy}
        sys.exit(code if isinstance(code, int) else OK)


def _asks_for_json(arguments: list[str]) -> bool:
    """Whether ``--json`` stands anywhere before ``--``: known even when the rest cannot be parsed."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _tell(invocation: Invocation, error: BaseException) -> int:
    """Print the failure and give its exit status."""
    if invocation.out.verbose and not isinstance(error, click.UsageError):
        import traceback

        traceback.print_exception(error)
    failure = failure_of(error)
    if failure.code in ("INTERRUPTED", "TERMINATED") and invocation.is_endless and not invocation.out.as_json:
        return failure.exit_code
    verb = invocation.verb
    if not verb and isinstance(error, click.UsageError) and error.ctx is not None:
        verb = verb_name(error.ctx)
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not invocation.out.as_json:
        click.echo(error.format_message(), err=True)
        return failure.exit_code
    try:
        invocation.out.failure(verb or "error", failure)
    except OSError:  # nobody reads any more
        return failure.exit_code or UNEXPECTED
    return failure.exit_code


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value:
        return
    from raftkit_cli.verbs.version import own_version

    invocation = ctx.ensure_object(Invocation)
    number = own_version()
    invocation.out.result("version", {"version": number}, lambda: click.echo(f"raftkit {number}"))
    ctx.exit(OK)


@click.command(
    cls=Root,
    no_args_is_help=True,
    epilog="First steps: raftkit demo, then raftkit local up and raftkit status. Installed plugins may add verbs.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Run, operate and test Raft clusters."""


# The root shows the shared options its verbs accept silently.
cli.params[:] = [param for param in cli.params if not getattr(param, "hidden", False)]
cli.params[:0] = global_options(hidden=False)


def main() -> NoReturn:
    """Entry point of the ``raftkit`` script."""
    if os.name == "posix":
        _turn_sigterm_into_an_exception()
    cli.main()


def _turn_sigterm_into_an_exception() -> None:
    """So that ``finally`` runs and what was started is stopped; verbs with a loop install their own handler."""
    import signal

    def terminate(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
