"""TLS of a listener: the server's certificate, which clients are trusted, and the handshake before the front.

The files are read again at SIGHUP. Open connections stay, and files that cannot be used change nothing.

(moby: daemon/command/daemon.go newAPIServerTLSConfig; go-connections: tlsconfig)
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certs.errors import CertsError
from certs.stream import TlsStream
from certs.tls import Credentials, server_context
from engine_api.front.admission import Admission
from swarm import defaults
from swarm.io.patience import PatientTimer

HTTP = "http/1.1"
MakeProtocol = Callable[[], asyncio.BaseProtocol]


class TlsError(Exception):
    """The TLS files cannot be used; the text says which and why."""


class Tls:
    """The TLS side of one or more listeners. verify: clients need a certificate that a CA in the file ``ca`` signed."""

    def __init__(
        self, cert: Path | None, key: Path | None, ca: Path | None, *, verify: bool, admission: Admission
    ) -> None:
        self._cert = cert
        self._key = key
        self._ca = ca
        self._verify = verify
        self._admission = admission
        self._context: ssl.SSLContext | None = None

    def load(self) -> None:
        """Read the files; connections from now on use them. Raises TlsError, and then nothing has changed."""
        credentials = Credentials(_read("--tlscert", self._cert), _read("--tlskey", self._key))
        roots = _read("--tlscacert", self._ca) if self._verify else None
        try:
            context = server_context(credentials, roots, (HTTP,), require_client=self._verify)
        except CertsError as error:
            files = f"{self._cert} and {self._key}" + (f" with {self._ca}" if self._verify else "")
            raise TlsError(f"cannot use the TLS files {files}: {error}") from None
        if self._verify:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as Go: what is in the file is trusted, root or not
        self._context = context

    def wrap(self, application: MakeProtocol) -> MakeProtocol:
        """The protocol factory of a listener: first the handshake, then ``application``."""

        def accept() -> asyncio.BaseProtocol:
            return self._accept(application)

        return accept

    def _accept(self, application: MakeProtocol) -> asyncio.BaseProtocol:
        assert self._context is not None, "load() comes before the first connection"

        def established() -> asyncio.BaseProtocol:
            self._admission.succeeded(stream)
            return application()

        def failed(peername: Any, error: Exception) -> None:
            self._admission.failed(stream, str(peername[0]), getattr(error, "reason", None) or str(error))

        stream = TlsStream(
            established,
            self._context,
            server_side=True,
            handshake_timeout_s=defaults.API_HANDSHAKE_TIMEOUT_S,
            admit=lambda peername: self._admission.begin(stream, str(peername[0])),
            on_failed=failed,
            explain=_explanation,
            start_timer=PatientTimer,
        )
        return stream


def _explanation(error: Exception) -> bytes:
    """For clients that speak plain HTTP: the text that Go's servers send them, and that the CLI shows."""
    if getattr(error, "reason", None) != "HTTP_REQUEST":
        return b""
    text = b"Client sent an HTTP request to an HTTPS server.\n"
    return b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + text


def _read(flag: str, path: Path | None) -> bytes:
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read {path} ({flag}): {error.strerror}") from None
