"""Which nodes a verb talks to: ``-e`` > ``RAFTKIT_ENDPOINTS`` > current context > ``./raftkit.toml`` > the default.

A context is a cluster remembered by name: ``local up`` and ``demo --keep`` write one and make it current.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from raftkit_cli.failures import CliError
from raftkit_cli.options import Invocation, split_endpoints

DEFAULT_ENDPOINT = "http://127.0.0.1:7401"
DEFAULT_CONFIG_FILE = Path("raftkit.toml")


class Target:
    """Addresses to ask, where they came from (for messages), and the token and CA files that belong to them."""

    def __init__(
        self,
        endpoints: list[str],
        source: str,
        token_file: Path | None = None,
        ca: Path | None = None,
        is_local: bool = False,
    ) -> None:
        self.endpoints = endpoints
        self.source = source
        self.token_file = token_file
        self.ca = ca
        self.is_local = is_local
        """Whether ``raftkit local`` or ``demo --keep`` runs it on this machine."""

    @classmethod
    def of_context(cls, name: str, context: dict[str, Any]) -> Target:
        files = {key: None if context.get(key) is None else Path(context[key]) for key in ("token_file", "ca")}
        return cls(context["endpoints"], f"context {name}", **files, is_local="dir" in context)


def resolve(invocation: Invocation) -> Target:
    """The addresses this command line means.

    Raises:
        CliError: an unknown context, or a context file that cannot be read.
        ConfigError: a raftkit.toml that cannot be read.
    """
    if invocation.endpoints:
        return Target(with_scheme(invocation.endpoints), "-e")
    if invocation.context is not None:
        return Target.of_context(invocation.context, named_context(invocation.context))
    if invocation.config_path is not None:
        return _from_config(invocation.config_path)
    from_environment = split_endpoints(os.environ.get("RAFTKIT_ENDPOINTS", ""))
    if from_environment:
        return Target(with_scheme(from_environment), "RAFTKIT_ENDPOINTS")
    current = current_context()
    if current is not None:
        return Target.of_context(*current)
    if DEFAULT_CONFIG_FILE.is_file():
        return _from_config(DEFAULT_CONFIG_FILE)
    return Target([DEFAULT_ENDPOINT], "the default")


def with_scheme(endpoints: tuple[str, ...]) -> list[str]:
    """``127.0.0.1:7401`` means ``http://127.0.0.1:7401``: what people type."""
    return [endpoint if "://" in endpoint else f"http://{endpoint}" for endpoint in endpoints]


def _from_config(path: Path) -> Target:
    """``[client] endpoints``, else everybody in ``initial_cluster``, else the node the file is about."""
    from raftkit_core.config_file import load_node_file

    loaded = load_node_file(path)
    source = str(path)
    if loaded.endpoints:
        return Target(with_scheme(tuple(loaded.endpoints)), source, loaded.token_file, loaded.client_ca)
    if loaded.initial_cluster:
        addresses = [node.client_address for node in loaded.initial_cluster.values()]
        return Target(addresses, source, loaded.token_file, loaded.client_ca)
    if loaded.network is not None:
        return Target([advertised(loaded.network)], source, loaded.token_file, loaded.client_ca)
    return Target([DEFAULT_ENDPOINT], "the default", loaded.token_file, loaded.client_ca)


def advertised(network: str) -> str:
    """Where others reach a node that listens as ``network`` says: its ``advertise`` option, or the URL itself."""
    from raftkit_core.plugins.url import AdapterUrl

    url = AdapterUrl.parse(network)
    address = url.options.get("advertise")
    return address or network.partition("?")[0]


# --- contexts -------------------------------------------------------------------------------------------------------


def config_dir() -> Path:
    """Where contexts are kept: ``RAFTKIT_CONFIG_DIR``, or the user's configuration folder."""
    override = os.environ.get("RAFTKIT_CONFIG_DIR")
    if override:
        return Path(override)
    from platformdirs import user_config_path

    return user_config_path("raftkit", appauthor=False)


def current_context() -> tuple[str, dict[str, Any]] | None:
    """The context in use, by name; None when there is none."""
    stored = _load()
    name = stored["current"]
    return (name, stored["contexts"][name]) if name in stored["contexts"] else None


def named_context(name: str) -> dict[str, Any]:
    """Raises: CliError when no context has this name."""
    contexts = _load()["contexts"]
    if name not in contexts:
        known = ", ".join(sorted(contexts)) or "none"
        raise CliError(
            "UNKNOWN_CONTEXT",
            f"there is no context {name!r}; known: {known}",
            hint="raftkit local up makes one, or name the nodes with -e URL",
        )
    context: dict[str, Any] = contexts[name]
    return context


def save_context(
    name: str,
    *,
    endpoints: list[str],
    directory: Path | None = None,
    ca: Path | None = None,
    token_file: Path | None = None,
) -> None:
    """Remember a cluster and make it current."""
    stored = _load()
    named = {"dir": directory, "ca": ca, "token_file": token_file}
    files = {key: str(path) for key, path in named.items() if path is not None}
    stored["contexts"][name] = {"endpoints": endpoints, **files}
    stored["current"] = name
    _store(stored)


def all_contexts() -> tuple[str | None, dict[str, dict[str, Any]]]:
    """The name of the one in use, and every context."""
    stored = _load()
    return stored["current"] if stored["current"] in stored["contexts"] else None, stored["contexts"]


def use_context(name: str) -> None:
    """Raises: CliError when no context has this name."""
    named_context(name)
    stored = _load()
    stored["current"] = name
    _store(stored)


def delete_context(name: str) -> None:
    """Raises: CliError when no context has this name."""
    named_context(name)
    stored = _load()
    del stored["contexts"][name]
    if stored["current"] == name:
        stored["current"] = None
    _store(stored)


def forget_directory(directory: Path) -> None:
    """Drop every context of the cluster in ``directory``: it serves no more."""
    stored = _load()
    gone = [name for name, context in stored["contexts"].items() if context.get("dir") == str(directory)]
    if not gone:
        return
    for name in gone:
        del stored["contexts"][name]
    if stored["current"] in gone:
        stored["current"] = None
    _store(stored)


def _load() -> dict[str, Any]:
    path = config_dir() / "contexts.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"current": None, "contexts": {}}
    except (OSError, ValueError) as error:
        raise CliError("CONFIG", f"{path} cannot be read: {error}", hint=f"correct or delete {path}") from error
    contexts = stored.get("contexts") if isinstance(stored, dict) else None
    if not isinstance(contexts, dict) or not all(_is_context(context) for context in contexts.values()):
        raise CliError("CONFIG", f"{path} is not a file of contexts", hint=f"delete {path}")
    return {"current": stored.get("current"), "contexts": contexts}


def _is_context(context: Any) -> bool:
    endpoints = context.get("endpoints") if isinstance(context, dict) else None
    if not (isinstance(endpoints, list) and endpoints and all(isinstance(item, str) for item in endpoints)):
        return False
    return all(isinstance(context.get(key, ""), str) for key in ("dir", "ca", "token_file"))


def _store(stored: dict[str, Any]) -> None:
    path = config_dir() / "contexts.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(stored, indent=2) + "\n")
    except OSError as error:
        raise CliError(
            "CONFIG", f"{path} cannot be written: {error}", hint="set RAFTKIT_CONFIG_DIR to a folder you may write"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
