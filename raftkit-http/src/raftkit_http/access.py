"""Who may ask a node for what: host names, tokens and roles, a limit on failed attempts, and a record of admin actions.

Without a tokens file everybody who can connect may do everything: then the node listens on loopback, or somebody wrote
``--insecure``. With one, every route that shows or changes data needs a token of its role or a higher one.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import OrderedDict
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from aiohttp import hdrs, web

from raftkit_core.errors import AccessDenied
from raftkit_core.network.tokens import Role, Token, TokenTable, read_tokens
from raftkit_core.types.security import Security
from raftkit_http.tls import file_stamp, warn_if_readable

logger = logging.getLogger(__name__)
audit_log = logging.getLogger("raftkit.audit")

RouteRole = Literal["open", "read", "write", "admin"]
"""What a caller must be allowed; ``open``: nothing."""

FAILURES_BURST = 10
"""Wrong tokens one address may show at once; then one more each second."""
FAILURES_PER_SECOND = 1.0
ADDRESSES_MAX = 4096
"""Addresses remembered for their failures; the oldest are forgotten."""


class Unauthenticated(AccessDenied):
    """No token, or none that is known (HTTP 401). Says no more than that."""


class TooManyFailures(AccessDenied):
    """Wrong tokens came too often from there (HTTP 429). A right one is taken all the same."""


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the name of a token, or ``anyone`` where none is needed."""

    name: str
    role: Role
    token: Token | None = None

    @property
    def by_token(self) -> bool:
        return self.token is not None

    def allows(self, role: RouteRole) -> bool:
        return role == "open" or _RANK[self.role] >= _RANK[role]

    def require(self, role: RouteRole) -> None:
        """Raises: AccessDenied unless the caller may do what needs ``role``."""
        if not self.allows(role):
            raise AccessDenied(
                f"the token {self.name!r} has the role {self.role}, this needs {role}",
                hint=f"use a token with that role: raftkit token new NAME --role {role}",
            )


_RANK: dict[str, int] = {"read": 0, "write": 1, "admin": 2}
ANYONE = Caller("anyone", "admin")
NOBODY = Caller("nobody", "read")
"""Without a token where one is needed: an open route asks for none."""


class Access:
    """One node's rules. ``names`` are the host names it is addressed by."""

    def __init__(self, security: Security | None = None, *, names: frozenset[str] = frozenset()) -> None:
        """Raises: ConfigError if the tokens file cannot be used."""
        self._path = None if security is None else security.tokens
        allowed = () if security is None else security.allowed_hosts
        self._names = {name.lower().rstrip(".") for name in (*names, *allowed)} | {"localhost"}
        self._stamp = file_stamp(self._path)
        self._table: TokenTable | None = None
        self.failures = FailureLimit("a wrong token")
        self.strangers = FailureLimit()
        """Of those who are not known, as many admin actions are written down as wrong tokens are logged."""
        if self._path is not None:
            warn_if_readable(self._path)
            self._table = read_tokens(self._path)

    def refresh(self) -> bool:
        """Whether there were new tokens to read. Raises: ConfigError, and the former ones stay in force."""
        stamp = file_stamp(self._path)
        if self._path is None or stamp == self._stamp:
            return False
        self._table = read_tokens(self._path)
        self._stamp = stamp
        return True

    def identify(self, request: web.Request, role: RouteRole, now: float) -> Caller:
        """Who asks, from where they may ask. Raises: AccessDenied."""
        _check_origin(request)
        caller = self._caller(request, role, now)
        if not caller.by_token:
            # A page that was made to resolve to this machine can send requests, but it has no token.
            self._check_host(request)
        return caller

    def _caller(self, request: web.Request, role: RouteRole, now: float) -> Caller:
        table = self._table
        if table is None:
            return ANYONE
        given = request.headers.getall(hdrs.AUTHORIZATION, ())
        # Of two, what stands before this node may have looked at the other one.
        kind, _, secret = (given[0] if len(given) == 1 else "").partition(" ")
        if kind.lower() == "bearer" and (token := table.find(secret.strip())) is not None:
            return Caller(token.name, token.role, token)
        if role == "open":
            return NOBODY
        if secret and not self.failures.take(request.remote or "", now):
            raise TooManyFailures("too many wrong tokens", hint="wait a second", retryable=True)
        raise Unauthenticated("a valid token is needed", hint="name its file: --token-file FILE")

    def require_current(self, caller: Caller) -> None:
        """On a connection that lasts, before each thing it asks for. Raises: AccessDenied once the token is revoked."""
        if caller.token is not None and (self._table is None or not self._table.holds(caller.token)):
            raise Unauthenticated("the token was revoked", hint="name the file of a valid one: --token-file FILE")

    def _check_host(self, request: web.Request) -> None:
        """Only a page whose name was rebound to this machine names another host than this one's."""
        given = request.headers.get(hdrs.HOST)
        if given is None or host_of(given) in self._names or _is_ip(host_of(given)):
            return
        raise AccessDenied(
            "requests for another host are refused", hint="name it under [security] allowed_hosts, or use a token"
        )


def _check_origin(request: web.Request) -> None:
    """A page of another site must not drive a node through its reader's browser. Raises: AccessDenied."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and origin.partition("://")[2] != request.headers.get(hdrs.HOST, ""):
        raise AccessDenied("requests from pages of another origin are refused")


def host_of(header: str) -> str:
    """The host in a ``Host`` header, without port and brackets, lower case; "" if it is none."""
    if any(char in header for char in "@/?#\\"):
        return ""
    try:
        return (urlsplit("//" + header).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class FailureLimit:
    """How many more wrong tokens each address may show now."""

    def __init__(self, what: str | None = None) -> None:
        """``what`` is logged with its address while there are not too many."""
        self._what = what
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.refused = 0

    def take(self, address: str, now: float) -> bool:
        """Count a failure of ``address``; False when there were too many."""
        left, since = self._left.pop(address, (float(FAILURES_BURST), now))
        left = min(float(FAILURES_BURST), left + (now - since) * FAILURES_PER_SECOND)
        self._left[address] = (max(left - 1.0, 0.0), now)
        if len(self._left) > ADDRESSES_MAX:
            self._left.popitem(last=False)
        if left < 1.0:
            self.refused += 1
            return False
        if self._what is not None:
            logger.warning("%s from %s", self._what, address)
        return True


def audit(caller: Caller, request: web.Request, status: int) -> None:
    """One line per admin action that was asked for, done or refused. Holds no body and no secret."""
    path = request.path if request.path.isprintable() else ascii(request.path)
    audit_log.info("%s from %s: %s %s %d", caller.name, request.remote, request.method, path[:200], status)
