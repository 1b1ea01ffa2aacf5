"""HTTPS to an external certificate authority: checks that it is reachable, and sends it signing requests.

We trust the servers by the root that they sign for; they know us by our node's certificate. We try them in order, each
for a limited time, until one answers. An earlier server may have signed the request too: that does no harm, because
nobody uses that certificate. Connections are not reused, because the certificates on both sides change.

(swarmkit: ca/external.go, manager/controlapi/ca_rotation.go validateExternalCAURL)
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

import aiohttp
import structlog

from certs import cfssl
from certs.errors import CertsError, ExternalRefused, ExternalUnusable
from certs.tls import Credentials, https_context

log = structlog.get_logger()

HTTPS_PORT = 443


async def find_reachable(urls: Sequence[str], roots_pem: bytes, credentials: Credentials, timeout_s: float) -> None:
    """Return once a TLS handshake with one server succeeded; its certificate must lead to a root of ``roots_pem``.

    Each server has ``timeout_s`` seconds. Raises ExternalUnusable when all failed; the log says why each did.
    """
    for number, url in enumerate(urls, 1):
        try:
            parts, context = _parse(url), https_context(roots_pem, credentials)
            async with asyncio.timeout(timeout_s):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or HTTPS_PORT, ssl=context)
            writer.transport.abort()
            return
        except (CertsError, OSError) as error:
            log.warning("external_ca.unusable", number=number, url=shown(url), error=_reason(error))
    raise ExternalUnusable("no external CA is reachable and valid")


async def sign(urls: Sequence[str], body: bytes, roots_pem: bytes, credentials: Credentials, timeout_s: float) -> bytes:
    """The certificate (PEM) from the first server that returns one.

    Raises ExternalUnusable or ExternalRefused with the last server's URL and reason.
    """
    failure: CertsError = ExternalUnusable("no external CA URLs")
    for url in urls:
        try:
            return await _ask(url, body, roots_pem, credentials, timeout_s)
        except ExternalRefused as error:
            failure = ExternalRefused(f"{shown(url)}: {error}")
        except (CertsError, OSError, aiohttp.ClientError) as error:
            failure = ExternalUnusable(f"{shown(url)}: {_reason(error)}")
        log.debug("external_ca.not_signed", url=shown(url), error=failure.message)
    raise failure


async def _ask(url: str, body: bytes, roots_pem: bytes, credentials: Credentials, timeout_s: float) -> bytes:
    _parse(url)
    connector = aiohttp.TCPConnector(ssl=https_context(roots_pem, credentials), force_close=True)
    limit = aiohttp.ClientTimeout(total=timeout_s)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=limit, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.post(url, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False) as response,
    ):
        answer = bytearray()
        async for piece in response.content.iter_any():
            answer += piece
            if len(answer) > cfssl.ANSWER_BYTES_MAX:
                raise ExternalUnusable(f"the answer is longer than {cfssl.ANSWER_BYTES_MAX} bytes")
        return cfssl.read_answer(response.status, bytes(answer))


def _parse(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise ExternalUnusable(f"malformed URL: {error}") from error
    if parts.scheme.lower() != "https":
        raise ExternalUnusable("invalid HTTP scheme")
    if not usable:
        raise ExternalUnusable("the URL has no host")
    return parts


def shown(url: str) -> str:
    """A URL in a form that is safe to log: without the parts that may contain a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "malformed URL"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error if isinstance(error.certificate_error, Exception) else error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"x509: {error.verify_message}"
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
