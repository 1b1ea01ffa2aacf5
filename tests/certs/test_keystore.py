"""Key files: layout, permissions, locking, and what a crash at any step leaves behind."""

from __future__ import annotations

import base64
import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certs import keys, keystore
from certs.errors import InvalidCertificate, InvalidUnlockKey, StoredKeyDamaged
from certs.keystore import Absent, Kek, KeyStore, Locked, Present, RaftKeys
from certs.root import RootCA
from certs.tls import Credentials
from tests.bad_disk import DEATH, EIO, ENOSPC, BadDisk, Death

NOW = 1_795_362_749.0
ROOT = RootCA.create(NOW)
KEK = Kek(b"k" * 32, 7)


def new_credentials(node_id: str = "node1") -> Credentials:
    key = keys.new_private_key()
    certificate = ROOT.sign(keys.new_csr(key), node_id, "swarm-manager", "cluster1", NOW, 0)
    return Credentials(certificate, keys.private_key_pem(key))


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "certificates")


@pytest.fixture
def filled(store: KeyStore) -> tuple[KeyStore, Credentials]:
    credentials = new_credentials()
    store.save_root(ROOT.bundle_pem)
    store.save(credentials)
    return store, credentials


def again(store: KeyStore) -> KeyStore:
    """The same directory after a restart."""
    return KeyStore(store.directory)


def loaded(store: KeyStore, unlock_key: bytes = b"") -> Present:
    state = again(store).load(unlock_key)
    assert isinstance(state, Present)
    return state


def test_a_new_node_has_nothing(store: KeyStore) -> None:
    assert store.load() == Absent(None, ("swarm-root-ca.crt", "swarm-node.key", "swarm-node.crt"))


def test_a_node_that_fetched_the_root_has_only_that(store: KeyStore) -> None:
    store.save_root(ROOT.bundle_pem)
    assert store.load() == Absent(ROOT.bundle_pem, ("swarm-node.key", "swarm-node.crt"))
    assert store.load_root() == ROOT.bundle_pem


def test_key_and_certificate_come_back(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    assert loaded(store) == Present(ROOT.bundle_pem, credentials, Kek(), None)


def test_only_the_owner_may_read(filled: tuple[KeyStore, Credentials]) -> None:
    directory = filled[0].directory
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "swarm-root-ca.crt": 0o600,
        "swarm-node.crt": 0o600,
        "swarm-node.key": 0o600,
    }


def test_the_key_file_looks_like_swarmkits(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    lines = (store.directory / "swarm-node.key").read_text().split("\n")
    record = base64.b64encode(b"\x12\x20" + b"d" * 32).decode()
    assert lines[:4] == ["-----BEGIN PRIVATE KEY-----", "kek-version: 0", f"raft-dek: {record}", ""]


def test_raft_keys_come_back(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    raft_keys = RaftKeys(b"d" * 32, b"p" * 32, needs_rotation=True)
    store.save_raft_keys(raft_keys)
    assert loaded(store) == Present(ROOT.bundle_pem, credentials, Kek(), raft_keys)


def test_a_renewal_keeps_the_raft_keys(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    renewed = new_credentials()
    store.save(renewed)
    assert loaded(store) == Present(ROOT.bundle_pem, renewed, Kek(), RaftKeys(b"d" * 32))


def test_a_demoted_manager_forgets_its_raft_keys(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    store.save_raft_keys(None)
    assert loaded(store).raft_keys is None


def test_a_locked_key_needs_the_unlock_key(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    assert store.rotate_kek(KEK)
    assert again(store).load() == Locked(ROOT.bundle_pem)
    with pytest.raises(InvalidUnlockKey, match="swarm could not be unlocked: invalid key provided"):
        again(store).load(b"x" * 32)
    state = loaded(store, KEK.key)
    assert state == Present(ROOT.bundle_pem, credentials, KEK, RaftKeys(b"d" * 32, needs_rotation=True))


def test_nothing_of_a_locked_manager_is_in_the_clear(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    store.rotate_kek(KEK)
    blocks = keys.pem_blocks((store.directory / "swarm-node.key").read_bytes())
    assert [block.label for block in blocks] == ["ENCRYPTED PRIVATE KEY"]
    assert blocks[0].headers["kek-version"] == "7"
    assert b"d" * 32 not in base64.b64decode(blocks[0].headers["raft-dek"])
    assert keys.pem_blocks(credentials.key_pem)[0].body not in blocks[0].body


def test_openssl_opens_a_locked_key(filled: tuple[KeyStore, Credentials], tmp_path: Path) -> None:
    store, _ = filled
    store.rotate_kek(Kek(b"passphrase-of-32-printable-bytes", 1))
    block = keys.pem_blocks((store.directory / "swarm-node.key").read_bytes())[0]
    (tmp_path / "key.pem").write_bytes(keys.PemBlock(block.label, block.body).encode())
    command = ["openssl", "pkey", "-in", "key.pem", "-passin", "pass:passphrase-of-32-printable-bytes", "-noout"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_a_locked_manager_stays_locked_through_renewals_and_a_new_key(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.rotate_kek(KEK)
    renewed = new_credentials()
    store.save(renewed)
    assert loaded(store, KEK.key).credentials == renewed
    store.rotate_kek(Kek(b"n" * 32, 8))
    with pytest.raises(InvalidUnlockKey):
        again(store).load(KEK.key)
    assert loaded(store, b"n" * 32).kek == Kek(b"n" * 32, 8)


def test_unlocking_writes_the_key_in_the_clear_again(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    store.rotate_kek(KEK)
    assert store.rotate_kek(Kek(b"", 9))
    state = loaded(store)
    assert (state.credentials, state.kek.version) == (credentials, 9)
    assert state.raft_keys is not None
    assert state.raft_keys.current == b"d" * 32


def test_an_older_kek_changes_nothing(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.rotate_kek(KEK)
    assert not store.rotate_kek(Kek(b"o" * 32, 6))
    assert not store.rotate_kek(Kek(KEK.key, 12))
    assert loaded(store, KEK.key).kek == KEK


def test_one_version_has_one_kek(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.rotate_kek(KEK)
    with pytest.raises(StoredKeyDamaged, match="same version"):
        store.rotate_kek(Kek(b"o" * 32, KEK.version))


def test_a_certificate_and_kek_saved_together_never_leave_a_clear_key(store: KeyStore) -> None:
    store.save_root(ROOT.bundle_pem)
    store.save(new_credentials(), KEK)
    assert again(store).load() == Locked(ROOT.bundle_pem)


def test_a_certificate_of_another_key_is_refused_before_writing(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    with pytest.raises(InvalidCertificate):
        store.save(Credentials(new_credentials().certificate_pem, credentials.key_pem))
    assert loaded(store).credentials == credentials


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(6))
def test_a_crash_during_a_renewal_leaves_the_old_or_the_new_pair(
    filled: tuple[KeyStore, Credentials], at: int, after: bool
) -> None:
    store, old = filled
    new = new_credentials()
    with pytest.raises(Death):
        KeyStore(store.directory, BadDisk(at, after, DEATH)).save(new)
    committed = at > RENAMES_THE_KEY or (at == RENAMES_THE_KEY and after)
    assert loaded(store).credentials == (new if committed else old)
    store.save(new)
    assert loaded(store).credentials == new


RENAMES_THE_KEY = 4
"""Of the calls of KeyStore.save(): write, rename and sync for the certificate, then for the key."""
CHANGES: dict[str, Callable[[KeyStore, Credentials], object]] = {
    "certificate": lambda store, new: store.save(new),
    "certificate and lock": lambda store, new: store.save(new, KEK),
    "lock": lambda store, new: store.rotate_kek(KEK, RaftKeys(b"d" * 32)),
    "raft keys": lambda store, new: store.save_raft_keys(RaftKeys(b"d" * 32)),
}


def held(store: KeyStore) -> tuple[Credentials, Kek, RaftKeys | None]:
    """What the next start finds."""
    found = again(store).load()
    found = found if isinstance(found, Present) else loaded(store, KEK.key)
    return found.credentials, found.kek, found.raft_keys


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("code", [EIO, ENOSPC])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_after_an_error_at_any_step_the_store_says_what_is_on_disk(
    tmp_path: Path, change: str, after: bool, code: int, times: int
) -> None:
    """A call that succeeds has happened, one that fails has not, and memory and disk never disagree."""
    new = new_credentials()
    for at in range(50):
        directory = tmp_path / str(at)
        old = new_credentials()
        KeyStore(directory).save_root(ROOT.bundle_pem)
        KeyStore(directory).save(old)
        disk = BadDisk(at, after, code, times)
        store = KeyStore(directory, disk)
        store.load()
        before = held(store)
        try:
            CHANGES[change](store, new)
        except OSError:
            assert held(store) == before, f"call {at} said that nothing happened"
        else:
            assert held(store) != before, f"call {at} said that it happened"
        assert held(store)[1:] == (store.kek, store.raft_keys)
        if not disk.struck:
            assert at > 2, "some calls failed"
            return
        disk.heal()
        store.settle()
        assert store.settled
        CHANGES[change](store, new)
        assert held(store)[1:] == (store.kek, store.raft_keys)
        assert loaded(store, store.kek.key).credentials == (new if "certificate" in change else old)
    raise AssertionError("there is no end to it")


def test_a_certificate_that_could_not_be_placed_is_not_overwritten(filled: tuple[KeyStore, Credentials]) -> None:
    """The certificate beside the old one is the only one that fits the key: it is placed before the next comes."""
    store, _ = filled
    second, third = new_credentials(), new_credentials()
    disk = BadDisk(6, after=False, times=1000)
    broken = KeyStore(store.directory, disk)
    broken.save(second)
    assert not broken.settled
    for _ in range(3):
        with pytest.raises(OSError, match="cannot be replaced"):
            broken.save(third)
    assert loaded(store).credentials == second


def test_the_missing_file_is_named(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    for name in ("swarm-node.crt", "swarm-node.key"):
        content = (store.directory / name).read_bytes()
        (store.directory / name).unlink()
        assert again(store).load() == Absent(ROOT.bundle_pem, (name,))
        (store.directory / name).write_bytes(content)
    (store.directory / "swarm-root-ca.crt").unlink()
    assert again(store).load() == Absent(None, ("swarm-root-ca.crt",))


def test_a_leftover_certificate_that_fits_no_key_is_ignored(filled: tuple[KeyStore, Credentials]) -> None:
    store, credentials = filled
    (store.directory / ".swarm-node.crt").write_bytes(new_credentials().certificate_pem)
    assert loaded(store).credentials == credentials


def test_a_key_without_any_certificate_counts_as_absent(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    (store.directory / "swarm-node.crt").unlink()
    assert again(store).load() == Absent(ROOT.bundle_pem, ("swarm-node.crt",))


@pytest.mark.parametrize("content", [b"", b"garbage", ROOT.bundle_pem])
def test_a_damaged_key_file_is_reported(filled: tuple[KeyStore, Credentials], content: bytes) -> None:
    store, _ = filled
    (store.directory / "swarm-node.key").write_bytes(content)
    with pytest.raises(StoredKeyDamaged):
        again(store).load()


def test_a_foreign_certificate_is_reported(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    (store.directory / "swarm-node.crt").write_bytes(new_credentials().certificate_pem)
    with pytest.raises(StoredKeyDamaged, match="tls: private key does not match public key"):
        again(store).load()


@pytest.mark.parametrize("record", ["*", "", "EgA", base64.b64encode(b"\x08\x01\x12\x01x").decode(), "Eg8="])
def test_a_damaged_raft_key_is_reported(filled: tuple[KeyStore, Credentials], record: str) -> None:
    store, _ = filled
    path = store.directory / "swarm-node.key"
    path.write_bytes(path.read_bytes().replace(b"kek-version: 0", f"kek-version: 0\nraft-dek: {record}".encode()))
    with pytest.raises(StoredKeyDamaged):
        again(store).load()


def test_a_kek_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="a KEK has 32 bytes, not 3"):
        Kek(b"abc")


def test_erasing_leaves_nothing(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.erase()
    store.erase()
    assert list(store.directory.iterdir()) == []
    assert store.load() == Absent(None, ("swarm-root-ca.crt", "swarm-node.key", "swarm-node.crt"))


def test_keys_are_not_in_reprs(filled: tuple[KeyStore, Credentials]) -> None:
    store, _ = filled
    store.save_raft_keys(RaftKeys(b"d" * 32))
    text = repr(loaded(store)) + repr(KEK)
    assert "PRIVATE KEY" not in text
    assert "dddd" not in text
    assert "kkkk" not in text


@given(st.binary(min_size=1, max_size=40), st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)))
def test_records_round_trip(key: bytes, kek: bytes) -> None:
    assert keystore._open_record(keystore._seal_record(key, kek), kek) == key


@given(st.binary(max_size=60), st.sampled_from([b"", b"k" * 32]))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_record_is_read_or_reported(record: bytes, kek: bytes) -> None:
    with contextlib.suppress(StoredKeyDamaged, InvalidUnlockKey):
        assert keystore._open_record(base64.b64encode(record).decode(), kek)


def test_a_key_file_of_a_stock_engine_is_read(store: KeyStore) -> None:
    """Stock engines write PBES2 with HMAC-SHA1, 2048 rounds; OpenSSL can be told to do the same."""
    credentials = new_credentials()
    store.save_root(ROOT.bundle_pem)
    store.save(credentials)
    command = [
        "openssl",
        "pkcs8",
        "-topk8",
        "-v2",
        "aes-256-cbc",
        "-v2prf",
        "hmacWithSHA1",
        "-passout",
        "pass:" + "k" * 32,
    ]
    sealed = subprocess.run(command, input=credentials.key_pem, capture_output=True, check=True).stdout
    block = keys.pem_blocks(sealed)[0]
    stock = keys.PemBlock(block.label, block.body, {"kek-version": "3"}).encode()
    (store.directory / "swarm-node.key").write_bytes(stock)
    assert loaded(store, KEK.key) == Present(ROOT.bundle_pem, credentials, Kek(KEK.key, 3), None)
    assert serialization.load_pem_private_key(credentials.key_pem, None) is not None
