"""Key and certificate files of a node: reads them, replaces them atomically, encrypts them under autolock.

The directory (0700) has SwarmKit's layout, and SwarmKit can read its files (0600) and we can read SwarmKit's:

    swarm-root-ca.crt   the trusted root bundle, byte for byte
    swarm-node.crt      the node's certificate, then intermediates
    swarm-node.key      its key in PKCS#8; PEM headers: kek-version, and on managers the keys of the Raft log

The *key encryption key* (KEK) is the cluster's unlock key. When there is one, the private key is encrypted with PBES2
and the Raft keys are Fernet tokens under the KEK. A node that does not have the KEK is *locked*: it cannot start.

Theory of operation. There is one key file, and it is replaced in one step, so key, headers and encryption never
disagree. A new certificate is first written beside the old one (.swarm-node.crt), then the key is replaced, then the
certificate is renamed. After a crash in between, the key fits either the old certificate or the one beside it; load()
looks at both.

The rename of the key file is the commit point. After an error there the file is read back, and what it holds counts:
if it is the new one, the call has succeeded, and settle() synchronises the directory later. While the file cannot be
read either, nobody knows; each later call begins with settle(), which finds out or fails. All functions block, though
not for long: call them from a thread.

(swarmkit: ca/keyreadwriter.go, manager/deks.go)
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import serialization

from certs import files
from certs.errors import InvalidCertificate, InvalidKey, InvalidUnlockKey, StoredKeyDamaged
from certs.files import SYSTEM, Files, Unsettled
from certs.keys import PemBlock, load_certificates, load_private_key, pem_blocks, private_key_pem
from certs.tls import Credentials
from certs.tokens import UNLOCK_KEY_BYTES

ROOT_FILE = "swarm-root-ca.crt"
CERTIFICATE_FILE = "swarm-node.crt"
KEY_FILE = "swarm-node.key"

_KEK_VERSION = "kek-version"
_RAFT_KEY = "raft-dek"
_RAFT_KEY_PENDING = "raft-dek-pending"
_RAFT_KEY_NEEDS_ROTATION = "raft-dek-needs-rotation"
_ENCRYPTED = "ENCRYPTED PRIVATE KEY"
_PLAIN = "PRIVATE KEY"
_RECORD_PLAIN = 0
_RECORD_FERNET = 2


@dataclass(frozen=True)
class Kek:
    """A key encryption key (empty: do not encrypt) and the version of the cluster object that it came with."""

    key: bytes = field(default=b"", repr=False)
    version: int = 0

    def __post_init__(self) -> None:
        if len(self.key) not in (0, UNLOCK_KEY_BYTES):
            raise ValueError(f"a KEK has {UNLOCK_KEY_BYTES} bytes, not {len(self.key)}")


@dataclass(frozen=True)
class RaftKeys:
    """Keys of a manager's Raft log. pending is the next key while a rotation is in progress, else empty."""

    current: bytes = field(repr=False)
    pending: bytes = field(default=b"", repr=False)
    needs_rotation: bool = False


@dataclass(frozen=True)
class Absent:
    """This node has no key and certificate. It may already trust a root. missing: names of files that are not there."""

    root_pem: bytes | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Locked:
    """The key is encrypted; load() needs the unlock key."""

    root_pem: bytes


@dataclass(frozen=True)
class Present:
    """Everything that a node needs to prove its identity. The certificate may have expired."""

    root_pem: bytes
    credentials: Credentials
    kek: Kek
    raft_keys: RaftKeys | None


class KeyStore:
    """The files of one directory, and their only writer. Methods raise OSError when the disk fails."""

    def __init__(self, directory: Path | str, disk: Files = SYSTEM) -> None:
        self.directory = Path(directory)
        self._files = disk
        self._kek = Kek()
        self._raft_keys: RaftKeys | None = None
        self._attempt: _KeyFile | None = None  # may or may not be what the key file is now
        self._unplaced = False  # the certificate that fits the key is beside the old one
        self._unsynced = False

    @property
    def kek(self) -> Kek:
        """The KEK as of the last load or save."""
        return self._kek

    @property
    def raft_keys(self) -> RaftKeys | None:
        """The Raft keys as of the last load or save."""
        return self._raft_keys

    @property
    def settled(self) -> bool:
        """Whether it is known what the files hold, and that they keep it when power is lost."""
        return self._attempt is None and not self._unplaced and not self._unsynced

    # --- reading ---------------------------------------------------------------------------------------------------

    def load(self, unlock_key: bytes = b"") -> Absent | Locked | Present:
        """The state of the files. Raises InvalidUnlockKey for a wrong key, StoredKeyDamaged for damaged files."""
        root_pem = self._read(ROOT_FILE)
        key_file = self._read(KEY_FILE)
        if root_pem is None or key_file is None:
            return self._absent(root_pem)
        block = _key_block(key_file)
        if block.label == _ENCRYPTED and not unlock_key:
            return Locked(root_pem)
        key = unlock_key if block.label == _ENCRYPTED else b""
        key_pem = _open_key(block, key)
        certificate_pem = self._matching_certificate(key_pem)
        if certificate_pem is None:
            return self._absent(root_pem)
        self._kek = Kek(key, _version(block))
        self._raft_keys = _read_raft_keys(block, key)
        return Present(root_pem, Credentials(certificate_pem, key_pem), self._kek, self._raft_keys)

    def load_root(self) -> bytes | None:
        """The trusted root bundle, or None."""
        return self._read(ROOT_FILE)

    def _absent(self, root_pem: bytes | None) -> Absent:
        names = (ROOT_FILE, KEY_FILE, CERTIFICATE_FILE)
        return Absent(root_pem, tuple(name for name in names if self._read(name) is None))

    def _matching_certificate(self, key_pem: bytes) -> bytes | None:
        """The certificate that fits this key: the current one, or the new one beside it, which then replaces it."""
        placed, beside = self._read(CERTIFICATE_FILE), self._read(_hidden(CERTIFICATE_FILE))
        if placed is not None and _belong_together(placed, key_pem):
            return placed
        if beside is not None and _belong_together(beside, key_pem):
            self._place()
            return beside
        if placed is None:
            return None
        raise StoredKeyDamaged("tls: private key does not match public key")

    def _place(self) -> None:
        """The certificate beside the old one replaces it. If it cannot, settle() does it later: load() finds both."""
        beside, self._unplaced = self.directory / _hidden(CERTIFICATE_FILE), True
        try:
            files.move(beside, self.directory / CERTIFICATE_FILE, self._files)
            self._unplaced = False
        except Unsettled:
            self._unplaced, self._unsynced = files.exists(beside), True
        except FileNotFoundError:
            self._unplaced = False
        except OSError:
            return

    # --- writing ---------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Find out what an earlier error left, and finish it. Raises OSError, and then it is still unsettled."""
        if self._attempt is not None:
            self._read_back(self._attempt)
        if self._unplaced:
            self._place()
            if self._unplaced:
                raise OSError(f"{CERTIFICATE_FILE} in {self.directory} cannot be replaced")
        if self._unsynced:
            files.settle(self.directory, self._files)
            self._unsynced = False

    def save_root(self, bundle_pem: bytes) -> None:
        """Trust these roots from now on."""
        self._write(ROOT_FILE, bundle_pem)

    def save(self, credentials: Credentials, kek: Kek | None = None, forget_raft_keys: bool = False) -> None:
        """Replace key and certificate. With ``kek``, encrypt with it from now on (an empty key: stop encrypting).

        forget_raft_keys: this node is no longer a manager. Raises InvalidKey or InvalidCertificate before anything is
        written.
        """
        if not _belong_together(credentials.certificate_pem, credentials.key_pem):
            raise InvalidCertificate("tls: private key does not match public key")
        kek = kek if kek is not None else self._kek
        raft_keys = None if forget_raft_keys else self._raft_keys_for(kek)
        key_file = _seal_key(credentials.key_pem, kek, raft_keys)
        self.settle()  # or the certificate that fits the present key might be overwritten
        self._write(_hidden(CERTIFICATE_FILE), credentials.certificate_pem)
        self._commit(_KeyFile(key_file, kek, raft_keys))
        self._place()

    def save_raft_keys(self, raft_keys: RaftKeys | None) -> None:
        """Replace the Raft keys. None removes them, when a manager becomes a worker. There must be a key file."""
        self.settle()
        key_file = _seal_key(self._current_key_pem(), self._kek, raft_keys)
        self._commit(_KeyFile(key_file, self._kek, raft_keys))

    def rotate_kek(self, kek: Kek, raft_keys: RaftKeys | None = None) -> bool:
        """Encrypt with a new KEK if it is newer and different. Returns whether that happened.

        raft_keys: the keys that seal the log from now on, if they change in the same step. Otherwise, locking an
        unlocked manager marks its Raft keys for rotation, because they were on disk in the clear. Raises
        StoredKeyDamaged when the same version comes with another key.
        """
        self.settle()
        if kek.key == self._kek.key:
            return False
        if kek.version == self._kek.version:
            raise StoredKeyDamaged("candidate KEK has the same version as the current KEK, but a different KEK value")
        if kek.version < self._kek.version:
            return False
        raft_keys = raft_keys or self._raft_keys_for(kek)
        self._commit(_KeyFile(_seal_key(self._current_key_pem(), kek, raft_keys), kek, raft_keys))
        return True

    def erase(self) -> None:
        """Forget everything: first the files, then the copies in memory."""
        for name in (KEY_FILE, CERTIFICATE_FILE, ROOT_FILE):
            path, hidden = self.directory / name, self.directory / _hidden(name)
            files.remove([path, hidden, files.temporary(path)], self._files)
        self._kek, self._raft_keys = Kek(), None

    def _raft_keys_for(self, kek: Kek) -> RaftKeys | None:
        if self._raft_keys is not None and kek.key and not self._kek.key:
            return RaftKeys(self._raft_keys.current, self._raft_keys.pending, needs_rotation=True)
        return self._raft_keys

    def _current_key_pem(self) -> bytes:
        key_file = self._read(KEY_FILE)
        if key_file is None:
            raise StoredKeyDamaged(f"{KEY_FILE} is missing")
        return _open_key(_key_block(key_file), self._kek.key)

    # --- files -----------------------------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file so that after a crash it has either the whole old or the whole new content."""
        files.make_directory(self.directory, self._files)
        files.replace(self.directory / name, data, self._files)

    def _commit(self, wanted: _KeyFile) -> None:
        """Replace the key file. Raises OSError when it was not replaced, or when that cannot be told yet."""
        self._attempt = wanted
        try:
            self._write(KEY_FILE, wanted.data)
        except Unsettled:
            if not self._read_back(wanted):
                raise
        except OSError:
            self._attempt = None
            raise
        else:
            self._take(wanted)

    def _read_back(self, wanted: _KeyFile) -> bool:
        """Whether the key file is this one. Raises OSError when it cannot be read."""
        found = self._read(KEY_FILE) == wanted.data
        self._unsynced = True
        self._attempt = None
        if found:
            self._take(wanted)
        return found

    def _take(self, wanted: _KeyFile) -> None:
        self._attempt, self._kek, self._raft_keys = None, wanted.kek, wanted.raft_keys


@dataclass(frozen=True)
class _KeyFile:
    """A whole key file, and what is in it."""

    data: bytes = field(repr=False)
    kek: Kek
    raft_keys: RaftKeys | None


def _hidden(name: str) -> str:
    return f".{name}"


# --- the key file --------------------------------------------------------------------------------------------------


def _key_block(key_file: bytes) -> PemBlock:
    blocks = pem_blocks(key_file)
    if not blocks or not blocks[0].label.endswith(_PLAIN):
        raise StoredKeyDamaged("invalid PEM-encoded private key")
    return blocks[0]


def _open_key(block: PemBlock, kek: bytes) -> bytes:
    """The private key in clear PKCS#8."""
    if block.label != _ENCRYPTED:
        return private_key_pem(load_private_key(block.encode()))
    try:
        key = serialization.load_der_private_key(block.body, password=kek)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidUnlockKey from error
    return private_key_pem(key)  # type: ignore[arg-type]


def _seal_key(key_pem: bytes, kek: Kek, raft_keys: RaftKeys | None) -> bytes:
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if kek.key:
        protection = serialization.BestAvailableEncryption(kek.key)
    body = load_private_key(key_pem).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, protection
    )
    headers = {_KEK_VERSION: str(kek.version)}
    if raft_keys is not None:
        headers[_RAFT_KEY] = _seal_record(raft_keys.current, kek.key)
        if raft_keys.pending:
            headers[_RAFT_KEY_PENDING] = _seal_record(raft_keys.pending, kek.key)
        if raft_keys.needs_rotation:
            headers[_RAFT_KEY_NEEDS_ROTATION] = "true"
    return PemBlock(_ENCRYPTED if kek.key else _PLAIN, body, headers).encode()


def _version(block: PemBlock) -> int:
    text = block.headers.get(_KEK_VERSION, "0")
    return int(text) if text.isdecimal() else 0


def _read_raft_keys(block: PemBlock, kek: bytes) -> RaftKeys | None:
    current, pending = block.headers.get(_RAFT_KEY), block.headers.get(_RAFT_KEY_PENDING)
    if current is None:
        if pending is not None:
            raise StoredKeyDamaged("there is a pending DEK, but no current DEK")
        return None
    needs_rotation = _RAFT_KEY_NEEDS_ROTATION in block.headers
    return RaftKeys(_open_record(current, kek), _open_record(pending, kek) if pending else b"", needs_rotation)


def _seal_record(key: bytes, kek: bytes) -> str:
    """base64 of SwarmKit's MaybeEncryptedRecord{1 algorithm, 2 data}. Encoded by hand: this package has no protobuf."""
    if kek:
        algorithm, data = bytes([0x08, _RECORD_FERNET]), _fernet(kek).encrypt(key)
    else:
        algorithm, data = b"", key
    return base64.b64encode(algorithm + b"\x12" + _varint(len(data)) + data).decode()


def _open_record(text: str, kek: bytes) -> bytes:
    try:
        record = base64.b64decode(text, validate=True)
        fields = dict(_fields(record))
    except (binascii.Error, ValueError, IndexError) as error:
        raise StoredKeyDamaged("unable to read TLS key headers") from error
    algorithm, data = fields.get(1, _RECORD_PLAIN), fields.get(2, b"")
    if not isinstance(data, bytes) or not data:
        raise StoredKeyDamaged("unable to read TLS key headers")
    if algorithm == _RECORD_PLAIN and not kek:
        return data
    if algorithm != _RECORD_FERNET or not kek:
        raise StoredKeyDamaged(f"unable to read TLS key headers: record with algorithm {algorithm!r}")
    try:
        return _fernet(kek).decrypt(data)
    except InvalidToken as error:
        raise InvalidUnlockKey from error


def _fernet(kek: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(kek))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _fields(record: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Fields of a protobuf message that has only varints and byte strings."""
    position = 0

    def varint() -> int:
        nonlocal position
        number = shift = 0
        while True:
            byte = record[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while position < len(record):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        elif tag & 7 == 2:
            length = varint()
            if position + length > len(record):
                raise ValueError("truncated record")
            position += length
            yield tag >> 3, record[position - length : position]
        else:
            raise ValueError("unknown wire type")


def _belong_together(certificate_pem: bytes, key_pem: bytes) -> bool:
    try:
        certificates = load_certificates(certificate_pem)
        public = load_private_key(key_pem).public_key()
    except (InvalidCertificate, InvalidKey):
        return False
    return bool(certificates) and certificates[0].public_key() == public
