"""Secrets and configs of tasks as files in memory, which the engine mounts into containers.

There is one tmpfs for all tasks, with a directory for each. It outlives this daemon, so a restart changes nothing for
running containers. It never touches a disk: swapping is off where the kernel supports that. Files are written
completely before the container is created, and deleted when it has ended.

(moby: daemon/container_operations_unix.go, setupSecretDir)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from certs import files
from engine_api.executor.container import PayloadFile
from engine_api.executor.errors import TaskError
from swarm import defaults

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_SELINUX = Path("/sys/fs/selinux/enforce")
_SELINUX_CONTEXT = "context=system_u:object_r:container_file_t:s0"


class PayloadStore:
    """The directory with the files of all tasks. ``directory`` must be on a file system that the engine sees.

    root: the owner (uid, gid) that containers see as root; not (0, 0) if the engine maps user IDs.
    """

    def __init__(self, directory: Path, root: tuple[int, int] = (0, 0)) -> None:
        self._directory = directory
        self.root = root

    def directory(self, task_id: str) -> Path:
        """The directory of a task's files, whether it exists yet or not."""
        return self._directory / task_id

    def write(self, task_id: str, files: Iterable[PayloadFile]) -> None:
        """Write the files of a task. Existing files with the same content are left alone.

        Raises TaskError when there is no room, or no permission to mount.
        """
        wanted = list(files)
        if not wanted:
            return
        try:
            self._mount()
            directory = self.directory(task_id)
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, *self.root)
            for file in wanted:
                self._write(file)
        except OSError as error:
            raise TaskError(f"error injecting secret: {error.strerror}: {error.filename or self._directory}") from None

    def _write(self, file: PayloadFile) -> None:
        path = Path(file.path)
        if path.exists() and path.read_bytes() == file.data:
            return  # a running container may have mounted it, and would not see a replacement
        owner = self.root[0] + file.uid, self.root[1] + file.gid
        files.replace(path, file.data, mode=file.mode, owner=owner)

    def remove(self, task_id: str) -> None:
        """Delete the files of a task, if there are any."""
        shutil.rmtree(self.directory(task_id), ignore_errors=True)

    def sweep(self, known: Collection[str]) -> None:
        """Delete the files of all other tasks."""
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(self._directory.iterdir()):
                if entry.name not in known:
                    shutil.rmtree(entry, ignore_errors=True)

    def close(self) -> None:
        """Delete everything and unmount the tmpfs."""
        self.sweep(())
        if self._directory.exists() and is_tmpfs(self._directory):
            _umount(self._directory)

    def _mount(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_tmpfs(self._directory):
            return
        options = [
            f"size={defaults.PAYLOAD_TMPFS_BYTES_MAX}",
            "mode=0700",
            f"uid={self.root[0]}",
            f"gid={self.root[1]}",
        ]
        if _SELINUX.exists():
            options.append(_SELINUX_CONTEXT)
        try:
            _mount_tmpfs(self._directory, [*options, "noswap"])
        except OSError:
            _mount_tmpfs(self._directory, options)  # kernels before 6.4 do not know noswap


def is_tmpfs(directory: Path) -> bool:
    """Whether a tmpfs is mounted at exactly this directory."""
    wanted = os.path.realpath(directory)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(" - ")
            point = fields.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if point == wanted and rest.startswith("tmpfs "):
                return True
    return False


def _mount_tmpfs(directory: Path, options: list[str]) -> None:
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", ctypes.c_ulong(flags), ",".join(options).encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(directory))


def _umount(directory: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(directory), 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(directory))
