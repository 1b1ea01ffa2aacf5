"""Records on disk as bytes: checksums, and encryption with the node's data key.

A record is a byte for its kind, then either the plain bytes, or the version of the key, a random nonce and the output
of AES-256-GCM. The checksum covers the record and its context (table, index, term...), and encryption authenticates the
context too, so no record can pass for another. Plain records can be read with or without a sealer: encryption may be
switched on at any time. (swarmkit: manager/encryption, manager/state/raft/storage/walwrap.go)
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from random import Random
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swarm.errors import Code, SwarmError

_PLAIN, _SEALED = b"\x00", b"\x01"
_VERSION_BYTES = 4
_NONCE_BYTES = 12
_KEY_BYTES = 32


class RecordCorrupt(SwarmError):
    """The bytes on disk are not those that were written."""

    code = Code.DATA_LOSS


class RecordLocked(SwarmError):
    """The record is encrypted with a key that is not available."""

    code = Code.FAILED_PRECONDITION


class Sealer(Protocol):
    """Encrypts records. context: where the record belongs; open() must be given the same."""

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """Encrypted and authenticated bytes."""
        ...

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The plain bytes. Raises RecordLocked without the key, RecordCorrupt for other bytes or another context."""
        ...


class AesGcmSealer:
    """Encrypts with one of several versions of the data key, decrypts with any of them."""

    def __init__(self, keys: Mapping[int, bytes], current: int, rng: Random) -> None:
        """keys: version to 32 bytes. rng: for nonces; must be a SystemRandom outside tests."""
        if current not in keys or any(len(key) != _KEY_BYTES for key in keys.values()):
            raise ValueError("data keys have 32 bytes, and the current version must be among them")
        self._ciphers = {version: AESGCM(key) for version, key in keys.items()}
        self._current = current
        self._rng = rng

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """Version, nonce and ciphertext."""
        nonce = self._rng.randbytes(_NONCE_BYTES)
        version = self._current.to_bytes(_VERSION_BYTES, "big")
        return version + nonce + self._ciphers[self._current].encrypt(nonce, plain, version + context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """The plain bytes of what was sealed with this context. Raises RecordLocked or RecordCorrupt."""
        version = sealed[:_VERSION_BYTES]
        cipher = self._ciphers.get(int.from_bytes(version, "big"))
        if cipher is None:
            raise RecordLocked(f"sealed with version {int.from_bytes(version, 'big')} of the data key")
        nonce = sealed[_VERSION_BYTES : _VERSION_BYTES + _NONCE_BYTES]
        try:
            return cipher.decrypt(nonce, sealed[_VERSION_BYTES + _NONCE_BYTES :], version + context)
        except (InvalidTag, ValueError) as error:
            raise RecordCorrupt("sealed record does not authenticate") from error


def encode(plain: bytes, context: bytes, sealer: Sealer | None) -> bytes:
    """The record for these bytes."""
    if sealer is None:
        return _PLAIN + plain
    return _SEALED + sealer.seal(plain, context)


def decode(record: bytes, context: bytes, sealer: Sealer | None) -> bytes:
    """The bytes of a record. Raises RecordLocked or RecordCorrupt."""
    kind = record[:1]
    if kind == _PLAIN:
        return record[1:]
    if kind != _SEALED:
        raise RecordCorrupt("record of unknown kind")
    if sealer is None:
        raise RecordLocked("the record is sealed and no data key is at hand")
    return sealer.open(record[1:], context)


def is_plain(record: bytes) -> bool:
    """Whether the record can be read without a key."""
    return record[:1] == _PLAIN


def checksum(record: bytes, context: bytes) -> int:
    """CRC-32 of the record and its context."""
    return zlib.crc32(record, zlib.crc32(context))
