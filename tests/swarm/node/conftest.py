"""Certificates for the tests of the Node machine."""

from __future__ import annotations

import pytest

from tests.conftest import Authority
from tests.swarm.node.daemon import Issuer


@pytest.fixture(scope="session")
def issuer(authority: Authority, other_authority: Authority) -> Issuer:
    """Of the certificates of one node, which are made only once."""
    return Issuer(authority, other_authority)
