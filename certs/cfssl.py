"""Requests to an external certificate authority and its answers: CFSSL's JSON, as values.

A cluster may leave signing to servers that hold its root's key. A manager sends them a POST with a certificate request
and the names that the certificate should have (CFSSL's `sign`). The servers know the manager by its own certificate.
During a rotation away from an external authority, the new root requests a certificate in the profile "CA"
(cross-signing).

There are two kinds of failure, as in SwarmKit: the server cannot be used now (ExternalUnusable: we ask it again), or it
read the request and refused it (ExternalRefused: it would refuse the same request again).

(swarmkit: ca/external.go, ca/certificates.go PrepareCSR; cfssl: signer/signer.go, api/api.go)
"""

from __future__ import annotations

import json
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from certs.errors import CertsError, ExternalRefused, ExternalUnusable
from certs.keys import CA_ROLE, MANAGER_ROLE, identity_of, load_certificates, load_csr, public_key_der
from certs.root import RootCA

CROSS_SIGN_PROFILE = "CA"
ANSWER_BYTES_MAX = 256 << 10
_SHOWN_CHARS_MAX = 200
_HTTP_OK = 200
_NAMES = (
    ("C", NameOID.COUNTRY_NAME),
    ("ST", NameOID.STATE_OR_PROVINCE_NAME),
    ("L", NameOID.LOCALITY_NAME),
    ("O", NameOID.ORGANIZATION_NAME),
    ("OU", NameOID.ORGANIZATIONAL_UNIT_NAME),
)


def node_request(csr_pem: bytes, node_id: str, role: str, org: str) -> bytes:
    """The body of a request for a node's certificate."""
    hosts = [role, node_id] + ([CA_ROLE] if role == MANAGER_ROLE else [])
    subject = {"CN": node_id, "names": [{"O": org, "OU": role}], "SerialNumber": ""}
    return _body(csr_pem, hosts, subject, profile="")


def cross_sign_request(root: RootCA) -> bytes:
    """The body of a request for an intermediate: ``root``'s name and key, to be signed by the external authority.

    Raises NoSigningKey when ``root`` has no key, because the request is signed with it.
    """
    certificate = root.roots[0]
    columns = {key: certificate.subject.get_attributes_for_oid(oid) for key, oid in _NAMES}
    rows = max((len(values) for values in columns.values()), default=0)
    names = [
        {key: str(values[row].value) for key, values in columns.items() if row < len(values)} for row in range(rows)
    ]
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    subject = {"CN": str(common[0].value) if common else "", "names": names, "SerialNumber": ""}
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    extension = {
        "id": constraints.oid.dotted_string,
        "critical": constraints.critical,
        "value": constraints.value.public_bytes().hex(),
    }
    return _body(root.request(), [], subject, CROSS_SIGN_PROFILE, [extension])


def _body(
    csr_pem: bytes,
    hosts: list[str],
    subject: dict[str, Any],
    profile: str,
    extensions: list[dict[str, Any]] | None = None,
) -> bytes:
    request: dict[str, Any] = {
        "hosts": hosts or None,
        "certificate_request": csr_pem.decode("ascii", "replace"),
        "subject": subject,
        "profile": profile,
    }
    if extensions:
        request["extensions"] = extensions
    return json.dumps(request).encode()


def read_answer(status: int, body: bytes) -> bytes:
    """The certificate (PEM) in a server's answer. Raises ExternalUnusable, ExternalRefused with SwarmKit's texts."""
    if status != _HTTP_OK:
        shown = body[:_SHOWN_CHARS_MAX].decode("utf-8", "replace").strip()
        raise ExternalUnusable(f"unexpected status code in CSR response: {status} - {shown}")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ExternalUnusable("unable to parse JSON response") from error
    if not isinstance(answer, dict):
        raise ExternalUnusable("unable to parse JSON response")
    result = answer.get("result")
    if not answer.get("success") or result is None:
        raise ExternalRefused(_refusal(answer.get("errors")))
    if not isinstance(result, dict):
        raise ExternalRefused(f"invalid result type: {type(result).__name__}")
    certificate = result.get("certificate")
    if not isinstance(certificate, str):
        raise ExternalRefused(f"invalid result certificate field type: {type(certificate).__name__}")
    return certificate.encode("utf-8", "replace")


def _refusal(errors: object) -> str:
    shown = [
        f"{{{error.get('code', 0)} {str(error.get('message', ''))[:_SHOWN_CHARS_MAX]}}}"
        for error in (errors if isinstance(errors, list) else ())
        if isinstance(error, dict)
    ]
    return f"response errors: [{' '.join(shown)}]" if shown else "certificate signing request failed"


def check_node_certificate(
    chain_pem: bytes, csr_pem: bytes, node_id: str, role: str, org: str, trust: RootCA, now: float
) -> None:
    """Check that a chain from an external authority is what was requested. Raises CertsError with the reason."""
    certificates = load_certificates(chain_pem)
    if not certificates:
        raise ExternalRefused("the external CA's answer holds no certificate")
    identity = identity_of(certificates[0])
    if (identity.node_id, identity.role, identity.org) != (node_id, role, org):
        raise ExternalRefused("the external CA's certificate names another node, role or cluster than requested")
    if _key_of(certificates[0]) != load_csr(csr_pem).public_key():
        raise ExternalRefused("the external CA's certificate is for another key than requested")
    trust.verify(chain_pem, now)


def check_cross_signed(chain_pem: bytes, new: RootCA, old: RootCA) -> None:
    """Check that ``chain_pem`` begins with new's name and key, signed by old. Raises CertsError with the reason."""
    certificates = load_certificates(chain_pem)
    if not certificates:
        raise ExternalRefused("the external CA's answer holds no certificate")
    wanted = new.roots[0]
    # byte for byte: peers find the issuer of a certificate by the encoding of its name
    if certificates[0].subject.public_bytes() != wanted.subject.public_bytes():
        raise ExternalRefused("the external CA's certificate does not have the new root's name")
    if public_key_der(certificates[0]) != public_key_der(wanted):
        raise ExternalRefused("the external CA's certificate is for another key than the new root's")
    RootCA(old.bundle_pem, None, chain_pem)  # raises unless it verifies under the old root
    try:
        constraints = certificates[0].extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not constraints.ca:
        raise ExternalRefused("the external CA's certificate is not a CA certificate")


def _key_of(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except ValueError as error:
        raise CertsError("the external CA's certificate has a key of an unknown type") from error
