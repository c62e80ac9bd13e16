"""Access tokens: who may do what over a client API, kept as hashes in a file.

One line per token: ``NAME ROLE sha256:HEX``; ``#`` begins a comment. Deleting a line revokes its token. A token is
256 random bits, so one round of SHA-256 keeps it: there is nothing to guess that a slower hash would slow down.

Roles: ``read`` reads data and status, ``write`` also writes, ``admin`` also changes the cluster.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from raftkit_core.errors import ConfigError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Role = Literal["read", "write", "admin"]

PREFIX = "raftkit_"
"""Begins every token, so that tools which look for leaked secrets find them."""
TOKENS_MAX = 1000
FILE_BYTES_MAX = 1024 * 1024
SECRET_CHARS_MAX = 512
"""Longer ones are not even hashed."""
LOCK_SECONDS = 10.0
"""How long one who changes the file waits for others who do."""
LOCK_POLL_SECONDS = 0.02
"""Between looks at the lock: flock has no timeout of its own. Only commands wait here, never a node's event loop."""

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,62})\s+(?P<role>read|write|admin)\s+sha256:(?P<hash>[0-9a-f]{64})"
)


class Token(msgspec.Struct, frozen=True):
    """One line: whose token it is, what it allows, and the SHA-256 of it."""

    name: str
    role: Role
    digest: bytes

    def __repr__(self) -> str:
        return f"Token({self.name!r}, {self.role!r})"


class TokenTable:
    """The tokens of one file. Immutable: a changed file is read into a new one."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = tokens
        self._known = frozenset(tokens)

    def holds(self, token: Token) -> bool:
        """Whether that very token is still good, with that role."""
        return token in self._known

    def find(self, secret: str) -> Token | None:
        """The token that ``secret`` is. Compares with every one in constant time: how long it takes tells nothing."""
        if not 0 < len(secret) <= SECRET_CHARS_MAX:
            return None
        digest = sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def parse_tokens(text: str, *, origin: str = "tokens") -> TokenTable:
    """Raises: ConfigError naming the line, never showing it: somebody may have put the token itself there."""
    tokens: list[Token] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(
                f"{origin} line {number} is not NAME ROLE sha256:HEX",
                hint="raftkit token new writes such a line; the token itself does not belong into this file",
            )
        role: Role = match["role"]  # type: ignore[assignment]  # the pattern allows no other
        if any(token.name == match["name"] for token in tokens):
            raise ConfigError(f"{origin} line {number}: there is a token {match['name']!r} already")
        tokens.append(Token(match["name"], role, bytes.fromhex(match["hash"])))
    if len(tokens) > TOKENS_MAX:
        raise ConfigError(f"{origin} holds {len(tokens)} tokens, more than {TOKENS_MAX}")
    return TokenTable(tuple(tokens))


def read_tokens(path: Path) -> TokenTable:
    """Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the tokens file {path} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}",
            hint="raftkit token new makes one",
        ) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"the tokens file {path} is larger than {FILE_BYTES_MAX} bytes")
    return parse_tokens(text, origin=str(path))


def new_token(path: Path, name: str, role: Role) -> str:
    """Make a token, add its hash to the file at ``path`` (made with mode 0600 if it is not there), give the secret.

    Raises: ConfigError: the name is malformed or taken, or the file cannot be read or written.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role} sha256:{sha256(secret.encode()).hexdigest()}"
    if not _LINE.fullmatch(line):
        raise ConfigError(f"{name[:80]!r} is no name for a token", hint="use 1 to 63 of A-Z a-z 0-9 . _ -")
    with changing(path):
        before = ""
        if path.exists():
            read_tokens(path)
            before = path.read_text()
        text = before + ("" if not before or before.endswith("\n") else "\n") + line + "\n"
        parse_tokens(text, origin=str(path))
        _write(path, text)
    return secret


def revoke_token(path: Path, name: str) -> None:
    """Take the line of ``name`` out of the file. Raises: ConfigError if there is none."""
    with changing(path):
        if not any(token.name == name for token in read_tokens(path).tokens):
            raise ConfigError(f"{path} has no token {name[:80]!r}", hint="raftkit token list")
        kept = [line for line in path.read_text().split("\n") if line.split()[:1] != [name]]
        _write(path, "\n".join(kept))


def _write(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except OSError as error:
        raise ConfigError(f"the tokens file {path} cannot be written: {error.strerror or error}") from None


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """From reading the file to replacing it nobody else changes it. Readers need not wait: they see one or the other.

    It is the folder that is locked: a file that is replaced keeps no lock. (Only POSIX systems can.)

    Raises: ConfigError if others do not end, or the folder cannot be used.
    """
    if fcntl is None:
        yield
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"the folder {path.parent} cannot be opened: {error.strerror or error}") from None
    try:
        give_up_at = time.monotonic() + LOCK_SECONDS
        while not _locked(folder):
            if time.monotonic() >= give_up_at:
                raise ConfigError(
                    f"another process has been changing {path} for {LOCK_SECONDS:g} s",
                    hint=f"see who: fuser -v {path.parent}",
                )
            time.sleep(LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(folder)  # and the lock with it


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: nobody could hold one
    return True


def write_private(path: Path, text: str, *, replace: bool = True) -> None:
    """Write ``text`` so that only the owner can read it, and readers see the old file or the new one.

    Raises: OSError; FileExistsError if it is there and must not be replaced.
    """
    if not replace and path.exists():
        raise FileExistsError(17, "File exists", str(path))
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
