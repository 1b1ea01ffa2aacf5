"""Sends the manager's requests to external certificate authorities.

(swarmkit: ca/external.go)
"""

from __future__ import annotations

from collections import Counter

import structlog

from certs import external
from certs.errors import CertsError, ExternalRefused
from certs.tls import Credentials
from swarm import defaults
from swarm.manager.external_ca import FindReachable, Outcome, Question

log = structlog.get_logger()


async def ask_authority(question: Question, credentials: Credentials, counted: Counter[str]) -> Outcome:
    """The answer, or why there is none. Raises nothing: the caller decides what an error means.

    counted: by "answered", "refused" and "failed".
    """
    outcome = await _ask(question, credentials)
    counted["refused" if outcome.refused else "failed" if outcome.error else "answered"] += 1
    return outcome


async def _ask(question: Question, credentials: Credentials) -> Outcome:
    timeout_s = defaults.EXTERNAL_CA_TIMEOUT_S
    try:
        if isinstance(question, FindReachable):
            await external.find_reachable(question.urls, question.roots_pem, credentials, timeout_s)
            return Outcome()
        certificate = await external.sign(question.urls, question.body, question.roots_pem, credentials, timeout_s)
        return Outcome(certificate)
    except ExternalRefused as error:
        return Outcome(error=str(error), refused=True)
    except CertsError as error:
        return Outcome(error=str(error))
    except Exception as error:
        log.exception("external_ca.not_asked")
        return Outcome(error=f"{type(error).__name__}: {error}")
