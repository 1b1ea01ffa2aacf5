"""An external certificate authority of simulated clusters: it answers what certs/external.py would bring home."""

from __future__ import annotations

import json

from cryptography.hazmat.primitives.asymmetric import ec

from certs.root import RootCA
from swarm.manager.external_ca import FindReachable, Outcome, Question
from tests.sim.keys import EPOCH

URL = "https://authority/sign"
EXPIRY_S = 90 * 24 * 3600.0


class ExternalAuthority:
    """It has a root with its key, always the same one; while it is away it answers nobody."""

    def __init__(self) -> None:
        self.root = RootCA.create(EPOCH, ec.derive_private_key(19, ec.SECP256R1()), deterministic=True)
        self.away = False
        self.issued = 0

    def answer(self, question: Question, now: float) -> Outcome:
        """What becomes of a question at ``now``, in seconds since the epoch."""
        if self.away or URL not in question.urls:
            return Outcome(error=f"{URL}: connection refused")
        if isinstance(question, FindReachable):
            return Outcome()
        request = json.loads(question.body)
        if request["profile"]:
            return Outcome(error="response errors: [{5200 no intermediates}]", refused=True)
        self.issued += 1
        subject, csr = request["subject"], request["certificate_request"].encode()
        (names,) = subject["names"]
        return Outcome(self.root.sign(csr, subject["CN"], names["OU"], names["O"], now, EXPIRY_S))
