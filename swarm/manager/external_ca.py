"""External certificate authorities: which of them serve a root, the questions to them, and their answers.

The cluster's spec lists servers that sign for a root in place of a key in the store. A server listed without a root
certificate serves the currently trusted root. Only I/O can tell whether a server answers, so a service uses an Ask
(swarm/manager/service.py) and continues when the answer comes.

A change of the cluster must be decided inside one pass, which cannot wait. It reads from Answers. If an answer is
missing there, the attempt ends with Unanswered, and is repeated from the start after the question has been answered.

(swarmkit: manager/controlapi/ca_rotation.go, ca/server.go filterExternalCAURLS)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from certs.keys import normalize_pem
from certs.root import RootCA
from swarm import api
from swarm.errors import Unavailable


@dataclass(frozen=True)
class FindReachable:
    """Does one of these servers answer, with a certificate of roots_pem?"""

    urls: tuple[str, ...]
    roots_pem: bytes


@dataclass(frozen=True)
class Sign:
    """Request a certificate with ``body``. what: identifies the request; equal requests may differ in ``body``.

    roots_pem: the servers' own certificates must lead to one of these roots.
    """

    urls: tuple[str, ...]
    roots_pem: bytes
    what: str
    body: bytes = field(compare=False, repr=False)


Question = FindReachable | Sign


@dataclass(frozen=True)
class Outcome:
    """The answer: a certificate if one was requested, or an error. refused: asking again is useless."""

    certificate_pem: bytes = b""
    error: str = ""
    refused: bool = False


class Unanswered(Unavailable):
    """An external authority must be asked before this can be decided."""

    def __init__(self, question: Question) -> None:
        super().__init__("an external CA must be asked first")
        self.question = question


class Answers:
    """The known answers of external authorities during one request; each request has its own."""

    def __init__(self) -> None:
        self._known: dict[Question, Outcome] = {}
        self._root: RootCA | None = None

    def learn(self, question: Question, outcome: Outcome) -> None:
        """Record the answer to a question."""
        self._known[question] = outcome

    def ask(self, question: Question) -> Outcome:
        """The answer to this question. Raises Unanswered."""
        outcome = self._known.get(question)
        if outcome is None:
            raise Unanswered(question)
        return outcome

    def reachable(self, urls: tuple[str, ...], roots_pem: bytes) -> bool:
        """Whether one of these servers is reachable and valid for these roots. Raises Unanswered."""
        return bool(urls) and not self.ask(FindReachable(urls, roots_pem)).error

    def new_root(self, make: Callable[[], RootCA]) -> RootCA:
        """A new root for the request: the same one in every attempt."""
        if self._root is None:
            self._root = make()
        return self._root


def urls_for(config: api.CAConfig, wanted_pem: bytes, current_pem: bytes) -> tuple[str, ...]:
    """The CFSSL servers of a spec that sign for the root ``wanted_pem``. current_pem: the currently trusted root."""
    wanted = normalize_pem(wanted_pem)
    return tuple(
        authority.url
        for authority in config.external_cas
        if authority.protocol == api.ExternalCA.CFSSL and normalize_pem(authority.ca_cert or current_pem) == wanted
    )


def signing_urls(config: api.CAConfig, root_ca: api.RootCA) -> tuple[str, ...]:
    """The servers that sign node certificates now; empty: the cluster's own key signs."""
    wanted = root_ca.root_rotation.ca_cert if root_ca.HasField("root_rotation") else root_ca.ca_cert
    return urls_for(config, wanted, root_ca.ca_cert)
