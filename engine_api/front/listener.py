"""The API's doors on the network: who gets in over tcp://, and how loudly an open one is announced.

Whoever may use the API is root on its host. A tcp:// host therefore asks for a client certificate that --tlscacert
signed, as dockerd does with --tlsverify; anything less has to be asked for in so many words (see config.py) and is
warned about in the log, in `docker info`, and by a pause at the start.

Strangers may connect and shake hands, no more: what they leave unfinished ends after API_HANDSHAKE_TIMEOUT_S, or
when an address, or all of them together, have too many handshakes under way: then the oldest makes room. Arrivals
that do not get in are limited in each second, for an address and for all; half of a second's are kept for addresses
from which nobody came in it, and addresses from where a client got in are not held up by others. A refusal of a kind is
logged once a minute for each address. The files are read again at SIGHUP; connections that are open stay, and files
that cannot be used change nothing.

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
from swarm.grpc.admission import place_of

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
        self._shaking: dict[TlsStream, str] = {}  # with their addresses
        self._arrivals: dict[str, int] = {}  # in this second, of those who have not got in
        self._arrivals_of_strangers = 0
        self._second = 0.0
        self._known: dict[str, None] = {}  # addresses from where clients got in
        self._told: dict[tuple[str, str], float] = {}

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

        def established() -> asyncio.BaseProtocol:
            self._got_in(stream)
            return front()

        def failed(peername: Any, error: Exception) -> None:
            reason = getattr(error, "reason", None) or str(error)
            displaced = self._shaking.pop(stream, None) is None
            self._tell("api.tls_refused", str(peername[0]), error="too many handshakes" if displaced else reason)

        stream = TlsStream(
            established,
            self._context,
            server_side=True,
            handshake_timeout_s=defaults.API_HANDSHAKE_TIMEOUT_S,
            admit=lambda peername: self._begin(stream, str(peername[0])),
            on_failed=failed,
            explain=_explanation,
        )
        return stream

    def _begin(self, stream: TlsStream, host: str) -> bool:
        """Count a handshake, or refuse it."""
        address, now = place_of(host), self._clock()
        if now - self._second >= 1.0:
            self._second, self._arrivals_of_strangers = now, 0
            self._arrivals.clear()
        arrivals = self._arrivals.get(address, 0)
        most = defaults.API_STRANGERS_PER_S_MAX // (2 if arrivals else 1)
        crowded = address not in self._known and self._arrivals_of_strangers >= most
        if crowded or arrivals >= defaults.API_STRANGERS_PER_ADDRESS_PER_S_MAX:
            self._tell("api.too_many_handshakes", host, in_this_second=arrivals)
            return False
        own = [other for other, its in self._shaking.items() if its == address]
        if len(own) >= defaults.API_HANDSHAKES_PER_ADDRESS_MAX:
            self._displace(own[0])
        elif len(self._shaking) >= defaults.API_HANDSHAKES_MAX:
            self._displace(next(iter(self._shaking)))
        self._arrivals[address] = arrivals + 1
        self._arrivals_of_strangers += address not in self._known
        self._shaking[stream] = address
        return True

    def _displace(self, stream: TlsStream) -> None:
        del self._shaking[stream]
        stream.abort()

    def _got_in(self, stream: TlsStream) -> None:
        address = self._shaking.pop(stream)
        self._arrivals[address] = max(0, self._arrivals.get(address, 0) - 1)
        if address not in self._known:
            self._arrivals_of_strangers = max(0, self._arrivals_of_strangers - 1)
        self._known.pop(address, None)
        self._known[address] = None
        if len(self._known) > defaults.API_KNOWN_ADDRESSES_MAX:
            del self._known[next(iter(self._known))]

    def _tell(self, event: str, address: str, **more: object) -> None:
        now = self._clock()
        if now < self._told.get((event, address), now):
            return
        if len(self._told) >= _ADDRESSES_REMEMBERED:
            self._told.clear()
        self._told[event, address] = now + defaults.API_REFUSAL_LOG_S
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
