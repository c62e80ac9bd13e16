"""What a ``http://…`` or ``https://…`` network URL says: where to listen, what to advertise, who may connect.

Addresses of peers are checked here too, because they come out of memberships that other people wrote. Imports no
aiohttp, so that a plugin can be listed without loading it.
"""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec

from raftkit_core.errors import BadAdapterUrl, ConfigError, UnknownOption
from raftkit_core.types.security import Security
from raftkit_core.types.units import parse_size_bytes

OPTIONS = ("advertise", "advertise_clients", "clients", "insecure", "snapshot_rate")
SNAPSHOT_RATE_MIN = 1024 * 1024
"""Bytes a second: a chunk must arrive well within ``install_snapshot_timeout_ms``."""
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

Scheme = Literal["http", "https"]
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


class Address(msgspec.Struct, frozen=True):
    """A scheme, a host and a port, as found in an ``http://`` or ``https://`` URL."""

    host: str
    port: int
    scheme: Scheme = "http"

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

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
    """Settings of one node's HTTP transport.

    ``advertise`` None: the address that is listened on. ``clients`` None: clients share the listener of peers.
    ``snapshot_rate`` is in bytes a second, for all snapshots this node sends together; None: as fast as it goes.
    """

    listen: Address
    advertise: Address | None = None
    clients: Address | None = None
    advertise_clients: Address | None = None
    security: Security = Security()
    snapshot_rate: int | None = None

    @classmethod
    def parse(cls, url: str, security: Security | None = None) -> HttpSettings:
        """Read ``https://host:port?advertise=https://name:port&clients=https://host:port&insecure=true``.

        Port 0 lets the system choose.

        Raises:
            BadAdapterUrl: the URL cannot be read.
            UnknownOption: an option is not known.
            ConfigError: TLS without certificates, or an address exposed without TLS and tokens unless it is
                written ``insecure``.
        """
        base, _, query = url.partition("?")
        options = _read_options(url, query)
        insecure_text = options.get("insecure", "false").lower()
        if insecure_text not in _TRUTH:
            raise BadAdapterUrl(f"insecure must be true or false, not {insecure_text[:40]!r}")
        security = Security() if security is None else security
        if _TRUTH[insecure_text]:
            security = msgspec.structs.replace(security, insecure=True)

        def option(name: str, what: str, *, port_zero: bool = False) -> Address | None:
            return _read_address(options[name], what=what, port_zero=port_zero) if name in options else None

        settings = cls(
            listen=_read_address(base, what="network URL", port_zero=True),
            advertise=option("advertise", "advertised address"),
            clients=option("clients", "address for clients", port_zero=True),
            advertise_clients=option("advertise_clients", "advertised address for clients"),
            security=security,
            snapshot_rate=_read_rate(options.get("snapshot_rate")),
        )
        settings._check()
        return settings

    @property
    def peer_networks(self) -> tuple[IpNetwork, ...]:
        return tuple(ipaddress.ip_network(text) for text in self.security.peer_networks)

    def _check(self) -> None:
        if self.advertise_clients is not None and self.clients is None:
            raise ConfigError("advertise_clients has no meaning without clients=…: a second listener for them")
        for listen, advertise, name in (
            (self.listen, self.advertise, "advertise"),
            (self.clients, self.advertise_clients, "advertise_clients"),
        ):
            if listen is not None:
                self._check_exposure(listen)
                _check_advertised(listen, advertise, name)
        self._check_files()
        try:
            _ = self.peer_networks
        except ValueError as error:
            raise ConfigError(f"[security] peer_networks: {error}", hint='write ["10.0.0.0/8"]') from None

    def _check_exposure(self, listen: Address) -> None:
        """Peers of a Raft cluster are trusted, so who may be one is the safety boundary: never open by accident."""
        security = self.security
        if listen.is_loopback or security.insecure:
            return
        if listen.scheme == "http":
            raise ConfigError(
                f"listening on {listen.host} without TLS would let anyone on that network act as a peer or a client",
                hint="listen on 127.0.0.1; or use https:// with certificates (raftkit certs dev) and tokens"
                " (raftkit token new); or write --insecure, on a network where you trust everybody",
            )
        if security.tokens is None and (listen is self.clients or self.clients is None):
            raise ConfigError(
                f"listening on {listen.host} without tokens would let anyone on that network act as a client",
                hint="make one (raftkit token new) and name the file: [security] tokens; or write --insecure",
            )

    def _check_files(self) -> None:
        security = self.security
        schemes = {address.scheme for address in (self.listen, self.clients) if address is not None}
        given = [name for name in ("ca", "cert", "key") if getattr(security, name) is not None]
        if "https" in schemes:
            needed = ("ca", "cert", "key") if self.listen.scheme == "https" else ("cert", "key")
            missing = [name for name in needed if name not in given]
            if missing:
                raise ConfigError(
                    f"https:// needs {', '.join(missing)}",
                    hint="make them: raftkit certs dev; then name them under [security], or as --ca, --cert and --key",
                )
        elif given:
            # Nobody who names certificates wants plain text: a forgotten "s" must not switch TLS off.
            raise ConfigError(
                f"{', '.join(given)} given, but {self.listen.url} is not https://",
                hint="write https:// in the network URL, or leave the certificates out",
            )


def _check_advertised(listen: Address, advertise: Address | None, name: str) -> None:
    if listen.is_wildcard and advertise is None:
        raise ConfigError(
            f"{listen.host} is no address another member could use",
            hint=f"add ?{name}={listen.scheme}://<this host>:{listen.port} to the network URL",
        )
    if advertise is not None and advertise.is_wildcard:
        raise ConfigError(f"{advertise.host} is no address another member could use: advertise a host name")
    if advertise is not None and advertise.scheme != listen.scheme:
        raise ConfigError(
            f"{listen.url} is listened on, but {advertise.url} advertised: one has TLS, the other has not",
            hint="write http:// or https:// for both",
        )


def parse_peer_address(peer: str, *, scheme: Scheme | None = None, networks: tuple[IpNetwork, ...] = ()) -> Address:
    """Where a member is reached: ``http://host:port`` or ``https://host:port``.

    ``scheme`` is the one this cluster speaks: the other is refused, never tried. An IP address must be in
    ``networks``, if there are any, and never link-local, multicast or unspecified.

    Raises:
        ConfigError: it is none, or none that may be used.
    """
    try:
        address = _read_address(peer, what="peer address")
    except BadAdapterUrl as error:
        raise ConfigError(error.message, hint=error.hint) from None
    if scheme is not None and address.scheme != scheme:
        raise ConfigError(
            f"the peer address {_shown(peer)} is not {scheme}://", hint="TLS is for all peers of a cluster or for none"
        )
    refused = why_refused(address.host, networks)
    if refused is not None:
        raise ConfigError(f"the peer address {_shown(peer)} may not be used: {refused}")
    return address


def why_refused(host: str, networks: tuple[IpNetwork, ...]) -> str | None:
    """Why a connection to the IP address ``host`` would be wrong; None if it is not, or if ``host`` is a name."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    ip = ip if mapped is None else mapped
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return "link-local, multicast and wildcard addresses are no member's"
    if networks and not any(ip in network for network in networks):
        return f"it is in none of [security] peer_networks ({', '.join(map(str, networks))})"
    return None


def _read_options(url: str, query: str) -> dict[str, str]:
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
    return options


def _read_rate(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        rate = parse_size_bytes(text)
    except ValueError as error:
        raise BadAdapterUrl(f"snapshot_rate: {error}") from None
    if rate < SNAPSHOT_RATE_MIN:
        raise ConfigError(f"snapshot_rate is {rate} bytes a second", hint="give 1MiB or more, or leave it out")
    return rate


def _shown(text: str) -> str:
    """Text from outside, short and on one line."""
    return repr(text if len(text) <= 100 else text[:100] + "…")


def _read_address(text: str, *, what: str, port_zero: bool = False) -> Address:
    """Exactly scheme, host and port: nothing that could smuggle a request to somewhere else."""
    hint = "write it as http://host:port or https://host:port, for example http://127.0.0.1:7401"
    if any(ord(char) <= 32 or ord(char) == 127 for char in text):
        raise BadAdapterUrl(f"the {what} {_shown(text)} has blanks or control characters", hint=hint)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadAdapterUrl(f"the {what} {_shown(text)} cannot be read: {error}", hint=hint) from None
    if parts.scheme not in ("http", "https"):
        raise BadAdapterUrl(f"the {what} {_shown(text)} is not an http:// or https:// address", hint=hint)
    if not host or port is None or (port == 0 and not port_zero):
        raise BadAdapterUrl(f"the {what} {_shown(text)} needs a host and a port", hint=hint)
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadAdapterUrl(f"the {what} {_shown(text)} has more than a host and a port", hint=hint)
    if not all((char.isascii() and char.isalnum()) or char in "._-:%" for char in host):
        raise BadAdapterUrl(f"the {what} {_shown(text)} has a malformed host", hint=hint)
    return Address(host, port, "https" if parts.scheme == "https" else "http")
