"""Log lines as dockerd writes them: logrus' text, or JSON (structlog underneath)."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}


def configure(level: str, form: str) -> None:
    """Set up structlog for this process: level debug, info, warn or error; form text or json; to standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _json_line if form == "json" else _text_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    level, message = event.pop("level", "info"), event.pop("event", "")
    exception = event.pop("exception", None)
    fields = "".join(f" {key}={_quoted(value)}" for key, value in event.items())
    line = f'time="{_now()}" level={level} msg={json.dumps(str(message))}{fields}'
    return f"{line}\n{exception}" if exception else line


def _json_line(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    level, message = event.pop("level", "info"), event.pop("event", "")
    return json.dumps({"time": _now(), "level": level, "msg": message, **event}, default=str)


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text and all(c.isalnum() or c in "-._/@^+:" for c in text)
    return text if plain else json.dumps(text)
