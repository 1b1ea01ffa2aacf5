"""A small certificate authority that speaks CFSSL's JSON over HTTPS, as SwarmKit's external CAs do; for tests.

    python -m integration.cfssl --listen 10.99.0.1:8888 --root root.pem --key root.key [--cross-sign] ...

Clients prove by certificate that they are managers of a cluster under the root (or under one of --also-trust), and get
certificates for nodes of their own cluster only. In the profile "CA" it signs intermediates, when that is switched on.
It shares no code with the client that it is there to test; stock engines use it as well.

(swarmkit: ca/testutils/externalutils.go; cfssl: signer/local)
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from integration.lab import NETNS, PROJECT, Host
from swarm.address import parse_host_port

MANAGER = "swarm-manager"
PATH = "/api/v1/cfssl/sign"
BODY_BYTES_MAX = 1 << 20
NODE_EXPIRY_S = 90 * 24 * 3600
BACKDATE_S = 300
_NAMES = {
    "C": NameOID.COUNTRY_NAME,
    "ST": NameOID.STATE_OR_PROVINCE_NAME,
    "L": NameOID.LOCALITY_NAME,
    "O": NameOID.ORGANIZATION_NAME,
    "OU": NameOID.ORGANIZATIONAL_UNIT_NAME,
}
_PEM = serialization.Encoding.PEM


class Refused(Exception):
    """The request is answered with success=false, this code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def make_root(name: str, days: int = 3650, now: float | None = None) -> tuple[bytes, bytes]:
    """A self-signed root as a company would make one: (certificate, key), both PEM. now: seconds since the epoch."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.fromtimestamp(time.time() if now is None else now, UTC) - timedelta(minutes=5)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(_PEM), key_pem(key)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As openssl ecparam -genkey writes it."""
    return key.private_bytes(_PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())


@dataclass
class Authority:
    """A root with its key and what it is willing to do. ``issued`` counts certificates; flaky: answer 500.

    Certificates of nodes begin backdate_s seconds ago and last node_expiry_s from there; intermediates as the root.
    """

    root_pem: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    cross_signs: bool = False
    node_expiry_s: int = NODE_EXPIRY_S
    backdate_s: int = BACKDATE_S
    flaky: bool = False
    issued: int = 0
    issued_path: Path | None = None
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.root = x509.load_pem_x509_certificate(self.root_pem)

    def sign(self, request: dict[str, Any], client: x509.Certificate) -> bytes:
        """The certificate for a sign request of ``client``. Raises Refused."""
        roles, orgs = (_values(client, oid) for oid in (NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.ORGANIZATION_NAME))
        if MANAGER not in roles[:1]:
            raise Refused(7100, f'client certificate OU must be "{MANAGER}"')
        if not orgs:
            raise Refused(7100, "client certificate must have an Organization")
        subject = request.get("subject")
        if not isinstance(subject, dict):
            raise Refused(9002, "sign request must contain a subject field")
        names = subject.get("names") or [{}]
        cross = request.get("profile") == "CA" and self.cross_signs
        if request.get("profile") != "CA" and names[0].get("O") != orgs[0]:
            raise Refused(9002, "sign request subject org does not match client certificate org")
        try:
            csr = x509.load_pem_x509_csr(request["certificate_request"].encode())
        except (KeyError, ValueError, AttributeError) as error:
            raise Refused(9001, "unable to sign requested certificate: malformed request") from error
        if not csr.is_signature_valid:
            raise Refused(9001, "unable to sign requested certificate: bad signature")
        builder = self._begin(csr, subject, names, cross)
        builder = self._intermediate(builder, request) if cross else self._node(builder, request)
        self.issued += 1
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM)

    def _begin(
        self, csr: x509.CertificateSigningRequest, subject: dict[str, Any], names: list[dict[str, str]], cross: bool
    ) -> x509.CertificateBuilder:
        parts = [x509.NameAttribute(_NAMES[key], row[key]) for key in _NAMES for row in names if row.get(key)]
        if subject.get("CN"):
            parts.append(x509.NameAttribute(NameOID.COMMON_NAME, subject["CN"]))
        # in PrintableString, as CFSSL's x509 library writes whatever fits it
        printable = [
            x509.NameAttribute(part.oid, part.value, _type=x509.name._ASN1Type.PrintableString) for part in parts
        ]
        name = x509.Name(printable)
        start = datetime.fromtimestamp(int(self.clock()) - self.backdate_s, UTC)
        end = self.root.not_valid_after_utc if cross else start + timedelta(seconds=self.node_expiry_s)
        builder = x509.CertificateBuilder(self.root.subject, name, csr.public_key(), secrets.randbits(150))
        builder = builder.not_valid_before(start).not_valid_after(end)
        ski = x509.SubjectKeyIdentifier.from_public_key(csr.public_key())
        builder = builder.add_extension(ski, critical=False)
        if name != self.root.subject:  # else no authority key identifier: the library takes it for self-signed
            own = self.root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            aki = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
            builder = builder.add_extension(aki, critical=False)
        return builder

    def _node(self, builder: x509.CertificateBuilder, request: dict[str, Any]) -> x509.CertificateBuilder:
        hosts = [x509.DNSName(host) for host in request.get("hosts") or ()]
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        builder = builder.add_extension(_usage(authority=False), critical=True).add_extension(usage, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False) if hosts else builder

    def _intermediate(self, builder: x509.CertificateBuilder, request: dict[str, Any]) -> x509.CertificateBuilder:
        wanted = {extension["id"]: extension for extension in request.get("extensions") or ()}
        constraints = wanted.get("2.5.29.19")
        if constraints is None or not constraints["value"].startswith("30030101ff"):
            raise Refused(5200, "unable to sign requested certificate: no basic constraints of an authority")
        builder = builder.add_extension(_usage(authority=True), critical=True)
        return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)

    def server_credentials(self, host: str) -> tuple[bytes, bytes]:
        """A certificate and key (PEM) for an HTTPS server at ``host``, an IP address or a name."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        start = datetime.now(UTC) - timedelta(minutes=5)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "external-ca")])
        builder = x509.CertificateBuilder(self.root.subject, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=30))
        builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(_PEM), key_pem(key)


def _values(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid)]


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=not authority,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


class _Handler(BaseHTTPRequestHandler):
    authority: Authority
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """A sign request."""
        length = int(self.headers.get("Content-Length", 0))
        if self.path != PATH or not 0 < length <= BODY_BYTES_MAX:
            self._answer(404, b"not found\n")
            return
        body = self.rfile.read(length)
        if self.authority.flaky:
            self._answer(500, b"out of order\n")
            return
        assert isinstance(self.connection, ssl.SSLSocket)
        der = self.connection.getpeercert(binary_form=True)
        assert der is not None
        try:
            certificate = self.authority.sign(json.loads(body), x509.load_der_x509_certificate(der))
            if self.authority.issued_path is not None:
                with self.authority.issued_path.open("ab") as file:
                    file.write(certificate)
            answer = _response(True, {"certificate": certificate.decode()}, [])
        except Refused as refusal:
            answer = _response(False, None, [{"code": refusal.code, "message": str(refusal)}])
        except ValueError as error:
            answer = _response(False, None, [{"code": 7100, "message": f"unable to decode sign request: {error}"}])
        self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at what was issued, not at a log."""


def _response(success: bool, result: object, errors: list[dict[str, object]]) -> dict[str, object]:
    return {"success": success, "result": result, "errors": errors, "messages": []}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[_Handler], context: ssl.SSLContext) -> None:
        super().__init__(address, handler)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that do not trust us hang up; that is theirs to tell."""


def _server(authority: Authority, host: str, port: int, trusted_pem: bytes) -> _Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = (Path(directory, name) for name in ("certificate", "key"))
        for file, data in zip((certificate, key), authority.server_credentials(host), strict=True):
            file.write_bytes(data)
        context.load_cert_chain(certificate, key)
    context.load_verify_locations(cadata=(authority.root_pem + trusted_pem).decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return _Server((host, port), type("Handler", (_Handler,), {"authority": authority}), context)


@contextmanager
def serving(authority: Authority, host: str = "127.0.0.1", trusted_pem: bytes = b"") -> Iterator[str]:
    """Serve in a thread on a free port; yields the URL. trusted_pem: further roots that clients may come from."""
    server = _server(authority, host, 0, trusted_pem)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"https://{host}:{server.server_address[1]}{PATH}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving_on(host: Host, directory: Path, *options: str, port: int = 8888) -> Iterator[str]:
    """Serve with the root.pem and root.key of ``directory`` in the network of a lab's host; yields the URL."""
    listen = f"{host.ip}:{port}"
    files = ("--root", str(directory / "root.pem"), "--key", str(directory / "root.key"))
    command = ["nsenter", f"--net={NETNS / host.netns}", sys.executable, "-m", "integration.cfssl", "--listen", listen]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([*command, *files, *options], env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "serving\n"
            yield f"https://{listen}{PATH}"
        finally:
            server.kill()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m integration.cfssl", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--listen", required=True, metavar="HOST:PORT")
    parser.add_argument("--root", required=True, type=Path, help="the root's certificate")
    parser.add_argument("--key", required=True, type=Path, help="its key")
    parser.add_argument("--also-trust", type=Path, help="further roots that clients may come from")
    parser.add_argument("--cross-sign", action="store_true", help="sign intermediates, too")
    parser.add_argument("--expiry-s", type=int, default=NODE_EXPIRY_S, help="life of node certificates")
    parser.add_argument("--backdate-s", type=int, default=BACKDATE_S, help="how old they are when they are made")
    parser.add_argument("--issued", type=Path, help="a file to append what was signed to")
    args = parser.parse_args()
    key = serialization.load_pem_private_key(args.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    authority = Authority(args.root.read_bytes(), key, args.cross_sign, args.expiry_s, args.backdate_s)
    authority.issued_path = args.issued
    host, port = parse_host_port(args.listen)
    trusted = args.also_trust.read_bytes() if args.also_trust else b""
    server = _server(authority, host, port, trusted)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
