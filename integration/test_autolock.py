"""Autolock with the real CLI: what is on the managers' disks, and what a locked manager answers."""

from __future__ import annotations

import base64
import operator
import random
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from certs.keystore import KeyStore
from integration import calls
from integration.lab import Host, Lab
from integration.waiting import until
from integration.writers import Load, Record, missing

SECRET = "the-value-of-this-secret-is-on-no-disk"
LOCKED = (
    'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'
)
KEY_FILE = "swarm/swarm/certificates/swarm-node.key"
CLEAR_KEYS = ("BEGIN EC PRIVATE KEY", "BEGIN PRIVATE KEY")
WRONG_KEY = "SWMKEY-1-" + "A" * 43


def key_label(host: Host) -> str:
    """The first line of the manager's key file."""
    return (host.directory / KEY_FILE).read_text().splitlines()[0].strip("-")


def sealed(host: Host) -> bool:
    return key_label(host) == "BEGIN ENCRYPTED PRIVATE KEY"


def all_sealed(hosts: Iterable[Host], wanted: bool = True) -> None:
    until(lambda: [sealed(host) for host in hosts], lambda seen: set(seen) == {wanted}, what=f"sealed: {wanted}")


def shown_on_disk(host: Host, *texts: str) -> list[str]:
    """Which of the texts, also as bytes behind their base64, are in a file of the daemon or in its log."""
    wanted = {text: [text.encode()] for text in texts}
    for text in texts:
        if text.startswith("SWMKEY-1-"):
            wanted[text].append(base64.b64decode(text.removeprefix("SWMKEY-1-") + "="))
    files = [host.directory / "daemon.log"]
    files += [file for part in ("swarm", "run") for file in (host.directory / part).rglob("*") if file.is_file()]
    return [f"{text} in {file}" for file in files for text in texts if any(b in _content(file) for b in wanted[text])]


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def unlock_key(host: Host, *options: str) -> str:
    return host.docker("swarm", "unlock-key", "-q", *options).strip()


def unlock(host: Host, key: str) -> str:
    """What the CLI answers."""
    done = host.docker_run("swarm", "unlock", stdin=f"{key}\n")
    return done.stderr.strip() if done.returncode else ""


def restart(lab: Lab, host: Host) -> str:
    """Kills the daemon and starts it; its state."""
    lab.kill(host)
    lab.start(host)
    return state(host)


def state(host: Host) -> str:
    return str(calls.swarm_info(host)["LocalNodeState"])


def active(host: Host) -> None:
    """Until the node takes part and sees the secret again."""

    def names() -> list[str]:
        return host.docker_run("secret", "ls", "--format", "{{.Name}}").stdout.split()

    until(names, lambda seen: "word" in seen, what="the secret")


def make_secret(host: Host, name: str = "word", value: str = SECRET) -> None:
    done = host.docker_run("secret", "create", name, "-", stdin=value)
    assert done.returncode == 0, done.stderr


def certificate(host: Host) -> bytes:
    return (host.directory / KEY_FILE).with_name("swarm-node.crt").read_bytes()


def test_one_manager_from_its_first_moment_to_the_end_of_the_lock(lab: Lab) -> None:
    host = lab.hosts[0]
    printed = host.docker("swarm", "init", "--autolock", "--advertise-addr", host.ip)
    key = unlock_key(host)
    assert key in printed
    assert key in host.docker("swarm", "unlock-key")
    assert sealed(host)
    make_secret(host)
    assert shown_on_disk(host, SECRET, key, *CLEAR_KEYS) == []
    assert _limit_of_core_dumps(host) == "0"
    assert unlock(host, key) == "Error: swarm is not locked"
    status, body = calls.call(host, "POST", "/swarm/unlock", {"UnlockKey": key})
    assert (status, body) == (409, {"message": "swarm is not locked"})

    assert restart(lab, host) == "locked"
    _answers_only_unlock_and_leave(host)
    assert unlock(host, WRONG_KEY).endswith("swarm could not be unlocked: invalid key provided")
    assert calls.call(host, "POST", "/swarm/unlock", {"UnlockKey": WRONG_KEY})[0] == 401
    for text in ("", "SWMKEY-1-x", key[:-1], key.removeprefix("SWMKEY-1-")):
        assert calls.call(host, "POST", "/swarm/unlock", {"UnlockKey": text}) == (
            400,
            {"message": "invalid key string"},
        )
    assert state(host) == "locked"
    assert unlock(host, key) == ""
    active(host)
    assert state(host) == "active"

    newer = unlock_key(host, "--rotate")
    assert newer not in ("", key)
    until(lambda: (host.directory / KEY_FILE).read_text(), lambda text: "kek-version: 0" not in text, what="new key")
    assert restart(lab, host) == "locked"
    assert unlock(host, key).endswith("invalid key provided")
    assert unlock(host, newer) == ""
    active(host)
    assert shown_on_disk(host, SECRET, key, newer, *CLEAR_KEYS) == []

    host.docker("swarm", "update", "--autolock=false")
    all_sealed([host], wanted=False)
    assert "no unlock key is set" in host.docker_run("swarm", "unlock-key").stderr
    assert restart(lab, host) != "locked"
    active(host)


def _limit_of_core_dumps(host: Host) -> str:
    limits = Path(f"/proc/{host.pid}/limits").read_text().splitlines()
    return next(line.split()[4] for line in limits if line.startswith("Max core file size"))


def _answers_only_unlock_and_leave(host: Host) -> None:
    section = calls.swarm_info(host)
    assert section == {
        "NodeID": "",
        "NodeAddr": host.ip,
        "LocalNodeState": "locked",
        "ControlAvailable": False,
        "Error": LOCKED,
        "RemoteManagers": None,
    }
    for method, path, body in (
        ("GET", "/nodes", None),
        ("GET", "/swarm", None),
        ("GET", "/swarm/unlockkey", None),
        ("GET", "/secrets", None),
        ("GET", "/tasks", None),
        ("POST", "/services/create", {"Name": "a", "TaskTemplate": {"ContainerSpec": {"Image": "busybox"}}}),
    ):
        assert calls.call(host, method, path, body) == (503, {"message": LOCKED}), path
    assert "already part of a swarm" in host.docker_run("swarm", "init").stderr
    assert "Please unlock it first or use `--force`" in host.docker_run("swarm", "leave").stderr
    assert state(host) == "locked"


def test_a_locked_manager_may_leave_by_force_and_begin_again(lab: Lab) -> None:
    host = lab.hosts[0]
    host.docker("swarm", "init", "--autolock", "--advertise-addr", host.ip)
    assert restart(lab, host) == "locked"
    host.docker("swarm", "leave", "--force")
    assert state(host) == "inactive"
    assert not (host.directory / KEY_FILE).exists()
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    assert not sealed(host)


def test_what_was_in_the_clear_is_on_no_managers_disk_once_the_swarm_is_locked(lab: Lab) -> None:
    lab.swarm(2)
    first, second, third = lab.hosts
    make_secret(first)
    until(lambda: shown_on_disk(second, SECRET), what="the secret in the clear")
    assert shown_on_disk(first, SECRET)
    certificates = [certificate(first), certificate(second)]
    printed = first.docker("swarm", "update", "--autolock=true")
    key = unlock_key(second)
    assert key in printed
    all_sealed([first, second])
    for host, old in zip((first, second), certificates, strict=True):
        until(partial(certificate, host), partial(operator.ne, old), what="a new certificate and key")
        assert sealed(host)
        until(partial(shown_on_disk, host, SECRET, key), operator.not_, what="nothing on the disk")
    assert not sealed(third), "workers are not locked"

    third.docker("swarm", "leave")
    token = first.docker("swarm", "join-token", "-q", "manager").strip()
    third.docker("swarm", "join", "--token", token, "--advertise-addr", third.ip, f"{first.ip}:2377")
    assert sealed(third)
    active(third)
    assert shown_on_disk(third, SECRET, key) == []
    assert restart(lab, third) == "locked"

    # a manager that was away opens with the key of its day, then takes the new one
    newer = unlock_key(first, "--rotate")
    assert unlock(third, newer).endswith("invalid key provided")
    assert unlock(third, key) == ""
    active(third)
    version = _kek_version(first)
    until(lambda: _kek_version(third), lambda seen: seen == version, what="the new key on the third manager")

    for host in lab.hosts:
        assert restart(lab, host) == "locked"
    for host in lab.hosts:
        assert unlock(host, newer) == ""
    for host in lab.hosts:
        active(host)
        assert shown_on_disk(host, SECRET, key, newer) == []
    first.docker("swarm", "update", "--autolock=false")
    all_sealed(lab.hosts, wanted=False)


def _kek_version(host: Host) -> str:
    lines = (host.directory / KEY_FILE).read_text().splitlines()
    return next(line for line in lines if line.startswith("kek-version"))


def test_kills_while_the_lock_goes_on_and_off_lose_nothing(lab: Lab) -> None:
    host, rng = lab.hosts[0], random.Random(1)
    host.docker("swarm", "init", "--advertise-addr", host.ip)
    make_secret(host)
    known: dict[str, None] = {}
    for turn in range(8):
        make_secret(host, f"extra{turn}", f"{SECRET}-{turn}")
        wanted = turn % 2 == 0
        host.docker("swarm", "update", f"--autolock={str(wanted).lower()}")
        if wanted:
            known[unlock_key(host)] = None
        time.sleep(rng.uniform(0, 0.05))  # anywhere in what follows the answer
        if restart(lab, host) == "locked":
            assert "" in [unlock(host, key) for key in reversed(known)]
        active(host)
        assert len(host.docker("secret", "ls", "-q").split()) == turn + 2
        all_sealed([host], wanted)
        if wanted:
            until(lambda: shown_on_disk(host, SECRET), lambda seen: not seen, what="nothing on the disk")


# --- three managers under load -------------------------------------------------------------------------------------


def _data_key(host: Host, scratch: Path) -> bytes:
    """The key of an unlocked manager's log, as its key file has it; empty before the first lock."""
    copy = scratch / f"{host.name}-{time.monotonic_ns()}"
    shutil.copytree((host.directory / KEY_FILE).parent, copy)
    store = KeyStore(copy)
    store.load()
    return store.raft_keys.current if store.raft_keys is not None else b""


def _goes_on(record: Record, host: Host) -> None:
    """The manager takes writes from now on."""
    before = record.writes_through(host)
    until(partial(record.writes_through, host), lambda count: count > before + 3, what=f"writes through {host.name}")


def _one_kek(hosts: list[Host], besides: str) -> str:
    """Until all key files have one and the same version of the unlock key, and not that."""
    seen = until(
        lambda: {_kek_version(host) for host in hosts},
        lambda versions: len(versions) == 1 and besides not in versions,
        what="one unlock key on all managers",
    )
    return seen.pop()


def test_each_of_three_managers_is_locked_and_unlocked_under_load_and_no_write_is_lost(
    lab: Lab, tmp_path: Path
) -> None:
    lab.swarm(3)
    hosts = lab.hosts
    make_secret(hosts[0])
    tokens = [hosts[0].docker("swarm", "join-token", "-q", role).strip() for role in ("worker", "manager")]
    open_book = (SECRET, *tokens, *CLEAR_KEYS[:1])
    for host in hosts:
        until(partial(shown_on_disk, host, *open_book), lambda seen: len(seen) >= len(open_book), what="the open log")
    with Load(hosts) as record:
        hosts[1].docker("swarm", "update", "--autolock=true")
        keys = [unlock_key(hosts[2])]
        all_sealed(hosts)
        version = _one_kek(hosts, "")
        for number, host in enumerate(hosts):
            hidden = (SECRET, *tokens, *keys, *CLEAR_KEYS)
            until(partial(shown_on_disk, host, *hidden), operator.not_, what="nothing on the disk")
            (lab.stop if number else lab.kill)(host)
            lab.start(host)
            assert state(host) == "locked"
            assert shown_on_disk(host, *hidden) == []
            for rest in hosts:
                if rest is not host:
                    _goes_on(record, rest)
            assert unlock(host, WRONG_KEY).endswith("invalid key provided")
            assert unlock(host, keys[-1]) == ""
            _goes_on(record, host)
            keys.append(unlock_key(host, "--rotate"))
            version = _one_kek(hosts, version)
        assert len(set(keys)) == 4
        hosts[0].docker("swarm", "update", "--autolock=false")
        all_sealed(hosts, wanted=False)
        data_keys = [_data_key(host, tmp_path) for host in hosts]
        hosts[0].docker("swarm", "update", "--autolock=true")
        all_sealed(hosts)
        assert unlock_key(hosts[0]) not in keys
        hosts[0].docker("swarm", "update", "--autolock=false")
        all_sealed(hosts, wanted=False)
        data_keys += [_data_key(host, tmp_path) for host in hosts]
        for host in hosts:
            _goes_on(record, host)
    assert [len(key) for key in data_keys] == [32] * 6
    assert len(set(data_keys)) == 6, "every manager has a data key of its own for every time that it is locked"
    assert not record.hung
    assert not record.stale
    for host in hosts:
        assert missing(host, record) == []


def test_a_new_cluster_is_forced_only_by_a_manager_that_is_unlocked_and_stays_locked(lab: Lab) -> None:
    first, second = lab.hosts[:2]
    first.docker("swarm", "init", "--autolock", "--advertise-addr", first.ip)
    token = first.docker("swarm", "join-token", "-q", "manager").strip()
    second.docker("swarm", "join", "--token", token, "--advertise-addr", second.ip, f"{first.ip}:2377")
    make_secret(first)
    key = unlock_key(first)
    before = calls.swarm_info(first)["Cluster"]["ID"]
    lab.kill(second)
    assert restart(lab, first) == "locked"
    forced = ("swarm", "init", "--force-new-cluster", "--advertise-addr", first.ip)
    sealed_files = {file: file.read_bytes() for file in _swarm_files(first)}
    assert LOCKED in first.docker_run(*forced).stderr
    assert state(first) == "locked"
    assert {file: file.read_bytes() for file in _swarm_files(first)} == sealed_files
    assert unlock(first, key) == ""
    first.docker(*forced)
    active(first)
    assert calls.swarm_info(first)["Cluster"]["ID"] == before
    assert unlock_key(first) == key
    assert sealed(first)
    assert shown_on_disk(first, SECRET, key, *CLEAR_KEYS) == []
    assert restart(lab, first) == "locked"
    assert unlock(first, key) == ""
    active(first)


def _swarm_files(host: Host) -> list[Path]:
    return [file for file in (host.directory / "swarm" / "swarm").rglob("*") if file.is_file()]
