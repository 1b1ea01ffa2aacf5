"""Join tokens (SWMTKN) and unlock keys (SWMKEY): what users copy from one terminal to the next.

A join token holds the SHA-256 of the root certificate's PEM bytes and a secret that decides the role. Both are numbers
in base 36, padded with zeros. Version 2 is for clusters that require FIPS mode. An unlock key is 32 bytes in base64.

(swarmkit: ca/config.go, GenerateJoinToken, ParseJoinToken; manager/encryption/encryption.go, HumanReadableKey)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from random import Random

from certs.errors import InvalidJoinToken, InvalidUnlockKeyText

UNLOCK_KEY_BYTES = 32

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_SECRET_BITS = 128
_DIGEST_CHARS = 50
_SECRET_CHARS = 25
_BASE36 = re.compile(r"[0-9a-zA-Z]+")
_UNLOCK_PREFIX = "SWMKEY-1-"


@dataclass(frozen=True)
class JoinToken:
    """A parsed join token; root_digest is the SHA-256 of the root bundle in 64 hexadecimal digits."""

    version: int
    root_digest: str
    secret: str = field(repr=False)
    fips: bool


def root_digest(bundle_pem: bytes) -> str:
    """SHA-256 in hexadecimal of a root bundle, exactly as it is stored and sent."""
    return hashlib.sha256(bundle_pem).hexdigest()


def new_join_token(bundle_pem: bytes, rng: Random, fips: bool = False) -> str:
    """A token for this root bundle with a new secret from ``rng``."""
    return join_token(root_digest(bundle_pem), rng.getrandbits(_SECRET_BITS), fips)


def join_token(digest: str, secret: int, fips: bool = False) -> str:
    """A token from its parts: digest in hexadecimal, a secret below 2 ** 128."""
    version = "SWMTKN-2-1" if fips else "SWMTKN-1"
    digest_text = _base36(int(digest, 16)).rjust(_DIGEST_CHARS, "0")
    return f"{version}-{digest_text}-{_base36(secret).rjust(_SECRET_CHARS, '0')}"


def parse_join_token(token: str) -> JoinToken:
    """Read a token. Raises InvalidJoinToken, whose text does not contain the token."""
    parts = token.split("-")
    if parts[0] != "SWMTKN":
        raise InvalidJoinToken
    match parts[1:]:
        case ["1", digest, secret]:
            version, fips = 1, False
        case ["2", "0" | "1" as flag, digest, secret]:
            version, fips = 2, flag == "1"
        case _:
            raise InvalidJoinToken
    if len(digest) != _DIGEST_CHARS or len(secret) != _SECRET_CHARS:
        raise InvalidJoinToken
    if not (_BASE36.fullmatch(digest) and _BASE36.fullmatch(secret)):
        raise InvalidJoinToken
    number = int(digest, 36)
    if number >> 256:
        raise InvalidJoinToken
    return JoinToken(version, f"{number:064x}", secret, fips)


def same_token(expected: str, given: str) -> bool:
    """Whether two tokens are equal, compared in constant time. An empty token equals nothing."""
    return hmac.compare_digest(expected.encode(), given.encode()) and expected != ""


def new_unlock_key(rng: Random) -> bytes:
    """A new unlock key: 32 bytes."""
    return rng.randbytes(UNLOCK_KEY_BYTES)


def unlock_key_text(key: bytes) -> str:
    """An unlock key as users see and type it; empty for an empty key."""
    return _UNLOCK_PREFIX + base64.b64encode(key).decode().rstrip("=") if key else ""


def parse_unlock_key(text: str) -> bytes:
    """The bytes of an unlock key as typed. Raises InvalidUnlockKeyText, whose text does not contain the key."""
    if not text.startswith(_UNLOCK_PREFIX):
        raise InvalidUnlockKeyText
    encoded = text.removeprefix(_UNLOCK_PREFIX)
    if encoded.endswith("="):
        raise InvalidUnlockKeyText
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidUnlockKeyText from error
    if len(key) != UNLOCK_KEY_BYTES:
        raise InvalidUnlockKeyText
    return key


def _base36(number: int) -> str:
    digits = []
    while number:
        number, rest = divmod(number, 36)
        digits.append(_DIGITS[rest])
    return "".join(reversed(digits))
