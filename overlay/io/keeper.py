"""A process that keeps open sockets while the daemon is away.

The engine waits 15 s for each call to a driver whose socket nobody listens on, and names are not resolved at all; while
somebody holds the sockets, callers wait a moment and are served by the next daemon. The keeper neither accepts nor
reads: it holds file descriptors by name, hands out copies, and does nothing else.

    python -m overlay.io.keeper SOCKET

One request per connection, a line of JSON: {"put": NAME} with a descriptor beside it, {"drop": NAME}, and
{"get": true}, which is answered by the names, with their descriptors beside them. A keeper that has nothing left to
keep ends. (systemd's FDSTORE is the same idea, where there is a systemd.)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

_MESSAGE_BYTES_MAX = 1 << 20
_DESCRIPTORS_PER_MESSAGE = 200  # the kernel takes 253
_START_TIMEOUT_S = 10.0
_TIMEOUT_S = 10.0


class Keeper:
    """The daemon's side. path: of the keeper's socket. The keeper is started when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, name: str, kept: socket.socket) -> None:
        """Keep a copy of a socket; it replaces one of that name. Raises OSError."""
        with self._connect(start=True) as link:
            socket.send_fds(link, [_line({"put": name})], [kept.fileno()])
            link.recv(1)

    def drop(self, name: str) -> None:
        """Let go of a socket, if it is kept. Raises OSError."""
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), self._connect() as link:
            link.sendall(_line({"drop": name}))
            link.recv(1)

    def get(self) -> dict[str, socket.socket]:
        """Copies of all that is kept, by name; nothing if there is no keeper. Raises OSError."""
        found: dict[str, socket.socket] = {}
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), self._connect() as link:
            link.sendall(_line({"get": True}))
            while True:
                data, descriptors, _, _ = socket.recv_fds(link, _MESSAGE_BYTES_MAX, _DESCRIPTORS_PER_MESSAGE)
                if not data:
                    break
                names = json.loads(data)
                for name, descriptor in zip(names, descriptors, strict=True):
                    os.set_inheritable(descriptor, False)
                    found[name] = socket.socket(fileno=descriptor)
        return found

    def _connect(self, start: bool = False) -> socket.socket:
        try:
            return self._connected()
        except (FileNotFoundError, ConnectionRefusedError):
            if not start:
                raise
        _spawn(self._path)
        return self._connected()

    def _connected(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        link.settimeout(_TIMEOUT_S)
        try:
            link.connect(str(self._path))
        except OSError:
            link.close()
            raise
        return link


def _spawn(path: Path) -> None:
    """Start a keeper that outlives this process; it is ready when the command ends."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-m", "overlay.io.keeper", str(path)]
    quiet = subprocess.DEVNULL
    try:
        subprocess.run(
            command,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            cwd="/",
            env=environment,
            timeout=_START_TIMEOUT_S,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise OSError(0, f"the keeper of sockets did not start: {error}") from error


def serve(path: Path) -> None:
    """Be the keeper. One that runs already keeps its place, and this one ends."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    old_mask = os.umask(0o177)
    listener.bind(str(temporary))
    os.umask(old_mask)
    listener.listen(16)
    if _is_served(path):
        temporary.unlink()
        return
    temporary.rename(path)
    if os.fork():
        os._exit(0)  # whoever started this one knows that it is ready
    os.setsid()
    kept: dict[str, int] = {}
    begins = True  # nothing was put yet
    while True:
        link, _ = listener.accept()
        with link:
            link.settimeout(_TIMEOUT_S)
            with contextlib.suppress(OSError, ValueError, TypeError):
                _answer(link, kept)
        if not kept and not begins:
            path.unlink(missing_ok=True)
            return
        begins = begins and not kept


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _answer(link: socket.socket, kept: dict[str, int]) -> None:
    """One request."""
    data, descriptors, _, _ = socket.recv_fds(link, _MESSAGE_BYTES_MAX, _DESCRIPTORS_PER_MESSAGE)
    request = json.loads(data) if data else {}
    match request:
        case {"put": str(name)} if len(descriptors) == 1:
            _let_go(kept, name)
            kept[name] = descriptors.pop()
        case {"drop": str(name)}:
            _let_go(kept, name)
        case {"get": True}:
            names = sorted(kept)
            for start in range(0, len(names), _DESCRIPTORS_PER_MESSAGE):
                some = names[start : start + _DESCRIPTORS_PER_MESSAGE]
                socket.send_fds(link, [json.dumps(some).encode()], [kept[name] for name in some])
            return
    for descriptor in descriptors:
        os.close(descriptor)
    link.send(b"\n")


def _let_go(kept: dict[str, int], name: str) -> None:
    descriptor = kept.pop(name, None)
    if descriptor is not None:
        os.close(descriptor)


def _line(request: dict[str, object]) -> bytes:
    return json.dumps(request).encode()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
