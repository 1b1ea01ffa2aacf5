"""What the tests of the front need: one host with CLIs, raw sockets and extra daemons in its namespace."""

from __future__ import annotations

import ctypes
import datetime
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pexpect
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from integration import processes
from integration.lab import NETNS, PROJECT, Host, start_daemon

TIMEOUT_S = 60.0
_CLONE_NEWNET = 0x40000000


def clis() -> dict[str, str]:
    """Every docker CLI of this machine, by version: the one on the PATH, and Debian's where that is another."""
    found: dict[str, str] = {}
    for path in (shutil.which("docker"), "/usr/bin/docker"):
        if path is not None and Path(path).exists():
            text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            found.setdefault(text.split()[2].rstrip(",").split("+")[0], path)
    return found


def buildkit_cli() -> str:
    """A CLI that has BuildKit's client in itself: those up to 20.10."""
    return next(path for version, path in clis().items() if int(version.split(".")[0]) < 23)


def environment(host: Host, cli_target: str = "", **more: str) -> dict[str, str]:
    """The environment of a CLI that talks to a host's sideswarmd, or to ``cli_target``."""
    config = str(host.directory.parent / "cli")
    return {**os.environ, "DOCKER_HOST": cli_target or host.api, "DOCKER_CONFIG": config, **more}


def run(
    host: Host, *args: str, data: bytes = b"", cli: str = "docker", timeout_s: float = TIMEOUT_S, **more: str
) -> subprocess.CompletedProcess[bytes]:
    """A CLI command with ``data`` on its standard input."""
    return subprocess.run(
        [cli, *args], input=data, env=environment(host, **more), capture_output=True, timeout=timeout_s, check=False
    )


def popen(host: Host, *args: str, **more: Any) -> subprocess.Popen[bytes]:
    """A CLI command that keeps running."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(["docker", *args], env=environment(host), **{**options, **more})


def terminal(host: Host, *args: str, cli: str = "docker") -> pexpect.spawn:
    """A CLI command at a terminal of 30 rows and 100 columns."""
    return pexpect.spawn(
        cli,
        list(args),
        env=environment(host, TERM="dumb"),
        timeout=TIMEOUT_S,
        dimensions=(30, 100),
        encoding="utf-8",
        codec_errors="replace",
    )


class Raw:
    """A connection that speaks HTTP by hand."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(TIMEOUT_S)
        self._got = b""

    @classmethod
    def to(cls, target: str) -> Raw:
        """A connection to a unix:// address."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(target.removeprefix("unix://"))
        return cls(connection)

    @classmethod
    def inside(cls, host: Host, address: str, port: int) -> Raw:
        """A TCP connection from within a host's network namespace."""
        return cls(in_namespace(host, lambda: socket.create_connection((address, port), TIMEOUT_S)))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it."""
        self.socket.sendall(data)

    def half_close(self) -> None:
        """Nothing more will be sent."""
        self.socket.shutdown(socket.SHUT_WR)

    def ask(self, method: str, target: str, *headers: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request and its answer, the connection being kept."""
        head = [f"{method} {target} HTTP/1.1", "Host: docker", f"Content-Length: {len(body)}", *headers, "", ""]
        self.send("\r\n".join(head).encode() + body)
        return self.answer(method)[::2]

    def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of the next answer."""
        status, headers = self.head()
        if method == "HEAD" or status in (204, 304):
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.until(b"\r\n"), 16):
                body += self.exactly(size + 2)[:-2]
            self.until(b"\r\n")
            return status, headers, body
        if "content-length" in headers:
            return status, headers, self.exactly(int(headers["content-length"]))
        return status, headers, self.rest()

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers."""
        first, *lines = self.until(b"\r\n\r\n").decode().split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip() for name, value in pairs}

    def until(self, end: bytes) -> bytes:
        """Bytes before a mark."""
        while end not in self._got:
            self._more()
        found, _, self._got = self._got.partition(end)
        return found

    def exactly(self, count: int) -> bytes:
        """So many bytes."""
        parts, missing = [self._got[:count]], count - len(self._got)
        self._got = self._got[count:]
        while missing > 0:
            data = self.socket.recv(min(missing, 1 << 20))
            if not data:
                raise EOFError(f"{missing} bytes are missing")
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def rest(self) -> bytes:
        """Everything to the end."""
        parts, self._got = [self._got], b""
        while data := self.socket.recv(1 << 20):
            parts.append(data)
        return b"".join(parts)

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError(f"the connection ended after {self._got[-200:]!r}")
        self._got += data


def get(target: str, path: str) -> Any:
    """The JSON that a unix:// address answers to GET."""
    with Raw.to(target) as raw:
        status, body = raw.ask("GET", path)
    assert status == 200, body
    return json.loads(body)


def in_namespace(host: Host, make: Callable[[], Any]) -> Any:
    """What ``make`` makes in a host's network namespace: a socket stays in the one where it was made."""

    def there() -> Any:
        with (NETNS / host.netns).open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return make()

    with ThreadPoolExecutor(1) as pool:  # a thread of its own, which ends there
        return pool.submit(there).result()


@dataclass
class Extra:
    """More daemons in the namespace of a host, each with directories of its own, ended with the block."""

    host: Host
    made: list[Host] = field(default_factory=list)

    def __enter__(self) -> Extra:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self.made:
            processes.stop(daemon.pid)
            processes.remove_tree(daemon.directory)

    def prepare(self, name: str, *flags: str, engine: str = "") -> Host:
        """A daemon that is not started yet."""
        directory = self.host.directory / name
        directory.mkdir()
        target = f"unix://{directory}/sideswarm.sock"
        daemon = replace(
            self.host, api=target, engine=engine or self.host.engine, state=str(directory), extra=list(flags), pid=0
        )
        self.made.append(daemon)
        return daemon

    def start(self, name: str, *flags: str, engine: str = "") -> Host:
        """A daemon that answers."""
        daemon = self.prepare(name, *flags, engine=engine)
        start_daemon(daemon)
        return daemon


def python_inside(host: Host, script: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in the host's network namespace."""
    return host.inside("env", f"PYTHONPATH={PROJECT}", sys.executable, "-c", script, *args)


def make_certificates(directory: Path, address: str) -> Path:
    """A CA with a server's certificate for ``address`` and a client's, named as the CLI wants them; the directory."""
    directory.mkdir()
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("test CA", ca_key, None, ca_key, [x509.BasicConstraints(ca=True, path_length=0)])
    _write(directory, "ca", ca, ca_key)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address)), x509.DNSName("localhost")])
    for name, usage in (("server", "SERVER_AUTH"), ("cert", "CLIENT_AUTH")):
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = x509.ExtendedKeyUsage([getattr(ExtendedKeyUsageOID, usage)])
        _write(directory, name, _certificate(name, key, ca, ca_key, [names, purpose]), key)
    (directory / "cert-key.pem").rename(directory / "key.pem")
    return directory


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: list[x509.ExtensionType],
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer_key, hashes.SHA256())


def _write(directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / f"{name}.pem").write_bytes(certificate.public_bytes(encoding))
    (directory / f"{name}-key.pem").write_bytes(private)
