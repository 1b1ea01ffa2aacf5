"""How a node of the simulation gets certificates: what swarm/io/node/bootstrap.py does."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from certs.renewal import backoff_s
from certs.tokens import parse_join_token, root_digest
from swarm import api, defaults
from swarm.errors import Code, InvalidArgument, SwarmError, Unavailable
from tests.sim.kernel import Script
from tests.sim.network import Connection

if TYPE_CHECKING:
    from tests.sim.process import Process

_SIGNED = (api.IssuanceStatus.ISSUED, api.IssuanceStatus.ROTATE)
_FINAL = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
_ATTEMPTS = 5


def request_certificate(process: Process, addresses: list[str], token: str) -> Script:
    """See bootstrap._Managers: an attempt with each manager in turn, until one is through or says no for good."""
    csr = process.world.requests.new()
    rng = process.random("certificate")
    addresses = rng.sample(addresses, len(addresses))
    for attempt in range(_ATTEMPTS):
        try:
            if not addresses:
                raise Unavailable("no remote hosts provided")
            addr = addresses[attempt % len(addresses)]
            return (yield from _issue(process, addr, csr, token, rng))
        except SwarmError as error:
            if error.code in _FINAL or attempt == _ATTEMPTS - 1:
                raise
        yield process.kernel.sleep(defaults.CERTIFICATE_RETRY_S)
    raise AssertionError("the last attempt returns or raises")


def _issue(process: Process, addr: str, csr: bytes, token: str, rng: Random) -> Script:
    limit_s = defaults.CERTIFICATE_CALL_TIMEOUT_S
    connection: Connection = yield process.world.network.dial(process, addr, defaults.RPC_DIAL_TIMEOUT_S)
    try:
        if token:
            answer = yield from connection.unary("CA/GetRootCACertificate", api.GetRootCACertificateRequest(), limit_s)
            if root_digest(answer.certificate) != parse_join_token(token).root_digest:
                raise InvalidArgument("remote CA does not match fingerprint")
            process.disk.root_pem = answer.certificate
        request = api.IssueNodeCertificateRequest(csr=csr, token=token)
        response = yield from connection.unary("NodeCA/IssueNodeCertificate", request, limit_s)
        failures = 0
        while True:
            wanted = api.NodeCertificateStatusRequest(node_id=response.node_id)
            try:
                status = yield from connection.unary("NodeCA/NodeCertificateStatus", wanted, limit_s)
            except SwarmError as error:
                if error.code == Code.NOT_FOUND:
                    raise
                if error.code != Code.DEADLINE_EXCEEDED:
                    connection.close()
                    connection = yield process.world.network.dial(process, addr, defaults.RPC_DIAL_TIMEOUT_S)
            else:
                if status.certificate.csr == csr:
                    if status.status.state in _SIGNED:
                        return status.certificate.certificate
                    if status.status.state == api.IssuanceStatus.FAILED:
                        raise InvalidArgument(status.status.err)
            failures += 1
            yield process.kernel.sleep(backoff_s(failures, 1.0, 1.0, 30.0, rng))
    finally:
        connection.close()
