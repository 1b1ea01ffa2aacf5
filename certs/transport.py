"""The transport that an application on top of our TLS (certs/stream.py) uses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol


class Stream(Protocol):
    """The TLS below the transport (certs.stream.TlsStream)."""

    application: asyncio.Protocol | None
    closing: bool
    paused: bool

    @property
    def backlog_bytes(self) -> int:
        """Bytes of plain text that TLS could not take yet."""
        ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See TlsTransport."""
        ...

    def write_eof(self) -> None:
        """See TlsTransport."""
        ...

    def close(self) -> None:
        """See TlsTransport."""
        ...

    def abort(self) -> None:
        """See TlsTransport."""
        ...

    def pause_reading(self) -> None:
        """See TlsTransport."""
        ...

    def resume_reading(self) -> None:
        """See TlsTransport."""
        ...

    def extra_info(self, name: str, default: Any = None) -> Any:
        """See TlsTransport.get_extra_info."""
        ...


class TlsTransport(asyncio.Transport):
    """The application's transport. Its reading end may close before its writing end does."""

    def __init__(self, stream: Stream, raw: asyncio.Transport) -> None:
        super().__init__()
        self._stream = stream
        self._raw = raw

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; ignored after close() and write_eof()."""
        self._stream.write(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send the concatenation."""
        self._stream.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        """End our direction with close_notify; reading continues."""
        self._stream.write_eof()

    def can_write_eof(self) -> bool:
        """Always True: this class exists for that."""
        return True

    def close(self) -> None:
        """Send buffered data and close_notify, then close. Gives up when the peer reads nothing for 30 s."""
        self._stream.close()

    def abort(self) -> None:
        """Close now and drop buffered data."""
        self._stream.abort()

    def is_closing(self) -> bool:
        """Whether close or abort was called, or the connection is lost."""
        return self._stream.closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        """No data_received until resume_reading; TCP slows the peer down."""
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        """Continue after pause_reading."""
        self._stream.resume_reading()

    def is_reading(self) -> bool:
        """False while paused or closing."""
        return not self._stream.paused and not self.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Bytes of cipher text at which pause_writing and resume_writing are called."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes of cipher text that the kernel has not taken yet."""
        return self._raw.get_write_buffer_size() + self._stream.backlog_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """(low, high) in bytes."""
        return self._raw.get_write_buffer_limits()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give the connection to another application protocol (which gets no connection_made)."""
        self._stream.application = as_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The application protocol."""
        application = self._stream.application
        assert application is not None
        return application

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """peername, socket, sslcontext, ssl_object, alpn (or None), peer_chain_der (leaf first, may be empty)."""
        return self._stream.extra_info(name, default)


def as_protocol(protocol: asyncio.BaseProtocol) -> asyncio.Protocol:
    """``protocol`` itself, which must be an asyncio.Protocol."""
    assert isinstance(protocol, asyncio.Protocol), "BufferedProtocol is not supported"
    return protocol
