"""Processes and mounts that a lab leaves behind: found by the lab's own paths, ended by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_children: dict[int, None] = {}


def adopt(process: subprocess.Popen[bytes]) -> None:
    """A daemon started by this process: it is reaped when it ends, and otherwise outlives us."""
    _children[process.pid] = None
    process.returncode = 0  # Popen must neither wait for it nor warn that nobody did


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _reap(pid: int) -> None:
    if pid not in _children:
        return
    try:
        ended, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        ended = pid
    if ended:
        del _children[pid]


def wait_gone(pid: int, timeout_s: float) -> bool:
    """Wait until a process has ended; False when it still runs after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        _reap(pid)
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


def stop(pid: int, timeout_s: float = 20.0) -> None:
    """SIGTERM, then SIGKILL after ``timeout_s``."""
    if pid <= 0 or not alive(pid):
        return
    os.kill(pid, signal.SIGTERM)
    if not wait_gone(pid, timeout_s):
        kill(pid)


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    if pid <= 0 or not alive(pid):
        return
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid, 10.0)


def kill_from_file(pidfile: Path) -> None:
    """Kill the process that a pid file names, if file and process exist, and remove the file."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        kill(int(pidfile.read_text()))
        pidfile.unlink()


def _commands() -> dict[int, tuple[int, str]]:
    """pid -> (parent pid, command line) of all processes."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found[int(entry.name)] = (parent, command)
    return found


def kill_mentioning(path: Path) -> None:
    """Kill every process whose command line names ``path`` (containerd, its shims), and their children first."""
    table = _commands()
    needle = f"{path}/"
    roots = [pid for pid, (_, command) in table.items() if needle in command and pid != os.getpid()]
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)

    def descend(pid: int) -> Iterable[int]:
        for child in children.get(pid, ()):
            yield from descend(child)
        yield pid

    ours = _ancestors(table, os.getpid())
    doomed = [pid for pid in dict.fromkeys(pid for root in roots for pid in descend(root)) if pid not in ours]
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in doomed:
        wait_gone(pid, 10.0)


def forget_containers(bundles: Path) -> None:
    """Remove what killed containers leave outside their engine's directories: shims' sockets and control groups.

    ``bundles`` is the directory in which containerd keeps one directory per container, named by its id.
    """
    for bundle in bundles.iterdir() if bundles.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            Path((bundle / "address").read_text().removeprefix("unix://")).unlink()
        for group in (*CGROUPS.glob(f"*/docker/{bundle.name}"), *CGROUPS.glob(f"docker/{bundle.name}")):
            for inner in sorted(group.glob("**/"), reverse=True):
                with contextlib.suppress(OSError):
                    inner.rmdir()


def _ancestors(table: dict[int, tuple[int, str]], pid: int) -> dict[int, None]:
    found: dict[int, None] = {}
    while pid in table and pid not in found:
        found[pid] = None
        pid = table[pid][0]
    return found


def unmount_below(path: Path) -> None:
    """Unmount everything below ``path``, deepest first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    below = [p.encode().decode("unicode_escape") for p in points if p.startswith(f"{path}/") or p == str(path)]
    for point in sorted(below, key=len, reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def remove_tree(path: Path) -> None:
    """Delete a directory tree that may hold mounts."""
    unmount_below(path)
    shutil.rmtree(path, ignore_errors=True)
