"""The busybox image of the lab, made from Debian's busybox-static: there is no registry to pull from."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Protocol


class EngineHost(Protocol):
    """A host whose engine an image is loaded into."""

    def docker(self, *args: str, engine: bool = False) -> str:
        """Run the docker CLI against the engine itself."""
        ...


def busybox(directory: Path) -> Path:
    """A tar archive of a root file system with busybox and its applets; made once per lab."""
    archive = directory / "busybox.tar"
    if archive.exists():
        return archive
    binary = shutil.which("busybox")
    if binary is None:
        raise FileNotFoundError("busybox is not installed: apt-get install busybox-static")
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(archive, "w") as tar:
        for name in ("bin", "etc", "tmp", "root", "var", "var/www", "run"):
            _add(tar, name, kind=tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755)
        _add(tar, "bin/busybox", Path(binary).read_bytes(), mode=0o755)
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        _add(tar, "etc/group", b"root:x:0:\n")
    return archive


def load(host: EngineHost, archive: Path) -> None:
    """Import the archive as busybox:latest and busybox:1.35 (a second tag, for updates) into a host's engine."""
    if host.docker("images", "-q", "busybox:latest", engine=True).strip():
        return
    host.docker("import", "-c", 'CMD ["sh"]', str(archive), "busybox:latest", engine=True)
    host.docker("tag", "busybox:latest", "busybox:1.35", engine=True)


def _add(
    tar: tarfile.TarFile, name: str, data: bytes = b"", mode: int = 0o644, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
    tar.addfile(info, io.BytesIO(data))
