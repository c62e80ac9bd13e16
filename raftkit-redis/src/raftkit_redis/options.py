"""What a ``redis://`` URL says, checked before anything is connected."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from raftkit_core.errors import BadAdapterUrl, StorageError
from raftkit_core.plugins.url import AdapterUrl
from raftkit_core.types.adapter import AdapterContext

Durability = Literal["strict", "relaxed"]
WitnessMode = Literal["async", "sync"]

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}\Z")


class UrlOptions(msgspec.Struct, frozen=True):
    """Everything after the ``?``.

    - ``prefix``: start of every key; by default ``raftkit:CLUSTER/GROUP/NODE``. A log and a ``redis-kv`` may share one.
    - ``durability``: ``strict`` refuses a server that may forget an answered write; ``relaxed`` accepts it, says so in
      ``info()``, and still refuses replicas, Sentinel, Cluster and eviction.
    - ``takeover``: take the store from a holder that cannot be shown to be dead. The old one is fenced off.
    - ``witness``: ``async`` or ``sync``, see ``witness``.
    - ``timeout_ms``: longest wait for one answer, and again for finding out what became of an unanswered write.
    - ``loading_timeout_ms``: longest wait at open for a server that is loading its data.
    - ``password_env``, ``password_file``: where the password is, so that it is in no URL and no process list.
    - ``ca``, ``cert``, ``key``: files for ``rediss://``. The server's certificate is always checked.
    """

    prefix: str = ""
    durability: Durability = "strict"
    takeover: bool = False
    witness: WitnessMode = "async"
    timeout_ms: int = 5_000
    loading_timeout_ms: int = 30_000
    password_env: str = ""
    password_file: str = ""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where the log is and how to treat it. No ``repr`` shows the password."""

    host: str
    port: int
    database: int
    prefix: str
    group: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_env: str = ""
    password_file: str = ""
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    durability: Durability = "strict"
    takeover: bool = False
    witness: WitnessMode = "async"
    timeout_s: float = 5.0
    loading_timeout_s: float = 30.0

    @classmethod
    def from_url(cls, url: AdapterUrl, context: AdapterContext) -> RedisOptions:
        """Read ``url``. Raises: BadAdapterUrl, UnknownOption."""
        given = url.options_as(UrlOptions)
        database = url.path.removeprefix("/") or "0"
        if not re.fullmatch(r"[0-9]{1,5}", database):
            raise BadAdapterUrl(
                f"{url}: {database!r} is not a database number", hint="write redis://HOST:PORT/0?prefix=NAME"
            )
        prefix = given.prefix or f"raftkit:{context.cluster}/{context.group}/{context.node_id}"
        if not _PREFIX.match(prefix):
            # A brace would move the hash tag, and with it the keys, into different slots.
            raise BadAdapterUrl(
                f"{url}: {prefix!r} cannot start a key",
                hint="use up to 200 letters, digits or . _ : / @ - for prefix, first a letter or digit",
            )
        if sum(map(bool, (url.password, given.password_env, given.password_file))) > 1:
            raise BadAdapterUrl(
                f"{url} names more than one password", hint="keep one of: the URL's, password_env, password_file"
            )
        tls = url.scheme.startswith("rediss")
        if not tls and (given.ca or given.cert or given.key):
            raise BadAdapterUrl(f"{url}: ca, cert and key need TLS", hint="write rediss:// instead of redis://")
        for name, value in (("timeout_ms", given.timeout_ms), ("loading_timeout_ms", given.loading_timeout_ms)):
            if value < 1:
                raise BadAdapterUrl(f"{url}: {name} must be at least 1 ms", hint=f"for example {name}=5s")
        return cls(
            host=url.host or "127.0.0.1",
            port=url.port or 6379,
            database=int(database),
            prefix=prefix,
            group=context.group,
            username=url.username or None,
            password=url.password or None,
            password_env=given.password_env,
            password_file=given.password_file,
            tls=tls,
            ca=given.ca,
            cert=given.cert,
            key=given.key,
            durability=given.durability,
            takeover=given.takeover,
            witness=given.witness,
            timeout_s=given.timeout_ms / 1000,
            loading_timeout_s=given.loading_timeout_ms / 1000,
        )

    @property
    def location(self) -> str:
        """A URL for people, without user name, password and options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}?prefix={self.prefix}"

    @property
    def meta_key(self) -> str:
        """The braces keep both keys in one hash slot."""
        return f"{{{self.prefix}}}:meta"

    @property
    def log_key(self) -> str:
        return f"{{{self.prefix}}}:log"

    def read_password(self) -> str | None:
        """The password, read anew for every connection, so that a rotated one is found.

        Raises: StorageError if the variable is not set or the file cannot be read.
        """
        if self.password_env:
            value = os.environ.get(self.password_env)
            if value is None:
                raise StorageError(
                    f"the environment variable {self.password_env} is not set",
                    verb="open",
                    hint=f"export {self.password_env}, or remove password_env from the storage URL",
                )
            return value or None
        if self.password_file:
            try:
                return Path(self.password_file).read_text(encoding="utf-8").strip() or None
            except (OSError, UnicodeDecodeError) as error:
                raise StorageError(
                    f"the password file {self.password_file} cannot be read: {type(error).__name__}",
                    verb="open",
                    hint="make it readable for the node, and for nobody else",
                ) from None
        return self.password
