"""The API's doors on the network: who gets in over tcp://, and how loudly an open one is announced.

Whoever may use the API is root on its host. A tcp:// host therefore asks for a client certificate that --tlscacert
signed, as dockerd does with --tlsverify; anything less has to be asked for in so many words (see config.py) and is
warned about in the log, in `docker info`, and by a pause at the start.

Strangers may connect and shake hands, no more: what they leave unfinished ends after certs.stream.HANDSHAKE_TIMEOUT_S,
an address has only so many handshakes under way, and a refusal is logged once a minute for each address. The files are
read again at SIGHUP; connections that are open stay, and files that cannot be used change nothing.

(moby: daemon/command/daemon.go newAPIServerTLSConfig, loadListeners; go-connections: tlsconfig)
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from certs.errors import CertsError
from certs.stream import TlsStream
from certs.tls import Credentials, server_context
from engine_api.config import Config, insecure_hosts
from swarm import defaults

log = structlog.get_logger()

HTTP = "http/1.1"
_ADDRESSES_REMEMBERED = 1024


class DoorError(Exception):
    """The TLS files cannot be used; the text says which and why."""


class Door:
    """All tcp:// hosts of one daemon: one set of TLS files, one count of handshakes."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._shaking: dict[str, int] = {}
        self._told: dict[str, float] = {}

    def load(self) -> None:
        """Read the TLS files; connections from now on use them. Raises DoorError, and nothing has changed."""
        config = self._config
        if not config.tls or not config.tcp_hosts:
            return
        credentials = Credentials(_read("--tlscert", config.tlscert), _read("--tlskey", config.tlskey))
        roots = _read("--tlscacert", config.tlscacert) if config.tlsverify else None
        try:
            context = server_context(credentials, roots, (HTTP,), require_client=config.tlsverify)
        except CertsError as error:
            files = f"{config.tlscert} and {config.tlskey}" + (f" with {config.tlscacert}" if config.tlsverify else "")
            raise DoorError(f"cannot use the TLS files {files}: {error}") from None
        if config.tlsverify:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as Go: what is in the file is trusted, root or not
        self._context = context

    async def announce(self) -> None:
        """Warn about hosts that let everybody in, and make the start wait for it."""
        for _, host, lack in insecure_hosts(self._config):
            log.warning("api.insecure", host=host, lack=lack, meaning="anyone who reaches it is root on this host")
        if insecure_hosts(self._config):
            await asyncio.sleep(defaults.API_INSECURE_PAUSE_S)

    def protocols(self, front: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.BaseProtocol]:
        """The protocol factory of a tcp:// host, with ``front`` behind the door."""
        return partial(self._accept, front) if self._config.tls else front

    def _accept(self, front: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseProtocol:
        assert self._context is not None, "load() comes before the first connection"
        address = ""

        def admit(peername: Any) -> bool:
            nonlocal address
            address = str(peername[0])
            return self._begin(address)

        def established() -> asyncio.BaseProtocol:
            self._end(address)
            return front()

        def failed(peername: Any, error: Exception) -> None:
            self._end(address)
            self._tell("api.tls_refused", address, error=getattr(error, "reason", None) or str(error))

        return TlsStream(
            established, self._context, server_side=True, admit=admit, on_failed=failed, explain=_explanation
        )

    def _begin(self, address: str) -> bool:
        count = self._shaking.get(address, 0)
        if count >= defaults.API_HANDSHAKES_PER_ADDRESS_MAX or len(self._shaking) >= defaults.API_HANDSHAKES_MAX:
            self._tell("api.too_many_handshakes", address, open=count)
            return False
        self._shaking[address] = count + 1
        return True

    def _end(self, address: str) -> None:
        self._shaking[address] -= 1
        if not self._shaking[address]:
            del self._shaking[address]

    def _tell(self, event: str, address: str, **more: object) -> None:
        now = self._clock()
        if now < self._told.get(address, now):
            return
        if len(self._told) >= _ADDRESSES_REMEMBERED:
            self._told.clear()
        self._told[address] = now + defaults.API_REFUSAL_LOG_S
        log.warning(event, peer=address, **more)


def _explanation(error: Exception) -> bytes:
    """For clients that speak plain HTTP: the words that Go's servers have for them, and that the CLI shows."""
    if getattr(error, "reason", None) != "HTTP_REQUEST":
        return b""
    text = b"Client sent an HTTP request to an HTTPS server.\n"
    return b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + text


def _read(flag: str, path: Path | None) -> bytes:
    try:
        return b"" if path is None else path.read_bytes()
    except OSError as error:
        raise DoorError(f"cannot read {path} ({flag}): {error.strerror}") from None
