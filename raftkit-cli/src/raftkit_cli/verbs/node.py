"""``raftkit node``: one node in the foreground, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from raftkit_cli.event_loop import CHOICES, INSTALL, LoopChoice, loop_factory
from raftkit_cli.node_log import NodeLog, bare_address
from raftkit_cli.options import Invocation, NodeAssignment, VerbGroup, pass_invocation, split_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkit_core import Raft
    from raftkit_core.config import Config
    from raftkit_core.types.membership import Node
    from raftkit_core.types.security import Security

DEFAULT_NETWORK = "http://127.0.0.1:7401"
DEFAULT_STORAGE = "sqlite:raft.db"
LOOK_AGAIN_S = 0.02
"""Metrics change with every batch of writes; the log must not cost as much as the writes."""
SHUTDOWN_LIMIT_S = 5.0
"""What a graceful end may take. Everything that was answered is durable already, so the rest may be cut off."""


_FILE = click.Path(path_type=Path, dir_okay=False)


class _Members(NodeAssignment):
    """``n1=URL,n2=URL``, as a dict."""

    name = "ID=URL,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        pairs = [super(_Members, self).convert(part, param, ctx) for part in str(value).split(",") if part.strip()]
        if len(dict(pairs)) != len(pairs):
            self.fail("a node id is listed twice", param, ctx)
        return dict(pairs)


@click.group(cls=VerbGroup, name="node", no_args_is_help=True)
def node() -> None:
    """Run one node."""


@node.command("run")
@click.option("--id", "node_id", metavar="ID", help="Name of this node in its cluster.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Its own folder. [default: raftkit-data/ID]"
)
@click.option("--storage", metavar="URL", help=f"Where its log lives. [default: {DEFAULT_STORAGE}, in the folder]")
@click.option("--network", metavar="URL", help=f"Where it listens. [default: {DEFAULT_NETWORK}]")
@click.option("--cluster", metavar="NAME", help="Name of the cluster. [default: default]")
@click.option(
    "--initial-cluster",
    type=_Members(),
    help="Every first member, this node too. Read by an empty store only: the lowest id begins the cluster.",
)
@click.option("--state-machine", metavar="NAME", help="What the log drives. [default: kv]")
@click.option("--ca", type=_FILE, metavar="FILE", help="Certificates of the CA of peers, for https://.")
@click.option("--cert", type=_FILE, metavar="FILE", help="This node's certificate; it must name the node's id.")
@click.option("--key", type=_FILE, metavar="FILE", help="The key of the certificate.")
@click.option("--tokens", type=_FILE, metavar="FILE", help="Hashes of clients' tokens: raftkit token new.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS and tokens.")
@click.option(
    "--loop",
    "loop_choice",
    type=click.Choice(CHOICES),
    default="auto",
    help=f"The event loop. auto: uvloop where it is installed ({INSTALL}). [default: auto]",
)
@click.option("--tied", is_flag=True, hidden=True, help="End when standard input closes: when the parent is gone.")
@pass_invocation
def run_node(invocation: Invocation, /, tied: bool, loop_choice: LoopChoice, **flags: Any) -> int:
    """Run a node until Ctrl-C or SIGTERM; a second one forces the end.

    The same command serves the first start and every later one. Flags win over -c raftkit.toml.

    \b
    raftkit node run --id n1 --initial-cluster n1=http://127.0.0.1:7401
    """
    settings = NodeSettings.of(invocation, flags)
    log = NodeLog(settings.node_id, invocation.out)
    log.capture_warnings()
    factory = loop_factory(loop_choice)
    with contextlib.ExitStack() as stack, asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(settings, log, stack, tied=tied))


class NodeSettings:
    """What ``node run`` was told, by flags, the file and the defaults."""

    def __init__(self, node_id: str, *, data_dir: Path, storage: str, network: str, state_machine: str) -> None:
        self.node_id = node_id
        self.data_dir = data_dir
        self.storage = storage
        self.network = network
        self.state_machine = state_machine
        self.config: Config
        self.snapshots: str | None = None
        self.initial_cluster: dict[str, Node] | None = None
        self.plugins: Any = None
        self.security: Security

    @classmethod
    def of(cls, invocation: Invocation, flags: dict[str, Any]) -> NodeSettings:
        """Flags over the file over the defaults.

        Raises:
            ConfigError: a setting is missing or wrong.
        """
        from raftkit_cli.endpoints import DEFAULT_CONFIG_FILE
        from raftkit_core.config_file import NodeFile, load_node_file
        from raftkit_core.errors import ConfigError
        from raftkit_core.types.membership import Node

        path = invocation.config_path
        if path is None and flags["node_id"] is None and DEFAULT_CONFIG_FILE.is_file():
            path = DEFAULT_CONFIG_FILE
        file = NodeFile() if path is None else load_node_file(path)
        node_id = flags["node_id"] or file.node_id
        if node_id is None:
            verb = click.get_current_context().command_path
            raise ConfigError("the node has no id", hint=f"name it: {verb} --id n1, or [node] id in -c raftkit.toml")
        from raftkit_cli.verbs.cluster import check_node_id

        check_node_id(node_id)
        settings = cls(
            node_id,
            data_dir=flags["data_dir"] or file.data_dir or Path("raftkit-data") / node_id,
            storage=flags["storage"] or file.storage or DEFAULT_STORAGE,
            network=flags["network"] or file.network or DEFAULT_NETWORK,
            state_machine=flags["state_machine"] or file.state_machine or "kv",
        )
        settings.config = file.config({} if flags["cluster"] is None else {"cluster": flags["cluster"]})
        settings.snapshots = file.snapshots
        settings.security = _security(file.security, flags)
        settings.initial_cluster = file.initial_cluster
        if flags["initial_cluster"]:
            settings.initial_cluster = {
                name: Node(*split_client(url)) for name, url in flags["initial_cluster"].items()
            }
        if settings.initial_cluster is not None and node_id not in settings.initial_cluster:
            listed = ", ".join(sorted(settings.initial_cluster))
            raise ConfigError(
                f"the initial cluster ({listed}) does not list this node, {node_id}",
                hint=f"list it: --initial-cluster {node_id}=URL,…; or leave it out and let a member add this node",
            )
        settings.plugins = _plugins(invocation, file.plugins_allow, file.plugins_disable)
        return settings


def _security(file: Security, flags: dict[str, Any]) -> Security:
    import msgspec

    given = {name: flags[name] for name in ("ca", "cert", "key", "tokens") if flags[name] is not None}
    return msgspec.structs.replace(file, insecure=file.insecure or flags["insecure"], **given)


def _plugins(invocation: Invocation, allow: list[str] | None, disable: list[str]) -> Any:
    from raftkit_cli import hookspecs
    from raftkit_core import load_plugins

    return load_plugins(invocation.plugins, hookspecs=[hookspecs], allow=allow, disable=disable)


async def _serve(settings: NodeSettings, log: NodeLog, stack: contextlib.ExitStack, *, tied: bool) -> int:
    """Open, tell what happens, and close in order when asked to."""
    from raftkit_cli.descriptors import raise_limit
    from raftkit_core import open_raft

    raise_limit()
    stop = _StopSignal(log)
    stop.install(stack)
    if tied:
        stop.follow_stdin(stack)
    log.starting(settings.data_dir, settings.storage, settings.network, _accelerators())
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    opened = open_raft(
        settings.node_id,
        storage=settings.storage,
        network=settings.network,
        state_machine=settings.state_machine,
        config=settings.config,
        data_dir=settings.data_dir,
        snapshots=settings.snapshots,
        initial_cluster=settings.initial_cluster,
        plugins=settings.plugins,
        security=settings.security,
    )
    try:
        async with opened as raft:
            stop.opened()
            _reload_on_hangup(raft, log, stack)
            log.ready(settings.network, settings.config.cluster)
            own = bare_address(settings.network)
            log.address = own if "://" in own and not own.endswith(":0") else None
            log.waiting(raft.is_pristine, settings.initial_cluster)
            if raft.is_pristine and settings.initial_cluster is not None:
                listed = bare_address(settings.initial_cluster[raft.id].peer)
                if log.address not in (None, listed):
                    log.elsewhere(listed)
            # What is here now stays to the end. A full collection that walks over it stops the loop for 18 to 46 ms.
            gc.collect()
            gc.freeze()
            await _until_stopped(raft, log, stop)
            stop.begin_countdown()
    except asyncio.CancelledError:
        if not stop.reason:
            raise  # not a signal of ours
    stop.end_countdown()
    log.stopped(stop.reason)
    return 0


def _accelerators() -> list[str]:
    """What makes this process faster than the least that works."""
    from raftkit_core.engine import COMPILED

    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return [name for name, is_on in (("uvloop", loop == "uvloop"), ("native engine", COMPILED)) if is_on]


def _reload_on_hangup(raft: Raft, log: NodeLog, stack: contextlib.ExitStack) -> None:
    """SIGHUP: certificates and tokens are read again now, not only when somebody looks at them next."""
    if not hasattr(signal, "SIGHUP"):
        return

    def hung_up() -> None:
        log.say("SIGHUP: reading certificates and tokens")
        raft.reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, hung_up)
    stack.callback(loop.remove_signal_handler, signal.SIGHUP)


async def _until_stopped(raft: Raft, log: NodeLog, stop: _StopSignal) -> None:
    """Tell every change until somebody wants an end. Raises: Fatal when the node dies by itself."""
    watcher = asyncio.ensure_future(_tell_changes(raft, log))
    waiter = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((watcher, waiter), return_when=asyncio.FIRST_COMPLETED)
        if watcher.done() and not waiter.done():
            await watcher
            await waiter  # metrics ended without a failure: a node that was shut down from inside
    finally:
        for task in (watcher, waiter):
            task.cancel()
        await asyncio.gather(watcher, waiter, return_exceptions=True)


async def _tell_changes(raft: Raft, log: NodeLog) -> None:
    from raftkit_core.errors import Fatal

    async for value in raft.metrics():
        log.changed(value)
        if value.fatal is not None:
            raise Fatal(f"node {raft.id} has stopped: {value.fatal}") from raft.fatal
        await asyncio.sleep(LOOK_AGAIN_S)


class _StopSignal:
    """SIGTERM, SIGINT or a closed standard input: the first asks for an end, the second forces it."""

    def __init__(self, log: NodeLog) -> None:
        self._log = log
        self._event = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._opening = asyncio.current_task()
        """The task to cancel while there is nothing to close in order yet; None once the node is open."""
        self.reason = ""

    def install(self, stack: contextlib.ExitStack) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            name = signal.Signals(number).name
            try:
                loop.add_signal_handler(number, self._asked, name)
                stack.callback(loop.remove_signal_handler, number)
            except NotImplementedError:  # no loop signals on Windows
                previous = signal.signal(number, self._from_another_thread(loop, name))
                stack.callback(signal.signal, number, previous)

    def _from_another_thread(self, loop: asyncio.AbstractEventLoop, name: str) -> Callable[[int, object], None]:
        def handle(_number: int, _frame: object) -> None:
            loop.call_soon_threadsafe(self._asked, name)

        return handle

    def follow_stdin(self, stack: contextlib.ExitStack) -> None:
        """A parent that dies takes its end of the pipe along, whatever killed it."""
        loop = asyncio.get_running_loop()
        descriptor = sys.stdin.fileno()

        def readable() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                self._asked("end of the parent process")

        try:
            loop.add_reader(descriptor, readable)
        except (NotImplementedError, OSError):  # Windows pipes: the parent stops us by pid only
            return
        stack.callback(loop.remove_reader, descriptor)

    def _asked(self, reason: str) -> None:
        if self._event.is_set():
            self._log.say(f"{reason} again: ending at once")
            os._exit(1)
        self.reason = reason
        self._event.set()
        if self._opening is not None:
            self.begin_countdown()
            self._opening.cancel()

    def opened(self) -> None:
        """From now on an end means closing in order."""
        self._opening = None

    async def wait(self) -> None:
        await self._event.wait()

    def begin_countdown(self) -> None:
        """Closing may hang on a disk or a plugin; the end does not wait for it."""
        if self._timer is not None:
            return

        def force() -> None:
            self._log.say(f"closing took longer than {SHUTDOWN_LIMIT_S:g} s: ending at once")
            os._exit(1)

        self._log.say(f"{self.reason}: closing")
        self._timer = asyncio.get_running_loop().call_later(SHUTDOWN_LIMIT_S, force)

    def end_countdown(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
