"""``raftkit.toml``: a node's settings in a file. Holds no defaults of its own: what is not written is None.

::

    [node]           id = "n1"  cluster = "demo"  data_dir = "data/n1"
    [storage]        url = "sqlite:n1.db"  snapshots = "file:snapshots"
    [network]        url = "http://0.0.0.0:7401?advertise=https://n1:7401"
    [state_machine]  name = "kv"
    [raft]           heartbeat_interval_ms = "100ms"  max_entry_bytes = "1MiB"  snapshot_policy = "logs:5000"
    [bootstrap]      initial_cluster = { n1 = "https://n1:7401", n2 = "https://n2:7401" }
    [plugins]        allow = ["sqlite", "http"]  disable = []
    [security]       ca = "certs/ca.pem"  cert = "certs/n1.pem"  key = "certs/n1.key"  tokens = "tokens"
    [client]         endpoints = ["https://n1:7401"]  token_file = "token"  ca = "certs/ca.pem"

Keys of ``[raft]`` are the fields of :class:`~raftkit_core.config.Config`. ``*_ms`` take ``250ms``, ``5s``, ``2m`` or
an integer of milliseconds, ``*_bytes`` take ``64MiB`` or an integer of bytes. ``data_dir``, ``token_file`` and the
files of ``[security]`` are relative to the folder of the file, so that it means the same wherever a command is run;
URLs are left to the adapters.
A node of ``initial_cluster`` is its peer address, or a table with ``peer``, ``client`` and ``tags``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from raftkit_core.config import AnySnapshotPolicy, Config, LogBytesSinceLast, LogsSinceLast, Never
from raftkit_core.errors import ConfigError
from raftkit_core.types.ids import is_node_id
from raftkit_core.types.membership import Node
from raftkit_core.types.security import Security
from raftkit_core.types.units import parse_duration_ms, parse_size_bytes

T = TypeVar("T")


class NodeFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a ``raftkit.toml`` says. ``origin`` names the file in messages; ``raft`` holds values for ``Config``."""

    origin: str = "raftkit.toml"
    node_id: str | None = None
    cluster: str | None = None
    data_dir: Path | None = None
    storage: str | None = None
    snapshots: str | None = None
    network: str | None = None
    state_machine: str | None = None
    raft: dict[str, Any] = {}
    initial_cluster: dict[str, Node] | None = None
    plugins_allow: list[str] | None = None
    plugins_disable: list[str] = []
    endpoints: list[str] = []
    token_file: Path | None = None
    client_ca: Path | None = None
    security: Security = Security()

    def config(self, overrides: Mapping[str, Any] | None = None) -> Config:
        """The ``Config`` of ``[raft]`` and ``[node] cluster``.

        ``overrides`` (fields of ``Config``, from flags or the environment) win, and may be written as in the file.

        Raises:
            ConfigError: a value is wrong, or the values together are.
        """
        values = dict(self.raft)
        if self.cluster is not None:
            values["cluster"] = self.cluster
        try:
            values |= raft_values(overrides or {})
        except ConfigError as error:
            raise ConfigError(f"override {error.message}", hint=error.hint) from None
        try:
            return Config(**values)
        except ConfigError as error:
            raise ConfigError(f"{self.origin}: [raft] {error.message}", hint=error.hint) from error


class _NodeSection(msgspec.Struct, frozen=True):
    id: str | None = None
    cluster: str | None = None
    data_dir: str | None = None


class _StorageSection(msgspec.Struct, frozen=True):
    url: str | None = None
    snapshots: str | None = None


class _NetworkSection(msgspec.Struct, frozen=True):
    url: str | None = None


class _StateMachineSection(msgspec.Struct, frozen=True):
    name: str | None = None
    plugin: str | None = None


class _BootstrapSection(msgspec.Struct, frozen=True):
    initial_cluster: dict[str, str | Node] | None = None


class _PluginsSection(msgspec.Struct, frozen=True):
    allow: list[str] | None = None
    disable: list[str] = []


class _ClientSection(msgspec.Struct, frozen=True):
    endpoints: list[str] = []
    token_file: str | None = None
    ca: str | None = None


class _SecuritySection(msgspec.Struct, frozen=True):
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    tokens: str | None = None
    insecure: bool = False
    allowed_hosts: list[str] = []
    peer_networks: list[str] = []


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "node": _NodeSection,
    "storage": _StorageSection,
    "network": _NetworkSection,
    "state_machine": _StateMachineSection,
    "raft": Config,
    "bootstrap": _BootstrapSection,
    "plugins": _PluginsSection,
    "security": _SecuritySection,
    "client": _ClientSection,
}


def load_node_file(path: Path | str) -> NodeFile:
    """Read the file at ``path``.

    Raises:
        ConfigError: it cannot be read, is not TOML, or a section, key or value is wrong; the error names it.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no configuration file {path}", hint="name another with -c, or give flags"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}", hint="save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_node_file(text, origin=str(path), folder=path.parent)


def parse_node_file(text: str, *, origin: str = "raftkit.toml", folder: Path | None = None) -> NodeFile:
    """Read ``text``; relative paths are under ``folder`` (None: the working directory). Raises: ConfigError."""
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib's own error is a ValueError
        raise ConfigError(f"{origin} is not TOML: {error}", hint='a line looks like url = "sqlite:n1.db"') from error
    try:
        return _Reader(tables, folder or Path()).read(origin)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error.message}", hint=error.hint) from error


class _Reader:
    def __init__(self, tables: dict[str, Any], folder: Path) -> None:
        self._tables = tables
        self._folder = folder

    def read(self, origin: str) -> NodeFile:
        self._check_names()
        node = self._section("node", _NodeSection)
        storage = self._section("storage", _StorageSection)
        plugins = self._section("plugins", _PluginsSection)
        client = self._section("client", _ClientSection)
        raft = raft_values(self._tables.get("raft", {}), where="[raft] ")
        if "cluster" in raft:
            raise ConfigError("[raft] cluster belongs elsewhere", hint="write it as cluster in [node]")
        if node.id is not None and not is_node_id(node.id):
            _bad_node_id("[node] id", node.id)
        return NodeFile(
            origin=origin,
            node_id=node.id,
            cluster=node.cluster,
            data_dir=self._optional_path("[node] data_dir", node.data_dir),
            storage=_not_empty("[storage] url", storage.url),
            snapshots=_not_empty("[storage] snapshots", storage.snapshots),
            network=_not_empty("[network] url", self._section("network", _NetworkSection).url),
            state_machine=self._state_machine(),
            raft=raft,
            initial_cluster=self._initial_cluster(),
            plugins_allow=plugins.allow,
            plugins_disable=plugins.disable,
            endpoints=client.endpoints,
            token_file=self._optional_path("[client] token_file", client.token_file),
            client_ca=self._optional_path("[client] ca", client.ca),
            security=self._security(),
        )

    def _check_names(self) -> None:
        for name, table in self._tables.items():
            if name not in SECTIONS:
                kind = f"section [{name}]" if isinstance(table, dict) else f"key {name!r} outside of any section"
                _unknown(kind, name, SECTIONS, "sections")
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{name} must be a section, not {table!r}", hint=f"write [{name}] on a line of its own"
                )
            known = SECTIONS[name].__struct_fields__
            for key in table:
                if key not in known:
                    _unknown(f"key {key!r} in [{name}]", key, known, f"keys of [{name}]")

    def _section(self, name: str, section_type: type[T]) -> T:
        table = self._tables.get(name, {})
        try:
            return msgspec.convert(table, section_type)
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at ")
            key = where.strip("`").removeprefix("$").removeprefix(".")
            reason = reason.replace("`", "").replace("Expected", "expected").replace("Object", "the table")
            raise ConfigError(f"[{name}] {key}: {reason}") from error

    def _path(self, key: str, text: str) -> Path:
        if not text or "\x00" in text:
            raise ConfigError(f"{key} names no path: {text!r}")
        return self._folder / Path(text).expanduser()

    def _optional_path(self, key: str, text: str | None) -> Path | None:
        return None if text is None else self._path(key, text)

    def _security(self) -> Security:
        section = self._section("security", _SecuritySection)
        files = {
            name: self._optional_path(f"[security] {name}", getattr(section, name))
            for name in ("ca", "cert", "key", "tokens")
        }
        return Security(
            **files,
            insecure=section.insecure,
            allowed_hosts=tuple(section.allowed_hosts),
            peer_networks=tuple(section.peer_networks),
        )

    def _state_machine(self) -> str | None:
        section = self._section("state_machine", _StateMachineSection)
        if section.name is not None and section.plugin is not None and section.name != section.plugin:
            raise ConfigError(
                f"[state_machine] has name {section.name!r} and plugin {section.plugin!r}", hint="keep one of the two"
            )
        return _not_empty("[state_machine] name", section.name or section.plugin)

    def _initial_cluster(self) -> dict[str, Node] | None:
        listed = self._section("bootstrap", _BootstrapSection).initial_cluster
        if listed is None:
            return None
        if not listed:
            raise ConfigError(
                "[bootstrap] initial_cluster lists nobody", hint='write { n1 = "http://127.0.0.1:7401", … }'
            )
        members = {}
        for node_id, given in listed.items():
            if not is_node_id(node_id):
                _bad_node_id("[bootstrap] initial_cluster", node_id)
            members[node_id] = Node(given) if isinstance(given, str) else given
            _not_empty(f"[bootstrap] initial_cluster.{node_id}", members[node_id].peer)
        return members


def raft_values(table: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """``table`` with durations, sizes and the snapshot policy read from their text forms. Checks each value alone.

    Raises:
        ConfigError: a key is no field of ``Config``, or its value is of the wrong type. The message has ``where``.
    """
    fields = {item.name: item for item in msgspec.structs.fields(Config)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            _unknown(f"key {where}{key}", key, fields, "keys")
        try:
            values[key] = _raft_value(key, value, fields[key].type)
        except msgspec.ValidationError as error:
            reason = str(error).replace("`", "").replace("Expected", "expected")
            raise ConfigError(f"{where}{key}: {reason} ({value!r})") from error
        except ValueError as error:
            raise ConfigError(f"{where}{key}: {error}") from error
    return values


def _raft_value(key: str, value: Any, wanted: Any) -> Any:
    if key.endswith("_ms"):
        return parse_duration_ms(value)
    if key.endswith("_bytes"):
        return parse_size_bytes(value)
    if key == "snapshot_policy":
        return value if isinstance(value, LogsSinceLast | LogBytesSinceLast | Never) else parse_snapshot_policy(value)
    return msgspec.convert(value, wanted)


def parse_snapshot_policy(text: object) -> AnySnapshotPolicy:
    """``never``, ``logs:5000`` or ``bytes:64MiB``.

    Raises:
        ValueError: none of these.
    """
    kind, separator, amount = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind == "never" and not separator:
        return Never()
    if kind == "logs" and amount.isascii() and amount.isdigit():
        return LogsSinceLast(int(amount))
    if kind == "bytes" and amount:
        return LogBytesSinceLast(parse_size_bytes(amount))
    raise ValueError(f"expected never, logs:5000 or bytes:64MiB, got {text!r}")


def _unknown(what: str, name: str, known: Iterable[str], noun: str) -> NoReturn:
    names = sorted(known)
    nearest = get_close_matches(name, names, n=1)
    guess = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"unknown {what}{guess}", hint=f"{noun}: {', '.join(names)}")


def _not_empty(key: str, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise ConfigError(f"{key} is empty", hint="give it a value or leave it out")
    return value


def _bad_node_id(where: str, text: str) -> NoReturn:
    raise ConfigError(
        f"{where}: {text!r} is not a node id", hint="use 1 to 63 of A-Z a-z 0-9 . _ -, first a letter or digit"
    )
