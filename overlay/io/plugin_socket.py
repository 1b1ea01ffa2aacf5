"""The socket on which the engine finds its network driver: HTTP/1.1 with JSON, as Docker's plugins speak it.

The listening socket is kept by the keeper, too, so that calls wait while no daemon is there.

(moby: docs/extend/plugin_api.md)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path

import structlog
from aiohttp import web

from overlay import defaults
from overlay.errors import OverlayError
from overlay.io.keeper import Keeper
from overlay.plugin import Plugin, PluginBackend

log = structlog.get_logger(__name__)

CONTENT_TYPE = "application/vnd.docker.plugins.v1.1+json"
_KEPT = "plugin"


class PluginSocket:
    """Serves a Plugin. path: of the socket. state: a file for what the next daemon has to know of the engine.

    The keeper is there only while the engine has networks of ours: without them nobody waits for this socket.
    """

    def __init__(self, path: Path, state: Path, backend: PluginBackend, keeper: Keeper) -> None:
        self._path = path
        self._state = state
        self._keeper = keeper
        self.plugin = Plugin(backend, self._save)
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._kept = False

    async def open(self) -> None:
        """Begin to serve. Raises OSError, OverlayError if another process does."""
        self._load()
        app = web.Application(client_max_size=defaults.PLUGIN_REQUEST_BYTES_MAX)
        app.router.add_post("/{call}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=defaults.PLUGIN_SHUTDOWN_S)
        await self._runner.setup()
        self._listener = await asyncio.to_thread(self._listen)
        await web.SockSite(self._runner, self._listener).start()
        await self._settle()

    async def close(self) -> None:
        """Stop serving; the keeper goes on listening, if the engine has networks."""
        if self._keeping is not None:
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._listener is not None and not self._kept:
            self._path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        """The kept socket, if it is the one that its path leads to; else a new one."""
        kept = self._keeper.get().get(_KEPT)
        if kept is not None:
            if self._path.exists() and kept.getsockname() == str(self._path):
                self._kept = True
                kept.setblocking(False)
                return kept
            kept.close()
        if _is_served(self._path):
            text = "give each sideswarmd that shares this file system its own --network-driver"
            raise OverlayError(f"another process serves {self._path}: {text}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old_mask = os.umask(0o177)
        try:
            made.bind(str(self._path))
        finally:
            os.umask(old_mask)
        made.listen(128)
        made.setblocking(False)
        return made

    def _keep(self) -> None:
        """Start or end the keeping. In the background: the engine waits for the answer that made the change."""
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._settle(), name="plugin-keeper")

    async def _settle(self) -> None:
        while self._kept != bool(self.plugin.networks):
            wanted = not self._kept
            try:
                if wanted:
                    assert self._listener is not None
                    await asyncio.to_thread(self._keeper.put, _KEPT, self._listener)
                else:
                    await asyncio.to_thread(self._keeper.drop, _KEPT)
            except OSError as error:
                log.warning("plugin.not_kept", error=str(error))
                return
            self._kept = wanted

    async def _serve(self, request: web.Request) -> web.Response:
        body = await request.read()
        path = f"/{request.match_info['call']}"
        try:
            parsed = json.loads(body) if body.strip() else {}
        except ValueError:
            parsed = None
        answer = await self.plugin.handle(path, parsed) if isinstance(parsed, dict) else {"Err": "not a JSON object"}
        if "Err" in answer:
            log.warning("plugin.refused", call=path, error=answer["Err"])
        return web.Response(body=json.dumps(answer).encode(), content_type=CONTENT_TYPE)

    def _load(self) -> None:
        """A damaged file is no reason not to start: the engine tells its networks again when it restarts."""
        try:
            self.plugin.load(json.loads(self._state.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, OverlayError, ValueError, KeyError, TypeError) as error:
            log.error("plugin.state_not_read", file=str(self._state), error=str(error))

    def _save(self) -> None:
        # not synchronised: after a power failure there is no container left, and the engine tells its networks again
        temporary = self._state.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        temporary.write_text(json.dumps(self.plugin.dump()))
        temporary.rename(self._state)
        self._keep()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
