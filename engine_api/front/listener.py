"""An address where the API listens: a unix socket with its group, or TCP with or without TLS; and its policy.

Whoever may use the API without restrictions is root on its host. That is why config.py refuses a tcp:// host that does
not verify its clients, unless it is asked for explicitly.

(moby: daemon/command/daemon.go loadListeners, daemon/listeners)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from engine_api.config import check_host
from engine_api.front.policy import FullAccess, Policy
from engine_api.front.tls import Tls

SOCKET_MODE = 0o660
MakeFront = Callable[[Policy], asyncio.BaseProtocol]


class ListenError(Exception):
    """Nothing can listen at the address; the text says why."""


class Listener:
    """One address. It is given what is its own; listeners may share a Tls and with it one admission.

    host: unix:///path or tcp://ADDRESS:PORT. policy: what its clients may ask for. tls: for tcp, None: plain HTTP.
    group: ID of the group that may use a unix socket besides root, None: no other. mode: of the unix socket's file.
    """

    def __init__(
        self,
        host: str,
        *,
        policy: Policy | None = None,
        tls: Tls | None = None,
        group: int | None = None,
        mode: int = SOCKET_MODE,
    ) -> None:
        self.host = host
        self.policy: Policy = policy or FullAccess()
        self._tls = tls
        self._group = group
        self._mode = mode
        self._file: Path | None = None
        self._server: asyncio.Server | None = None

    async def open(self, make_front: MakeFront) -> None:
        """Listen; each connection gets a front with this listener's policy. Raises ListenError."""
        loop = asyncio.get_running_loop()
        kind, name, port = check_host(self.host)

        def front() -> asyncio.BaseProtocol:
            return make_front(self.policy)

        try:
            if kind == "unix":
                self._server = await loop.create_unix_server(front, sock=self._unix_socket(Path(name)))
            else:
                factory = front if self._tls is None else self._tls.wrap(front)
                self._server = await loop.create_server(factory, name, port)
        except OSError as error:
            raise ListenError(f"cannot listen on {self.host}: {error.strerror or error}") from error

    @property
    def port(self) -> int:
        """The TCP port in use, which the kernel chose if the host says 0. The listener must be open."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Accept no more connections; those that are open stay."""
        if self._server is not None:
            self._server.close()

    def forget_file(self) -> None:
        """Remove the file of a unix socket that this listener made."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _unix_socket(self, path: Path) -> socket.socket:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise ListenError(f"{path} exists and is not a socket")
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
            raise ListenError(f"another process listens on {path}")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o777 & ~self._mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        self._file = path
        if self._group is not None:
            os.chown(path, -1, self._group)
        return listener
