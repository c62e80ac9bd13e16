"""A CA and certificates for nodes, as files: what ``raftkit certs dev`` makes. Only this needs cryptography."""

from __future__ import annotations

import datetime
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raftkit_core.errors import ConfigError
from raftkit_core.network.tokens import write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS = 3650
NODE_DAYS = 825
CLOCK_SLACK = datetime.timedelta(minutes=5)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_OTHER_CA = "put both files of one CA there, or write to another folder: --out DIR"
_DNS_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


class Authority:
    """A CA: signs certificates for nodes. Its key is what makes a peer, so it stays with whoever adds nodes."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def in_folder(cls, folder: Path) -> tuple[Authority, bool]:
        """The one in ``folder``, made if there is none; and whether it was made. Raises: ConfigError."""
        x509, ec, serialization, _ = _cryptography()
        cert_file, key_file = folder / "ca.pem", folder / "ca.key"
        if cert_file.exists() != key_file.exists():
            missing = key_file if cert_file.exists() else cert_file
            raise ConfigError(
                f"{missing} is missing beside the other half of a CA",
                hint="put it back, or name another folder: --out FOLDER",
            )
        if cert_file.exists():
            try:
                certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
                key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            except (OSError, ValueError, TypeError) as error:
                raise ConfigError(
                    f"the CA in {folder} cannot be read: {type(error).__name__}", hint=_OTHER_CA
                ) from None
            if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
                raise ConfigError(f"{key_file} is not the key of {cert_file}", hint=_OTHER_CA)
            return cls(certificate, key), False
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "raftkit development CA")])
        builder = _builder(name, name, key, CA_DAYS).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        certificate = _signed(builder, key, key, ca=True)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(cert_file, certificate)
        _write_key(key_file, key)
        return cls(certificate, key), True

    def issue(self, folder: Path, node_id: str, hosts: tuple[str, ...]) -> tuple[Path, Path]:
        """Certificate and key of ``node_id`` at ``hosts``, replacing older ones. Raises: ConfigError."""
        x509, ec, _, _ = _cryptography()
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[Any] = [x509.UniformResourceIdentifier(f"raftkit:node:{node_id}")]
        for host in dict.fromkeys((node_id, *hosts, *LOCAL_HOSTS)):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                if _DNS_NAME.fullmatch(host):
                    names.append(x509.DNSName(host))
                elif host != node_id:
                    raise ConfigError(f"{host[:80]!r} is neither a host name nor an IP address") from None
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, node_id)])
        builder = (
            _builder(subject, self._certificate.subject, key, NODE_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        certificate = _signed(builder, key, self._key, ca=False)
        cert_file, key_file = folder / f"{node_id}.pem", folder / f"{node_id}.key"
        _write_key(key_file, key)
        _write(cert_file, certificate)
        return cert_file, key_file


def describe(path: Path) -> dict[str, Any]:
    """What a certificate says, without its key. Raises: ConfigError."""
    x509, *_ = _cryptography()
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no certificate in PEM"
        raise ConfigError(
            f"{path} cannot be read: {reason}", hint="name a certificate as PEM, such as raftkit certs dev makes"
        ) from None
    names: list[str] = []
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(name.value) for name in found]
    except x509.ExtensionNotFound:
        pass
    return {
        "file": str(path),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": names,
        "valid_from": certificate.not_valid_before_utc.isoformat(),
        "valid_until": certificate.not_valid_after_utc.isoformat(),
        "days_left": (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days,
    }


def _cryptography() -> tuple[Any, Any, Any, Any]:
    """Raises: ConfigError where it is not installed."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError(
            "making certificates needs the package cryptography", hint="pip install 'raftkit-http[tls]'"
        ) from None
    return x509, ec, serialization, hashes


def _builder(subject: Any, issuer: Any, key: Any, days: int) -> Any:
    x509, *_ = _cryptography()
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _signed(builder: Any, key: Any, signer: Any, *, ca: bool) -> Any:
    x509, _, _, hashes = _cryptography()
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        builder.add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _write(path: Path, certificate: Any) -> None:
    *_, serialization, _ = _cryptography()
    _write_text(path, certificate.public_bytes(serialization.Encoding.PEM).decode())


def _write_key(path: Path, key: Any) -> None:
    *_, serialization, _ = _cryptography()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write_text(path, pem.decode())


def _write_text(path: Path, text: str) -> None:
    try:
        write_private(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None
