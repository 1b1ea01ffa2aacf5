"""The manager that the tests of this directory attack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.security.attacked_manager import AttackedManager


@pytest_asyncio.fixture
async def attacked(tmp_path: Path) -> AsyncIterator[AttackedManager]:
    """A manager that leads, and serves every legitimate call after the test as before."""
    attacked = AttackedManager(tmp_path)
    await attacked.start()
    yield attacked
    await attacked.stop()
