"""Certificates as Docker Machine makes them, in the places where it puts them.

RSA keys of 2048 bits, subjects that are an organization alone, no CA key usage beyond signing certificates, the
server's names in its certificate, and one purpose for each: servers serve, clients connect.

(docker/machine: libmachine/cert/cert.go, libmachine/provision/utils.go)
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
_LIFE = datetime.timedelta(days=1080)


@dataclass
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: rsa.RSAPrivateKey

    def write(self, certificate: Path, key: Path) -> None:
        """As PEM files."""
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
        certificate.write_bytes(self.certificate.public_bytes(encoding))
        key.write_bytes(self.key.private_bytes(encoding, form, serialization.NoEncryption()))


class Machine:
    """What `docker-machine create` leaves behind: ``etc`` on the host, ``machine`` at the user's (DOCKER_CERT_PATH)."""

    def __init__(self, directory: Path, ip: str) -> None:
        self.etc = directory / "etc-docker"
        self.client = directory / "machine"
        self.ip = ip
        self.authority = issue("user")
        for place in (self.etc, self.client):
            place.mkdir(parents=True)
        self.authority.write(self.client / "ca.pem", self.client / "ca-key.pem")
        self.person(self.client)
        self.serve(self.authority)

    def serve(self, authority: Pair) -> None:
        """Put a server's certificate of this CA on the host, to be trusted there as well."""
        authority.write(self.etc / "ca.pem", self.etc / "ca-key.pem")
        (self.etc / "ca-key.pem").unlink()
        issue("user.machine", authority, SERVER, [self.ip, "localhost"]).write(
            self.etc / "server.pem", self.etc / "server-key.pem"
        )

    def person(
        self,
        directory: Path,
        authority: Pair | None = None,
        *,
        purpose: x509.ObjectIdentifier = CLIENT,
        bare: bool = False,
    ) -> Path:
        """A directory for DOCKER_CERT_PATH: the host's CA and, unless bare, a certificate of ``authority``."""
        if directory != self.client:
            directory.mkdir()
            shutil.copy(self.client / "ca.pem", directory / "ca.pem")
        if not bare:
            pair = issue("user.<bootstrap>", authority or self.authority, purpose)
            pair.write(directory / "cert.pem", directory / "key.pem")
        return directory

    @property
    def flags(self) -> list[str]:
        """Of the unit that Docker Machine writes for the host."""
        files = ("--tlscacert", "ca.pem"), ("--tlscert", "server.pem"), ("--tlskey", "server-key.pem")
        named = [text for flag, name in files for text in (flag, f"{self.etc}/{name}")]
        return ["-H", "tcp://0.0.0.0:2376", "--tlsverify", *named]


def issue(
    organization: str,
    authority: Pair | None = None,
    purpose: x509.ObjectIdentifier | None = None,
    names: list[str] | None = None,
) -> Pair:
    """A CA, or a certificate that one signed."""
    key = _new_key() if authority is None else _shared_key()
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _LIFE)
        .add_extension(_usage(ca=authority is None, server=bool(names)), critical=True)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(text) for text in names]), critical=False)
    return Pair(builder.sign(authority.key if authority is not None else key, hashes.SHA256()), key)


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def _shared_key() -> rsa.RSAPrivateKey:
    """A key shared by all certificates but the CA's: making one may take a second."""
    return _new_key()


def _usage(ca: bool, server: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=ca or server,
        data_encipherment=False,
        key_agreement=ca or server,
        key_cert_sign=ca,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
