"""Questions to external certificate authorities are counted by how they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from certs import cfssl
from integration.cfssl import serving
from swarm.io.node.external_authority import ask_authority
from swarm.manager.external_ca import FindReachable, Sign
from tests.certs.test_external import MANAGER, NODE, ORG, WORKER, ExternalCa, unused_url


@pytest.fixture
def outside() -> Iterator[ExternalCa]:
    setting = ExternalCa()
    with serving(setting.authority) as setting.url:
        yield setting


async def test_questions_are_counted_as_answered_refused_or_failed(outside: ExternalCa) -> None:
    counted: Counter[str] = Counter()
    roots = outside.root.bundle_pem
    sign = Sign((outside.url,), roots, "node1", cfssl.node_request(outside.csr, NODE, WORKER, ORG))
    assert (await ask_authority(sign, outside.member(MANAGER), counted)).certificate_pem
    assert not (await ask_authority(FindReachable((outside.url,), roots), outside.credentials, counted)).error
    assert (await ask_authority(sign, outside.member(WORKER), counted)).refused
    assert (await ask_authority(FindReachable((unused_url(),), roots), outside.credentials, counted)).error
    assert counted == {"answered": 2, "refused": 1, "failed": 1}
