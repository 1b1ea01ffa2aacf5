"""The routes that a daemon registers, and what its front makes of them."""

from __future__ import annotations

from engine_api.app import ROUTES
from engine_api.engine.client import EngineClient
from engine_api.front.paths import local_requests
from engine_api.routes.system import System

EVERY_ROUTE = (*ROUTES, *System(EngineClient("unix:///none"), [], lambda: 0.0).routes)
IS_LOCAL = local_requests(EVERY_ROUTE)
