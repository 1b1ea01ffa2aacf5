"""Questions to the kernel's packet rules by nfnetlink (linux/netfilter/nfnetlink.h, nf_tables.h)."""

from __future__ import annotations

import os
import socket
import struct
import threading

from overlay.io.namespaces import in_namespace
from overlay.rtnetlink import REQUEST, attributes

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NFGEN = struct.Struct(">BBH")  # family, version, resource
_SUBSYSTEM_NFTABLES = 10
_NEWGEN, _GETGEN = 15, 16
_GEN_ID = 1
_NLMSG_ERROR = 2
_BUFFER_BYTES = 1 << 16


class Generations:
    """The number of the rules' generation in one namespace: every change, of whomever, makes it greater."""

    def __init__(self, namespace: int) -> None:
        """namespace: a file descriptor."""
        self._socket = in_namespace(namespace, _open)
        self._lock = threading.Lock()
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def current(self) -> int:
        """The present number. Raises OSError."""
        with self._lock:
            self._sequence += 1
            body = _NFGEN.pack(socket.AF_UNSPEC, 0, 0)
            kind = _SUBSYSTEM_NFTABLES << 8 | _GETGEN
            self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, REQUEST, self._sequence, 0) + body)
            while True:
                data = self._socket.recv(_BUFFER_BYTES)
                length, kind, _, sequence, _ = _HEADER.unpack_from(data)
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, _HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                found = dict(attributes(data[_HEADER.size + _NFGEN.size : length]))
                return int.from_bytes(found[_GEN_ID], "big")


def _open() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
    opened.bind((0, 0))
    return opened
