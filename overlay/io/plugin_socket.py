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
    """Serves a Plugin. path: of the socket. state: a file for what the next daemon has to know of the engine."""

    def __init__(self, path: Path, state: Path, backend: PluginBackend, keeper: Keeper) -> None:
        self._path = path
        self._state = state
        self._keeper = keeper
        self.plugin = Plugin(backend, self._save)
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Begin to serve. Raises OSError."""
        self._load()
        app = web.Application(client_max_size=defaults.PLUGIN_REQUEST_BYTES_MAX)
        app.router.add_post("/{call}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=defaults.PLUGIN_SHUTDOWN_S)
        await self._runner.setup()
        listener = await asyncio.to_thread(self._listener)
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop serving; the keeper goes on listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _listener(self) -> socket.socket:
        """The kept socket, if it is the one that its path leads to; else a new one."""
        kept = self._keeper.get().get(_KEPT)
        if kept is not None:
            if self._path.exists() and kept.getsockname() == str(self._path):
                kept.setblocking(False)
                return kept
            kept.close()
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
        self._keeper.put(_KEPT, made)
        return made

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
