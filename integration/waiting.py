"""Waiting for what a real cluster needs time for: poll a condition, fail with what was seen last."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(check: Callable[[], T], wanted: Callable[[T], bool] = bool, timeout_s: float = 60.0, what: str = "") -> T:
    """The first value of ``check`` that is ``wanted``; AssertionError with the last value after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = check()
        if wanted(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{what or 'the condition'} was not reached in {timeout_s:.0f} s; last seen: {value!r}"
            )
        time.sleep(0.1)
