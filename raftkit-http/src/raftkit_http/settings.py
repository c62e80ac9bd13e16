"""What a ``http://…`` network URL says: where to listen, what to advertise, and whether plain text is wanted.

Addresses of peers are checked here too, because they come out of memberships that other people wrote. Imports no
aiohttp, so that a plugin can be listed without loading it.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import parse_qsl, urlsplit

import msgspec

from raftkit_core.errors import BadAdapterUrl, ConfigError, UnknownOption

OPTIONS = ("advertise", "insecure")
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Address(msgspec.Struct, frozen=True):
    """A host and a port, as found in an ``http://`` URL."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False


class HttpSettings(msgspec.Struct, frozen=True):
    """Settings of one node's HTTP transport. ``advertise`` None: the address that is listened on."""

    listen: Address
    advertise: Address | None = None
    insecure: bool = False

    @classmethod
    def parse(cls, url: str) -> HttpSettings:
        """Read ``http://host:port?advertise=http://name:port&insecure=true``. Port 0 lets the system choose.

        Raises:
            BadAdapterUrl: the URL cannot be read.
            UnknownOption: an option is not known.
            ConfigError: TLS was asked for, or an address is exposed without ``insecure=true``.
        """
        base, _, query = url.partition("?")
        listen = _read_address(base, what="network URL", port_zero=True)
        options: dict[str, str] = {}
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=16)
        except ValueError as error:
            raise BadAdapterUrl(f"the options of network URL {_shown(url)} cannot be read: {error}") from None
        for name, value in pairs:
            if name not in OPTIONS:
                raise UnknownOption(
                    f"the http network has no option {name[:40]!r}", hint=f"known options: {', '.join(OPTIONS)}"
                )
            if name in options:
                raise BadAdapterUrl(f"option {name} is given twice in network URL {_shown(url)}")
            options[name] = value
        insecure_text = options.get("insecure", "false").lower()
        if insecure_text not in _TRUTH:
            raise BadAdapterUrl(f"insecure must be true or false, not {insecure_text[:40]!r}")
        advertise = None
        if "advertise" in options:
            advertise = _read_address(options["advertise"], what="advertised address")
        settings = cls(listen, advertise, _TRUTH[insecure_text])
        settings._check_exposure()
        return settings

    def _check_exposure(self) -> None:
        """Peers of a Raft cluster are trusted, so who may be one is the safety boundary: never open by accident."""
        if not self.listen.is_loopback and not self.insecure:
            raise ConfigError(
                f"listening on {self.listen.host} without TLS would let anyone on that network act as a peer",
                hint="listen on 127.0.0.1, or add &insecure=true to the network URL on a network you trust",
            )
        if self.listen.is_wildcard and self.advertise is None:
            raise ConfigError(
                f"{self.listen.host} is no address another member could use",
                hint=f"add ?advertise=http://<this host>:{self.listen.port} to the network URL",
            )
        if self.advertise is not None and self.advertise.is_wildcard:
            raise ConfigError(f"{self.advertise.host} is no address another member could use: advertise a host name")


def parse_peer_address(peer: str) -> Address:
    """Where a member is reached. Raises: ConfigError if ``peer`` is not ``http://host:port``."""
    try:
        return _read_address(peer, what="peer address")
    except BadAdapterUrl as error:
        raise ConfigError(error.message, hint=error.hint) from None


def _shown(text: str) -> str:
    """Text from outside, short and on one line."""
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _read_address(text: str, *, what: str, port_zero: bool = False) -> Address:
    """Exactly scheme, host and port: nothing that could smuggle a request to somewhere else."""
    hint = "write it as http://host:port, for example http://127.0.0.1:7401"
    if any(ord(char) <= 32 or ord(char) == 127 for char in text):
        raise BadAdapterUrl(f"the {what} {_shown(text)} has blanks or control characters", hint=hint)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadAdapterUrl(f"the {what} {_shown(text)} cannot be read: {error}", hint=hint) from None
    if parts.scheme == "https":
        raise ConfigError(f"the {what} {_shown(text)} asks for TLS, which is not supported yet", hint=hint)
    if parts.scheme != "http":
        raise BadAdapterUrl(f"the {what} {_shown(text)} is not an http:// address", hint=hint)
    if not host or port is None or (port == 0 and not port_zero):
        raise BadAdapterUrl(f"the {what} {_shown(text)} needs a host and a port", hint=hint)
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadAdapterUrl(f"the {what} {_shown(text)} has more than a host and a port", hint=hint)
    if not all(char.isalnum() or char in "._-:%" for char in host):
        raise BadAdapterUrl(f"the {what} {_shown(text)} has a malformed host", hint=hint)
    return Address(host, port)
