"""Network namespaces: made, bound to files, entered by threads of their own.

A socket belongs to the namespace in which it was opened, whatever thread uses it later. So nothing here forks, and no
thread of the daemon changes its namespace for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_NSFS_MAGIC = 0x6E736673
_libc = ctypes.CDLL(None, use_errno=True)


def in_namespace(fd: int, function: Callable[[], T]) -> T:
    """Call the function in a thread of its own that has entered the network namespace ``fd``; raises what it raises."""

    def enter() -> T:
        _check(_libc.setns(fd, _CLONE_NEWNET))
        return function()

    return _in_thread(enter)


def make(path: Path) -> None:
    """A new network namespace, bound to a file that is made for it. Raises OSError; then the file is not there."""
    path.touch(mode=0o600)

    def bind() -> None:
        _check(_libc.unshare(_CLONE_NEWNET))
        source = b"/proc/thread-self/ns/net"
        _check(_libc.mount(source, os.fsencode(path), b"none", ctypes.c_ulong(_MS_BIND), None))

    try:
        _in_thread(bind)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def drop(path: Path) -> None:
    """Take the file and its binding away. The namespace ends when nothing else holds it."""
    with contextlib.suppress(OSError):
        while is_bound(path):
            _check(_libc.umount2(os.fsencode(path), _MNT_DETACH))
    path.unlink(missing_ok=True)


def is_bound(path: Path) -> bool:
    """Whether a namespace is bound to the file: after a reboot, only the file is left."""
    return path.exists() and _filesystem(path) == _NSFS_MAGIC


def _filesystem(path: Path) -> int:
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statfs(os.fsencode(path), buffer))
    return ctypes.c_long.from_buffer(buffer).value


def _in_thread(function: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _check(code: int) -> None:
    if code < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
