"""sideswarmd: creates the parts of the daemon, connects them, and shuts them down.

Started: engine client -> cluster (manager, agent) -> HTTP application -> sockets. The sockets come last, so that
/_ping answers only when the daemon is ready. SIGINT and SIGTERM end it within SHUTDOWN_S; SIGHUP makes it read the
API's TLS files again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import grp
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import structlog
from aiohttp import web

from engine_api import logs
from engine_api.app import ROUTES, build_app
from engine_api.cluster import Cluster
from engine_api.config import Config, ConfigError, insecure_hosts, load
from engine_api.engine.client import EngineClient
from engine_api.front.admission import Admission
from engine_api.front.backends import Backends, engine_connector, make_runner
from engine_api.front.front import Front
from engine_api.front.listener import Listener, ListenError
from engine_api.front.paths import IsLocal, local_requests
from engine_api.front.policy import Policy
from engine_api.front.tls import Tls, TlsError
from engine_api.overlay import Overlay
from engine_api.routes.system import System
from engine_api.server.metrics import registry_of, serve_metrics
from overlay.errors import OverlayError
from swarm import defaults

log = structlog.get_logger()

SHUTDOWN_S = 8.0
REQUESTS_END_S = 2.0
START_ENDS_S = 2.0
PR_SET_DUMPABLE = 4
GC_ALLOCATIONS = 50_000
THREAD_SWITCH_S = 0.0005
GC_YOUNG_PER_OLDER = 20


class StartError(Exception):
    """The daemon cannot start; the text says why."""


class Daemon:
    """One sideswarmd."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._engine = EngineClient(config.engine)
        self._tls = tls_of(config)
        self._metrics: web.AppRunner | None = None
        self._fronts: set[Front] = set()
        self._watch: asyncio.Task[None] | None = None
        self._listeners: list[Listener] = []
        self._locks: list[int] = []
        self._stop = asyncio.Event()
        self.ready = asyncio.Event()
        overlay = Overlay(config, self._engine)
        self.system = System(self._engine, insecure_warnings(config), time.time, overlay.network_state, overlay.attach)
        self.cluster = Cluster(config, self._engine, self.system.publish, overlay)
        self._registry = registry_of(self.cluster.counts, time.time())

    async def run(self) -> None:
        """Start, serve until a signal, stop. Raises StartError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            self._prepare()
            if await self._unless_stopped(self._start()):
                tune_garbage_collector()
                log.info("daemon.ready", hosts=",".join(self._config.hosts), engine=self._config.engine)
                notify("READY=1")
                self.ready.set()
                await self._stop.wait()
            notify("STOPPING=1")
            log.info("daemon.stopping")
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_S):
                    await self._shut_down()
            self._forget_files()

    def stop(self) -> None:
        """As a signal does: run() shuts everything down and returns."""
        self._stop.set()

    def _reload(self) -> None:
        try:
            self._load_tls()
            log.info("daemon.reloaded")
        except TlsError as error:
            log.error("daemon.reload_failed", error=str(error), kept="the TLS files as they were before")

    async def _unless_stopped(self, work: Coroutine[None, None, None]) -> bool:
        """Run ``work`` until it is done or a signal comes; returns whether it was done."""
        task = asyncio.create_task(work)
        waiter = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait({task}, timeout=START_ENDS_S)
        return False

    async def _start(self) -> None:
        try:
            await self.cluster.start()
        except (OSError, OverlayError) as error:
            raise StartError(f"cannot serve the engine's networks: {error}") from error
        await self.system.attach(self.cluster)
        routes = (*ROUTES, *self.system.routes)
        app = build_app(
            self.cluster, self.system.api_version, self.system.server_header, hooks=self.system.hooks, routes=routes
        )
        runner = await make_runner(app)
        await warn_of_insecure_hosts(self._config)
        await self._listen(runner.server, local_requests(routes))
        if self._config.metrics_addr:
            try:
                self._metrics = await serve_metrics(self._config.metrics_addr, self._registry)
            except OSError as error:
                raise StartError(f"cannot listen on {self._config.metrics_addr}: {error.strerror or error}") from error

    # --- start -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            self._load_tls()
        except TlsError as error:
            raise StartError(str(error)) from None
        group = socket_group(self._config.group)
        self._listeners = [listener_of(host, self._tls, group) for host in self._config.hosts]
        for directory in (self._config.data_root, self._config.exec_root):
            directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._lock(self._config.data_root, "data root")
        self._lock(self._config.exec_root, "exec root")
        if self._config.pidfile is not None:
            self._config.pidfile.parent.mkdir(parents=True, exist_ok=True)
            self._config.pidfile.write_text(str(os.getpid()))

    def _lock(self, directory: Path, name: str) -> None:
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._locks.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another sideswarmd uses the {name} {directory}") from None

    def _load_tls(self) -> None:
        if self._tls is not None:
            self._tls.load()

    async def _listen(self, server: Callable[[], object] | None, is_local: IsLocal) -> None:
        assert server is not None
        connector = engine_connector(self._config.engine, defaults.ENGINE_CONNECT_TIMEOUT_S)
        backends = Backends(server, is_local, connector, self._config.engine, self.system.quick_answer)

        self._watch = asyncio.create_task(backends.unread.watch(self._fronts), name="unread")

        def front(policy: Policy) -> Front:
            return Front(backends, self._fronts, policy)

        for listener in self._listeners:
            try:
                await listener.open(front)
            except ListenError as error:
                raise StartError(str(error)) from error

    # --- stop ------------------------------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        for listener in self._listeners:
            listener.close()
        self.system.stop()
        for front in list(self._fronts):
            front.close_when_idle()
        if self._fronts:
            await asyncio.wait(
                {asyncio.ensure_future(front.closed.wait()) for front in self._fronts}, timeout=REQUESTS_END_S
            )
        for front in list(self._fronts):
            front.transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        if self._metrics is not None:
            await self._metrics.cleanup()
        await self.cluster.stop()
        await self._engine.close()

    def _forget_files(self) -> None:
        for listener in self._listeners:
            listener.forget_file()
        pidfile = self._config.pidfile
        if pidfile is not None and pidfile.exists() and pidfile.read_text() == str(os.getpid()):
            pidfile.unlink()
        for handle in self._locks:
            os.close(handle)


def tls_of(config: Config) -> Tls | None:
    """The TLS that all tcp:// hosts share, with one admission; None: no host uses it."""
    if not config.tls or not config.tcp_hosts:
        return None
    return Tls(config.tlscert, config.tlskey, config.tlscacert, verify=config.tlsverify, admission=Admission())


def listener_of(host: str, tls: Tls | None, group: int | None) -> Listener:
    """The listener of one -H value, with full access."""
    return Listener(host, tls=tls) if host.startswith("tcp://") else Listener(host, group=group)


async def warn_of_insecure_hosts(config: Config) -> None:
    """Log the hosts whose API anyone can use, and delay the start so that somebody reads it."""
    insecure = insecure_hosts(config)
    for _, host, lack in insecure:
        log.warning("api.insecure", host=host, lack=lack, meaning="anyone who reaches it is root on this host")
    if insecure:
        await asyncio.sleep(defaults.API_INSECURE_PAUSE_S)


def socket_group(name: str) -> int | None:
    """The group that may use the unix socket besides root; None: no group. Raises StartError.

    As in dockerd, the default group need not exist, but a group that was asked for must. A number is used as it is.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdecimal():
            return int(name)
    if name not in ("", Config.group):
        raise StartError(f"there is no group {name} (--group)")
    log.info("daemon.no_group", group=name)
    return None


def tune_garbage_collector() -> None:
    """Exempt all present objects from garbage collection, and collect less often from now on.

    With a store of 70,000 tasks, collections would otherwise interrupt passes for 130 ms and more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, GC_YOUNG_PER_OLDER, GC_YOUNG_PER_OLDER)


def shorten_thread_switches() -> None:
    """Let the disk threads run soon: under load, each step of a commit would wait 5 ms for the interpreter lock."""
    sys.setswitchinterval(THREAD_SWITCH_S)


def forbid_core_dumps() -> None:
    """A crash must not write the memory of this process to disk: it holds keys and secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # kernels that pipe core dumps ignore the limit; they respect this, which also keeps other users' debuggers out
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def open_many_files() -> None:
    """Raise the limit of open files: services start with 1024, and swarm/defaults.py allows more connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def insecure_warnings(config: Config) -> list[str]:
    """Warnings for /info about an API that anyone may use (texts as stock engines print them)."""
    return [
        f"WARNING: API is accessible on {scheme}://{host} without {lack}.\n"
        "         Access to the remote API is equivalent to root access on the host. Refer\n"
        "         to the 'Docker daemon attack surface' section in the documentation for\n"
        "         more information: https://docs.docker.com/go/attack-surface/"
        for scheme, host, lack in insecure_hosts(config)
    ]


def notify(state: str) -> None:
    """Report a state to the service manager that started this process, if any (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        channel.sendto(state.encode(), address)


def main(argv: list[str] | None = None) -> int:
    """The command sideswarmd; returns the exit code."""
    if not __debug__:
        print("sideswarmd: cannot run under python -O: it relies on assertions", file=sys.stderr)  # noqa: T201
        return 1
    try:
        config = load(argv)
    except ConfigError as error:
        print(f"sideswarmd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    forbid_core_dumps()
    open_many_files()
    shorten_thread_switches()
    logs.configure(config.log_level, config.log_format)
    with asyncio.Runner(loop_factory=loop_factory(config.event_loop)) as runner:
        try:
            runner.run(Daemon(config).run())
        except StartError as error:
            print(f"sideswarmd: {error}", file=sys.stderr)  # noqa: T201
            return 1
    return 0


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop to use; None: asyncio's own. Without a name: uvloop if it is installed."""
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if name:
            raise
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


if __name__ == "__main__":
    sys.exit(main())
