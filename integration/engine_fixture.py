"""One stock engine in a network namespace of its own, for tests that need nothing else. Needs root."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from integration import images, processes

_START_TIMEOUT_S = 60.0


class EngineProcess:
    """A private dockerd: everything below ``directory``, nothing left after ``close``."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sideswarm-engine-"))
        self.socket = self.directory / "docker.sock"
        self.host = f"unix://{self.socket}"
        self._namespace = f"engine-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Make the namespace, start the engine, import busybox."""
        _run("ip", "netns", "add", self._namespace)
        _run("ip", "-n", self._namespace, "link", "set", "lo", "up")
        self.start()
        archive = images.busybox(self.directory)
        _run("docker", "-H", self.host, "import", "-c", 'CMD ["sh"]', str(archive), "busybox:latest")

    def start(self) -> None:
        """Start (again) what was never started, stopped or killed."""
        (self.directory / "docker.pid").unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)
        # nsenter, not "ip netns exec": that one remounts /sys, and dockerd then finds no cgroups
        command = ["nsenter", f"--net=/run/netns/{self._namespace}", "dockerd", "--iptables=false"]
        command += ["--live-restore", "-H", self.host, "-p", f"{self.directory}/docker.pid"]
        command += ["--data-root", f"{self.directory}/data", "--exec-root", f"{self.directory}/exec"]
        command += ["--config-file", f"{self.directory}/daemon.json"]
        (self.directory / "daemon.json").write_text("{}")
        with (self.directory / "engine.log").open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"no engine: {(self.directory / 'engine.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL; containers keep running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        # its containerd dies with it; the next engine would take an unreaped zombie for a running process
        pid_file = self.directory / "exec/containerd/containerd.pid"
        if processes.wait_gone(int(pid_file.read_text()), _START_TIMEOUT_S):
            pid_file.unlink()

    def docker(self, *args: str) -> str:
        """The docker CLI against this engine; returns its output."""
        return _run("docker", "-H", self.host, *args)

    def close(self) -> None:
        """End the engine and its containers, and delete everything."""
        if self._process is not None and self._answers():
            containers = self.docker("ps", "-aq").split()
            if containers:
                self.docker("rm", "-f", *containers)
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_START_TIMEOUT_S)
        processes.kill_mentioning(self.directory)
        if Path(f"/run/netns/{self._namespace}").exists():
            _run("ip", "netns", "del", self._namespace)
        processes.unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("engine", timeout=5)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self.socket))
            connection.request("GET", "/_ping")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
