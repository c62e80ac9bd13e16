"""TLS: contexts for listening and for calling, read again when their files change, and whose certificate it is.

A peer proves who it is with a certificate of the cluster's CA that names its node id: as the URI ``raftkit:node:ID``,
or, where there is no such URI, as a DNS name equal to the id. Both sides check: who is called, and who calls. There is
no way around a failed check: no plain text, no older protocol than TLS 1.2, no unchecked host name.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raftkit_core.errors import ConfigError
from raftkit_core.types.ids import NodeId
from raftkit_core.types.security import Security

logger = logging.getLogger(__name__)

NODE_URI = "raftkit:node:"

Stamp = tuple[tuple[int, int, int] | None, ...]


def certified_ids(certificate: Mapping[str, Any] | None) -> frozenset[NodeId]:
    """The node ids that a checked certificate (``getpeercert()``) speaks for."""
    names: tuple[tuple[str, str], ...] = () if not certificate else certificate.get("subjectAltName", ())
    said = frozenset(name.removeprefix(NODE_URI) for kind, name in names if kind == "URI" and name.startswith(NODE_URI))
    return said or frozenset(name for kind, name in names if kind == "DNS" and name != "localhost")


HANDSHAKE_ROUNDS_MAX = 16
"""Of messages there and back; TLS 1.3 needs three."""


def check_own(security: Security, node_id: NodeId) -> None:
    """Whether peers with the same CA will take this node's certificate for that of ``node_id``: by a handshake with
    itself, in memory. One that no CA here has signed is only warned of: others may know its CA.

    Raises: ConfigError if the certificate is another node's.
    """
    caller = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    caller.check_hostname = False
    _harden(caller)
    _load_ca(caller, security)
    to_server, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    called = caller.wrap_bio(to_caller, to_server)
    server = _server_context(security, ssl.CERT_NONE).wrap_bio(to_server, to_caller, server_side=True)
    try:
        for _ in range(HANDSHAKE_ROUNDS_MAX):
            if _step(called) & _step(server):
                break
        else:
            raise ssl.SSLError("the handshake does not end")
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or _reason(error)
        logger.warning("%s is not trusted by %s (%s): peers will refuse it", security.cert, security.ca, reason)
        return
    named = certified_ids(called.getpeercert())
    if node_id not in named:
        raise ConfigError(
            f"the certificate {security.cert} is that of {', '.join(sorted(named)) or 'no node'}, not of {node_id}",
            hint=f"name that of {node_id}: --cert and --key, or [security]; raftkit certs dev {node_id} makes one",
        )


def _step(end: ssl.SSLObject) -> bool:
    """One step of a handshake; whether it is complete at this end. Raises: ssl.SSLError."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


class TlsContexts:
    """One node's contexts. :meth:`refresh` reads changed files again; connections that are open stay as they are."""

    def __init__(self, security: Security) -> None:
        """Raises: ConfigError if a file cannot be read, or certificate and key do not belong together."""
        self._security = security
        self._stamp: Stamp = ()
        self._served: dict[ssl.VerifyMode, ssl.SSLContext] = {}
        self._client: ssl.SSLContext
        self._read()

    @property
    def client(self) -> ssl.SSLContext:
        """For calling a peer: shows our certificate, checks that the other one is of our CA and for the host."""
        return self._client

    def server(self, verify: ssl.VerifyMode) -> ssl.SSLContext:
        """For listening. Each new connection gets what was read last.

        The context that a server was started with cannot be exchanged, and a CA cannot be taken out of one. So every
        handshake is handed over to the current context, as it would be for another host name.
        """
        served = _server_context(self._security, verify)

        def hand_over(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._served[verify]

        self._served[verify] = served
        listening = _server_context(self._security, verify)
        listening.sni_callback = hand_over  # also called when no name is asked for
        return listening

    def refresh(self) -> bool:
        """Whether there was something new. Raises: ConfigError, and the former contexts stay in use."""
        if _stamp_of(self._security) == self._stamp:
            return False
        self._read()
        return True

    def _read(self) -> None:
        stamp = _stamp_of(self._security)
        client = _client_context(self._security)
        served = {verify: _server_context(self._security, verify) for verify in self._served}
        self._client, self._stamp = client, stamp
        self._served.update(served)


def _stamp_of(security: Security) -> Stamp:
    return tuple(file_stamp(path) for path in (security.ca, security.cert, security.key))


def file_stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _server_context(security: Security, verify: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, security)
    if verify is not ssl.CERT_NONE:
        _load_ca(context, security)
    context.verify_mode = verify
    return context


def _client_context(security: Security) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks host names and certificates
    _harden(context)
    _load_own(context, security)
    if security.ca is not None:
        _load_ca(context, security)
    return context


def ca_context(ca: Path | None) -> ssl.SSLContext:
    """For a client: trusts ``ca``, or whom the system trusts. Raises: ConfigError."""
    if ca is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    _load_ca(context, Security(ca=ca))
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would not check the certificate again, which may have been taken out of trust meanwhile.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0


def _load_own(context: ssl.SSLContext, security: Security) -> None:
    assert security.cert is not None, "settings check that it is given"
    assert security.key is not None, "settings check that it is given"
    warn_if_readable(security.key)
    try:
        context.load_cert_chain(security.cert, security.key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; its text names no content
        raise ConfigError(
            f"certificate {security.cert} and key {security.key} cannot be used: {_reason(error)}",
            hint="both are PEM, belong together, and the key is not encrypted: raftkit certs dev makes such",
        ) from None


def _load_ca(context: ssl.SSLContext, security: Security) -> None:
    assert security.ca is not None, "settings check that it is given"
    try:
        context.load_verify_locations(cafile=security.ca)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the CA file {security.ca} cannot be used: {_reason(error)}",
            hint="name a file of certificates as PEM; raftkit certs dev writes its CA to certs/ca.pem",
        ) from None


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # and not a question on a terminal where nobody sits


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def warn_if_readable(path: Path) -> None:
    """Say that others on this machine can read a secret."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("%s can be read by others: chmod 600 %s", path, path)
