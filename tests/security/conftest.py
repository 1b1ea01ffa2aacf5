"""The manager that the tests of this directory attack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.security.fort import Fort


@pytest_asyncio.fixture
async def fort(tmp_path: Path) -> AsyncIterator[Fort]:
    """A manager that leads, and serves every legitimate call after the test as before."""
    fort = Fort(tmp_path)
    await fort.start()
    yield fort
    await fort.stop()
