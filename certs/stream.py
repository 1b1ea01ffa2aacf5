"""TLS over an asyncio transport that survives a half-close: for ports 2376 and 2377, server and client side.

asyncio's and uvloop's own TLS drop a connection when the peer closes its sending direction. The docker CLI does that to
say "no more standard input" while it still waits for output. Here a peer's close_notify is an ordinary end of file: the
application may go on writing until it closes. The application is any asyncio.Protocol. It sees connection_made only
after the handshake (and, on clients, after ``verify`` accepted the peer's chain).

Everything that arrives is decrypted at once, even while the application has paused reading. Plain text that it does not
want yet is held here (at most one chunk: what the raw transport still delivers after pause_reading). The reason: when
we end our direction, OpenSSL looks for the peer's close_notify, and would throw away data that it finds instead.

OpenSSL gets one record at a time, and only a few records without data per minute (certs/records.py).

(moby: api/server on tls.Listener; go: crypto/tls Conn.CloseWrite)
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from certs.records import RECORD_BYTES_MAX, Records
from certs.transport import TlsTransport, as_protocol

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_PROGRESS_TIMEOUT_S = 30.0

Verify = Callable[[list[bytes]], None]
Admit = Callable[[Any], bool]
HandshakeFailed = Callable[[Any, Exception], None]
Explain = Callable[[Exception], bytes]


class Timer(Protocol):
    """A call in the future."""

    def cancel(self) -> None:
        """It does not happen any more."""
        ...


StartTimer = Callable[[float, Callable[[], object]], Timer]
"""After so many seconds of the running loop."""


def call_later(delay_s: float, call: Callable[[], object]) -> Timer:
    """The usual StartTimer; a server that may stand still wants one that then waits (swarm/io/patience.py)."""
    return asyncio.get_running_loop().call_later(delay_s, call)


class TlsStream(asyncio.Protocol):
    """The raw protocol: network bytes on one side, an application protocol on the other."""

    def __init__(
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_name: str | None = None,
        verify: Verify | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        admit: Admit | None = None,
        on_failed: HandshakeFailed | None = None,
        explain: Explain | None = None,
        start_timer: StartTimer = call_later,
    ) -> None:
        """verify gets the peer's chain after the handshake, and raises to refuse it.

        admit gets the peername before the handshake; False drops the connection. on_failed is called once with
        (peername, error) when the handshake of an admitted connection fails. explain returns the plain-text answer for
        a peer whose bytes are not TLS. start_timer: for the limits on the peer's handshake and on its reading.
        """
        self._start_timer = start_timer
        self._factory = factory
        self._context = context
        self._verify = verify
        self._admit = admit
        self._on_failed = on_failed
        self._explain = explain
        self._handshake_timeout_s = handshake_timeout_s
        self._records = Records()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._raw: asyncio.Transport | None = None
        self._transport: TlsTransport | None = None
        self._timer: Timer | None = None
        self._held: deque[bytes] = deque()
        self._backlog: deque[memoryview] = deque()
        self._established = False
        self._failed = False
        self._raw_eof = False
        self._eof = False
        self._eof_delivered = False
        self._eof_written = False
        self._writing_paused = False
        self.application: asyncio.Protocol | None = None
        self.closing = False
        self.paused = False

    # --- the raw transport's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP is connected: start the handshake."""
        self._raw = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it
        if self._admit is not None and not self._admit(transport.get_extra_info("peername")):
            self._failed = True
            self._raw.abort()
            return
        self._timer = self._start_timer(self._handshake_timeout_s, self._handshake_timed_out)
        self._handshake()

    def data_received(self, data: bytes) -> None:
        """Cipher text."""
        if self.closing or self._failed or self._eof:  # nothing may follow a close_notify: do not collect it
            return
        self._records.feed(data)
        while record := self._records.next():
            self._incoming.write(record)
            if not self._established:
                self._handshake()
            if self._established and not self._decrypt() and self._records.useless(asyncio.get_running_loop().time()):
                self._break(ConnectionAbortedError("too many TLS records without data"))
            if self.closing or self._failed or self._eof:
                self._records.clear()

    def eof_received(self) -> bool:
        """TCP FIN, with or without a close_notify before it: the end of the peer's direction."""
        self._raw_eof = True
        if not self._established:
            self._fail(ConnectionResetError("EOF"))
            return False
        self._end_of_file()
        return not self.closing

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone in both directions."""
        self._stop_timer()
        if not self._established:
            self._fail(exc or ConnectionResetError("connection closed"))
            self._stop_timer()
        while self._held and not self.closing and self.application is not None:
            self.application.data_received(self._held.popleft())
        self.closing = True
        if self.application is not None:
            self.application.connection_lost(exc)

    def pause_writing(self) -> None:
        """The kernel's buffer is full."""
        self._writing_paused = True
        if self.application is not None:
            self.application.pause_writing()

    def resume_writing(self) -> None:
        """The kernel's buffer has room again."""
        self._writing_paused = False
        if self.application is not None:
            self.application.resume_writing()

    # --- handshake ---

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except (ssl.SSLError, OSError) as error:
            self._flush()  # the alert, so that the peer learns why
            if self._explain is not None and self._raw is not None:
                self._raw.write(self._explain(error))
            self._fail(error)
            return
        self._flush()
        if self._verify is not None:
            try:
                self._verify(self._peer_chain())
            except Exception as error:
                self._fail(error)
                return
        assert self._raw is not None
        self._stop_timer()
        self._established = True
        self._transport = TlsTransport(self, self._raw)
        self.application = as_protocol(self._factory())
        self.application.connection_made(self._transport)
        if self._writing_paused and self.application is not None:
            self.application.pause_writing()

    def _handshake_timed_out(self) -> None:
        self._fail(TimeoutError(f"TLS handshake not finished within {self._handshake_timeout_s:g} s"))

    def _fail(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        self._stop_timer()
        assert self._raw is not None
        if self._on_failed is not None:
            self._on_failed(self._raw.get_extra_info("peername"), error)
        if isinstance(error, TimeoutError):
            self._raw.abort()
        elif not self._raw.is_closing():
            self._raw.close()
            self._timer = call_later(self._handshake_timeout_s, self._raw.abort)

    # --- reading ---

    def _decrypt(self) -> bool:
        """Deliver what can be decrypted. Returns whether there was any data, or the end of file."""
        found = False
        while not self._eof and not self.closing:
            try:
                data = self._tls.read(RECORD_BYTES_MAX)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except (ssl.SSLError, OSError) as error:
                self._flush()
                self._break(error)
                return True
            found = True
            if not data:
                self._end_of_file()
                break
            self._deliver(data)
        if self._backlog:
            self._write_backlog()
        self._flush()  # answers of TLS itself, such as key updates
        return found or self._eof or self.closing

    def _deliver(self, data: bytes) -> None:
        if self.paused or self._held:
            self._held.append(data)
        elif self.application is not None:
            self.application.data_received(data)

    def _end_of_file(self) -> None:
        self._eof = True
        if self._eof_delivered or self._held or self.paused or self.closing or self.application is None:
            return
        self._eof_delivered = True
        if not self.application.eof_received():
            self.close()

    def pause_reading(self) -> None:
        """See TlsTransport."""
        self.paused = True
        if self._raw is not None and not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """See TlsTransport. Held data is delivered in a later turn of the loop, never inside this call."""
        if not self.paused:
            return
        self.paused = False
        asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        while self._held and not self.paused and not self.closing and self.application is not None:
            self.application.data_received(self._held.popleft())
        if self.paused or self.closing or self._raw is None or self._raw.is_closing():
            return
        if not self._raw_eof:
            self._raw.resume_reading()
        if self._eof:
            self._end_of_file()

    # --- writing ---

    @property
    def backlog_bytes(self) -> int:
        """Bytes of plain text that TLS could not take yet."""
        return sum(len(data) for data in self._backlog)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See TlsTransport."""
        if self.closing or self._eof_written or not data:
            return
        self._backlog.append(memoryview(bytes(data) if isinstance(data, bytearray) else data))
        self._write_backlog()
        self._flush()

    def _write_backlog(self) -> None:
        """SSL_write takes one record at a time, and none while a TLS 1.2 peer owes us a handshake message."""
        while self._backlog:
            data = self._backlog[0]
            try:
                taken = self._tls.write(data)
            except ssl.SSLWantReadError:
                return
            except (ssl.SSLError, OSError) as error:
                self._break(error)
                return
            if taken < len(data):
                self._backlog[0] = data[taken:]
            else:
                self._backlog.popleft()

    def _flush(self) -> None:
        if self._outgoing.pending and self._raw is not None and not self._raw.is_closing():
            self._raw.write(self._outgoing.read())

    def write_eof(self) -> None:
        """See TlsTransport."""
        if self._eof_written or self.closing:
            return
        self._eof_written = True
        # SSL_shutdown sends close_notify first. It is not an error that the peer's has not arrived yet.
        with contextlib.suppress(ssl.SSLError, OSError):
            self._tls.unwrap()
        self._flush()

    def close(self) -> None:
        """See TlsTransport."""
        if self.closing or self._raw is None:
            return
        self.write_eof()
        self.closing = True
        self._raw.close()
        self._await_close(self._raw.get_write_buffer_size())

    def _await_close(self, buffered_before: int) -> None:
        if buffered_before == 0 or self._raw is None:
            return
        self._timer = self._start_timer(CLOSE_PROGRESS_TIMEOUT_S, partial(self._check_close_progress, buffered_before))

    def _check_close_progress(self, buffered_before: int) -> None:
        assert self._raw is not None
        buffered = self._raw.get_write_buffer_size()
        if buffered < buffered_before:
            self._await_close(buffered)
        else:
            self._raw.abort()

    def abort(self) -> None:
        """See TlsTransport."""
        self.closing = True
        if self._raw is not None:
            self._raw.abort()

    def _break(self, error: Exception) -> None:
        """TLS failed: drop the connection and tell the application why (asyncio would not)."""
        application, self.application = self.application, None
        self.closing = True
        assert self._raw is not None
        self._raw.close()
        self._await_close(self._raw.get_write_buffer_size())
        if application is not None:
            application.connection_lost(error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- facts ---

    def _peer_chain(self) -> list[bytes]:
        inner: Any = self._tls._sslobj  # type: ignore[attr-defined]  # public only from Python 3.13
        chain = inner.get_unverified_chain() or ()
        # on the server side OpenSSL keeps the leaf apart from the chain; without a client certificate it is None
        return [certificate.public_bytes(_DER) for certificate in chain if certificate is not None]

    def extra_info(self, name: str, default: Any = None) -> Any:
        """See TlsTransport.get_extra_info."""
        if name == "peer_chain_der":
            return self._peer_chain()
        if name == "alpn":
            return self._tls.selected_alpn_protocol()
        if name == "sslcontext":
            return self._context
        if name == "ssl_object":
            return self._tls
        return default if self._raw is None else self._raw.get_extra_info(name, default)


_DER = 2  # _ssl.ENCODING_DER


async def open_tls(
    factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    server_name: str | None = None,
    verify: Verify | None = None,
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> asyncio.BaseProtocol:
    """Connect, shake hands and verify; return the connected application protocol.

    Raises OSError when TCP fails; ssl.SSLError, TimeoutError or ConnectionResetError when the handshake fails; and
    whatever verify raises.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[asyncio.BaseProtocol] = loop.create_future()

    def established() -> asyncio.BaseProtocol:
        protocol = factory()
        if not ready.done():
            ready.set_result(protocol)
        return protocol

    def failed(peer: Any, error: Exception) -> None:
        if not ready.done():
            ready.set_exception(error)

    stream = TlsStream(
        established,
        context,
        server_side=False,
        server_name=server_name,
        verify=verify,
        handshake_timeout_s=handshake_timeout_s,
        on_failed=failed,
    )
    try:
        raw, _ = await loop.create_connection(lambda: stream, host, port)
    except BaseException:
        if not ready.cancel():
            ready.exception()  # nobody asks any more
        raise
    try:
        return await ready
    except BaseException:
        raw.abort()
        raise


def serve_tls(
    factory: Callable[[], asyncio.BaseProtocol],
    context: Callable[[], ssl.SSLContext],
    *,
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    admit: Admit | None = None,
    on_failed: HandshakeFailed | None = None,
    start_timer: StartTimer = call_later,
) -> Callable[[], TlsStream]:
    """A protocol factory for loop.create_server. ``context`` is called for each connection (live reload)."""
    return lambda: TlsStream(
        factory,
        context(),
        server_side=True,
        handshake_timeout_s=handshake_timeout_s,
        admit=admit,
        on_failed=on_failed,
        start_timer=start_timer,
    )
