"""The decisions of autolock by themselves, on a model of the disk (lock_disk.py)."""

from __future__ import annotations

import copy
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.keystore import Kek, RaftKeys
from certs.tls import Credentials
from swarm import api, defaults
from swarm.api import raftpb
from swarm.errors import FailedPrecondition
from swarm.node.autolock import Autolock, kek_of
from swarm.node.autolock_events import (
    CertificateIssued,
    CertificateSaved,
    ClusterChanged,
    Done,
    Effect,
    Event,
    Failed,
    KeysFound,
    LogReady,
    ManagerDown,
    ManagerUp,
    Operation,
    PrepareLog,
    Refused,
    RenewCertificate,
    Reseal,
    RotateKek,
    SaveCertificate,
    SaveRaftKeys,
)
from swarm.raft.events import Persist
from tests.sim.raft_content import CLEAR
from tests.sim.raft_image import RaftImage
from tests.swarm.node.lock_disk import LockDisk

NOW = 1000.0
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
OLD = b"a data key that was on disk"
CREDENTIALS = Credentials(b"manager", b"")
WORKER = Credentials(b"worker", b"")
KEPT = 4  # entries of the log


def cluster(version: int, key: bytes = b"") -> api.Cluster:
    made = api.Cluster(id="cluster1")
    made.meta.version.index = version
    made.spec.encryption_config.auto_lock_managers = bool(key)
    if key:
        made.unlock_keys.add(subsystem="swarm-manager", key=key)
    return made


def lock(kek: Kek, raft_keys: RaftKeys | None = None, running: bool = True) -> Autolock:
    made = Autolock(Random(1))
    assert made.handle(KeysFound(kek, raft_keys), NOW) == []
    if running:
        made.handle(ManagerUp(), NOW)
    return made


def done(machine: Autolock, kek: Kek, raft_keys: RaftKeys | None) -> list[Effect]:
    return machine.handle(Done(kek, raft_keys), NOW)


def one(effects: list[Effect]) -> Effect:
    assert len(effects) == 1, effects
    return effects[0]


# --- following the cluster -----------------------------------------------------------------------------------------


def test_a_lock_writes_the_log_anew_and_then_asks_for_a_new_certificate() -> None:
    machine = lock(Kek())
    effect = one(machine.handle(ClusterChanged(cluster(5, KEY)), NOW))
    assert isinstance(effect, Reseal)
    assert effect.kek == Kek(KEY, 5)
    assert (len(effect.raft_keys.current), effect.raft_keys.pending, effect.raft_keys.needs_rotation) == (
        32,
        b"",
        False,
    )
    assert done(machine, Kek(KEY, 5), effect.raft_keys) == [RenewCertificate()]
    assert machine.deadline() is None


def test_a_new_unlock_key_and_the_end_of_a_lock_change_only_the_key_file() -> None:
    keys = RaftKeys(OLD)
    machine = lock(Kek(KEY, 5), keys)
    assert machine.handle(ClusterChanged(cluster(6, OTHER_KEY)), NOW) == [RotateKek(Kek(OTHER_KEY, 6), keys)]
    assert done(machine, Kek(OTHER_KEY, 6), keys) == []
    assert machine.handle(ClusterChanged(cluster(7)), NOW) == [RotateKek(Kek(b"", 7), keys)]
    assert done(machine, Kek(b"", 7), keys) == []


def test_an_older_version_and_another_key_of_the_same_version_are_not_followed() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD))
    assert machine.handle(ClusterChanged(cluster(4)), NOW) == []
    assert machine.handle(ClusterChanged(cluster(5, OTHER_KEY)), NOW) == []
    assert machine.handle(ClusterChanged(cluster(6, KEY)), NOW) == [], "the same key needs no new file"


def test_changes_during_an_operation_are_followed_after_it_and_only_the_newest_counts() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD))
    assert machine.handle(ClusterChanged(cluster(6)), NOW) == [RotateKek(Kek(b"", 6), RaftKeys(OLD))]
    assert machine.handle(ClusterChanged(cluster(9, OTHER_KEY)), NOW) == []
    assert machine.handle(ClusterChanged(cluster(8, KEY)), NOW) == []
    effect = one(done(machine, Kek(b"", 6), RaftKeys(OLD)))
    assert isinstance(effect, Reseal)
    assert effect.kek == Kek(OTHER_KEY, 9)
    assert effect.raft_keys.current != OLD


def test_without_a_manager_nothing_is_followed_until_one_runs() -> None:
    machine = lock(Kek(), running=False)
    assert machine.handle(ClusterChanged(cluster(5, KEY)), NOW) == []
    assert isinstance(one(machine.handle(ManagerUp(), NOW)), Reseal)


def test_a_failure_is_told_and_tried_again_later_with_another_data_key() -> None:
    machine = lock(Kek())
    first = one(machine.handle(ClusterChanged(cluster(5, KEY)), NOW))
    assert machine.handle(Failed("no space left"), NOW) == []
    assert machine.trouble.endswith(": no space left")
    assert machine.deadline() == NOW + defaults.DISK_RETRY_S
    assert machine.handle(ClusterChanged(cluster(6, KEY)), NOW + 0.1) == []
    second = one(machine.handle(None, NOW + defaults.DISK_RETRY_S))
    assert isinstance(first, Reseal)
    assert isinstance(second, Reseal)
    assert second.kek == Kek(KEY, 6)
    assert second.raft_keys != first.raft_keys
    assert machine.trouble, "until it has succeeded"
    done(machine, Kek(KEY, 6), second.raft_keys)
    assert (machine.trouble, machine.deadline()) == ("", None)


def test_trouble_ends_with_the_manager_that_had_it() -> None:
    machine = lock(Kek())
    machine.handle(ClusterChanged(cluster(5, KEY)), NOW)
    machine.handle(Failed("no space left"), NOW)
    machine.handle(ManagerDown(), NOW)
    assert (machine.trouble, machine.deadline()) == ("", None)


def test_an_impossible_unlock_key_is_trouble_until_the_cluster_has_another() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD))
    assert machine.handle(ClusterChanged(cluster(6, b"too short")), NOW) == []
    assert machine.trouble.endswith("the cluster's unlock key has 9 bytes")
    machine.handle(ClusterChanged(cluster(7, KEY)), NOW)
    assert machine.trouble == ""


def test_a_key_counts_only_while_autolock_is_on() -> None:
    made = cluster(9, KEY)
    made.spec.encryption_config.auto_lock_managers = False
    assert kek_of(made) == Kek(b"", 9)
    with pytest.raises(FailedPrecondition):
        kek_of(cluster(9, b"short"))


# --- data keys -----------------------------------------------------------------------------------------------------


def test_a_marked_data_key_is_replaced_and_the_next_one_is_on_disk_before_it_is_used() -> None:
    machine = Autolock(Random(1))
    machine.handle(KeysFound(Kek(KEY, 5), RaftKeys(OLD, needs_rotation=True)), NOW)
    saved = one(machine.handle(ManagerUp(), NOW))
    assert isinstance(saved, SaveRaftKeys)
    assert (saved.raft_keys.current, saved.raft_keys.needs_rotation) == (OLD, True)
    resealed = one(done(machine, Kek(KEY, 5), saved.raft_keys))
    assert resealed == Reseal(RaftKeys(saved.raft_keys.pending))
    assert done(machine, Kek(KEY, 5), RaftKeys(saved.raft_keys.pending)) == []


def test_a_pending_key_of_an_earlier_run_is_used_and_then_replaced_too() -> None:
    machine = Autolock(Random(1))
    machine.handle(KeysFound(Kek(KEY, 5), RaftKeys(OLD, b"pending", needs_rotation=True)), NOW)
    first = Reseal(RaftKeys(b"pending", needs_rotation=True))
    assert machine.handle(ManagerUp(), NOW) == [first]
    saved = one(done(machine, Kek(KEY, 5), first.raft_keys))
    assert isinstance(saved, SaveRaftKeys)
    assert (saved.raft_keys.current, len(saved.raft_keys.pending)) == (b"pending", 32)


def test_a_pending_key_that_an_unlocked_key_file_showed_is_replaced_too() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD, needs_rotation=True), running=False)
    saved = one(machine.handle(ManagerUp(), NOW))
    assert isinstance(saved, SaveRaftKeys)
    done(machine, Kek(KEY, 5), saved.raft_keys)
    machine.handle(ManagerDown(), NOW)
    machine.handle(Failed("the manager does not run"), NOW)
    machine.handle(CertificateIssued(CREDENTIALS, Kek(b"", 6), manager=True), NOW)
    done(machine, Kek(b"", 6), saved.raft_keys)
    machine.handle(CertificateIssued(CREDENTIALS, Kek(KEY, 7), manager=True), NOW)
    done(machine, Kek(KEY, 7), saved.raft_keys)
    assert machine.handle(ManagerUp(), NOW) == [Reseal(RaftKeys(saved.raft_keys.pending, needs_rotation=True))]


@pytest.mark.parametrize("log_exists", [False, True])
def test_a_locked_manager_has_a_data_key_before_it_opens_its_log(log_exists: bool) -> None:
    machine = lock(Kek(KEY, 5), running=False)
    effect = one(machine.handle(PrepareLog(log_exists), NOW))
    assert isinstance(effect, SaveRaftKeys)
    assert effect.raft_keys.needs_rotation is log_exists, "what is in the log already is in the clear"
    assert done(machine, Kek(KEY, 5), effect.raft_keys) == [LogReady(effect.raft_keys)]


def test_the_log_of_a_manager_that_is_not_locked_is_opened_with_what_there_is() -> None:
    assert lock(Kek(), running=False).handle(PrepareLog(True), NOW) == [LogReady(None)]
    assert lock(Kek(b"", 6), RaftKeys(OLD), running=False).handle(PrepareLog(True), NOW) == [LogReady(RaftKeys(OLD))]


def test_a_log_is_not_opened_when_its_data_key_cannot_be_saved() -> None:
    machine = lock(Kek(KEY, 5), running=False)
    machine.handle(PrepareLog(False), NOW)
    assert machine.handle(Failed("no space left"), NOW) == [Refused(PrepareLog(False), "no space left")]
    assert (machine.trouble, machine.deadline()) == ("", None), "who asked tries again"
    assert isinstance(one(machine.handle(PrepareLog(False), NOW)), SaveRaftKeys)


# --- certificates --------------------------------------------------------------------------------------------------


def test_the_first_certificate_makes_the_key_file_with_the_kek_that_came_with_it() -> None:
    machine = Autolock(Random(1))
    request = CertificateIssued(CREDENTIALS, Kek(KEY, 0), manager=True)
    assert machine.handle(request, NOW) == [SaveCertificate(CREDENTIALS, Kek(KEY, 0), None)]
    assert done(machine, Kek(KEY, 0), None) == [CertificateSaved(request)]


def test_a_new_manager_certificate_is_saved_under_the_kek_that_came_with_it_in_one_step() -> None:
    machine = lock(Kek(), running=False)
    request = CertificateIssued(CREDENTIALS, Kek(KEY, 5), manager=True)
    assert machine.handle(request, NOW) == [SaveCertificate(CREDENTIALS, Kek(KEY, 5), None)]
    assert done(machine, Kek(KEY, 5), None) == [CertificateSaved(request)]


def test_a_certificate_that_locks_marks_the_data_key_that_was_in_the_clear() -> None:
    machine = lock(Kek(b"", 4), RaftKeys(OLD), running=False)
    marked = RaftKeys(OLD, needs_rotation=True)
    request = CertificateIssued(CREDENTIALS, Kek(KEY, 5), manager=True)
    assert machine.handle(request, NOW) == [SaveCertificate(CREDENTIALS, Kek(KEY, 5), marked)]


def test_a_certificate_of_a_running_manager_waits_until_the_log_is_sealed() -> None:
    machine = lock(Kek())
    request = CertificateIssued(CREDENTIALS, Kek(KEY, 5), manager=True)
    effect = one(machine.handle(request, NOW))
    assert isinstance(effect, Reseal)
    renew, saved = done(machine, Kek(KEY, 5), effect.raft_keys)
    assert renew == RenewCertificate()
    assert saved == SaveCertificate(CREDENTIALS, Kek(KEY, 5), effect.raft_keys)
    assert done(machine, Kek(KEY, 5), effect.raft_keys) == [CertificateSaved(request)]


def test_an_older_kek_of_a_certificate_is_not_taken_back() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD))
    request = CertificateIssued(CREDENTIALS, Kek(b"", 4), manager=True)
    assert machine.handle(request, NOW) == [SaveCertificate(CREDENTIALS, Kek(KEY, 5), RaftKeys(OLD))]


def test_a_certificate_that_cannot_be_saved_is_refused_and_does_not_wait_for_a_retry() -> None:
    machine = lock(Kek())
    request = CertificateIssued(CREDENTIALS, Kek(KEY, 5), manager=True)
    machine.handle(request, NOW)
    assert machine.handle(Failed("no space left"), NOW) == [Refused(request, "no space left")]
    assert machine.trouble, "the cluster wants the lock with or without a certificate"
    assert isinstance(one(machine.handle(request, NOW)), Reseal)


def test_a_request_that_comes_during_another_operation_does_not_share_its_failure() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD))
    machine.handle(ClusterChanged(cluster(6)), NOW)
    request = CertificateIssued(CREDENTIALS, Kek(KEY, 5), manager=True)
    assert machine.handle(request, NOW) == []
    assert machine.handle(Failed("no space left"), NOW) == [SaveCertificate(CREDENTIALS, Kek(b"", 6), RaftKeys(OLD))]


def test_a_worker_has_no_lock_whatever_the_cluster_says_and_whether_its_manager_still_runs() -> None:
    machine = lock(Kek(KEY, 5), RaftKeys(OLD))
    demotion = CertificateIssued(WORKER, Kek(), manager=False)
    assert machine.handle(demotion, NOW) == [SaveCertificate(WORKER, Kek(), None)]
    assert done(machine, Kek(), None) == [CertificateSaved(demotion)]
    assert machine.handle(ClusterChanged(cluster(7, KEY)), NOW) == []
    assert machine.handle(ManagerDown(), NOW) == []
    assert machine.handle(ManagerUp(), NOW) == []
    assert machine.deadline() is None
    machine.handle(ManagerDown(), NOW)
    promotion = CertificateIssued(CREDENTIALS, Kek(KEY, 7), manager=True)
    assert machine.handle(promotion, NOW) == [SaveCertificate(CREDENTIALS, Kek(KEY, 7), None)]


# --- any order -----------------------------------------------------------------------------------------------------


class Story:
    """One node whose disk is kept through crashes, and a cluster that changes its mind."""

    def __init__(self, key: bytes) -> None:
        self.history = [Kek(key, 0)]
        self.disk = LockDisk()
        self.rng = Random(7)
        self.now = NOW
        self.machine: Autolock | None = None
        self.operation: Operation | None = None
        self.asking = False
        self.log_open = self.manager_runs = False
        self.index = 0
        self.shown: set[bytes] = set()  # data keys that were on disk in the clear
        self.machine = Autolock(self.rng)
        self.ask(CertificateIssued(CREDENTIALS, self.history[0], manager=True))
        self.finish()

    # the node

    @property
    def is_manager(self) -> bool:
        return self.disk.certificate_pem == CREDENTIALS.certificate_pem

    def tell(self, event: Event | None) -> None:
        assert self.machine is not None
        for effect in self.machine.handle(event, self.now):
            self.take(effect)

    def take(self, effect: Effect) -> None:
        match effect:
            case RotateKek() | Reseal() | SaveRaftKeys() | SaveCertificate():
                assert self.operation is None, "two operations at a time"
                self.operation = effect
            case LogReady(raft_keys):
                self.asking = False
                self.log_open = True
                self.disk.raft.open(raft_keys)
                self.disk.raft.load()
            case CertificateSaved(request):
                self.asking = False
                if not request.manager:
                    self.manager_down()
                    self.forget_log()
            case Refused():
                self.asking = False
            case RenewCertificate():
                pass

    def ask(self, request: PrepareLog | CertificateIssued) -> None:
        self.asking = True
        self.tell(request)

    def forget_log(self) -> None:
        self.disk.raft, self.index = RaftImage(), 0

    def start(self) -> None:
        self.machine = Autolock(self.rng)
        self.disk.recover()
        found = self.disk.load(self.disk.key_file.kek.key if self.disk.key_file else b"")
        if not self.is_manager:
            self.forget_log()
        self.tell(KeysFound(found.kek, found.raft_keys))

    def kill(self, steps: int) -> None:
        if self.operation is not None:
            self.disk.perform_until_killed(self.operation, steps)
        self.machine = self.operation = None
        self.asking = self.log_open = self.manager_runs = False

    def finish(self) -> None:
        while self.operation is not None:
            self.succeed()

    def succeed(self) -> None:
        if self.operation is not None:
            report = self.disk.perform(self.operation)
            self.operation = None
            self.tell(report)

    def fail(self) -> None:
        if self.operation is not None:
            report = self.disk.fail(self.operation)
            self.operation = None
            self.tell(report)

    def open_log(self) -> None:
        if self.is_manager and not self.log_open and not self.asking:
            self.ask(PrepareLog(log_exists=self.index > 0))

    def manager_up(self) -> None:
        if self.log_open and not self.manager_runs:
            self.manager_runs = True
            self.tell(ManagerUp())

    def manager_down(self) -> None:
        if self.log_open and not isinstance(self.operation, Reseal):  # closing waits for the log's thread
            self.log_open = self.manager_runs = False
            self.tell(ManagerDown())

    def write(self) -> None:
        if self.log_open:
            self.index += 1
            entry = raftpb.Entry(Index=self.index, Term=1)
            self.disk.raft.write(Persist(1, None, (entry,), compact_to=max(0, self.index - KEPT)))

    def certificate(self, manager: bool, kek: Kek) -> None:
        if not self.asking:
            self.ask(CertificateIssued(CREDENTIALS if manager else WORKER, kek if manager else Kek(), manager))

    # the story

    def change(self, choice: int) -> None:
        key = self.history[-1].key
        if choice == 1:
            key = b"" if key else self.rng.randbytes(32)
        elif choice == 2 and key:
            key = self.rng.randbytes(32)
        self.history.append(Kek(key, len(self.history)))

    def hear(self, choice: int) -> None:
        """The manager's store shows the newest cluster, or while it catches up an older one."""
        seen = self.history[-1] if choice else self.rng.choice(self.history)
        self.tell(ClusterChanged(cluster(seen.version, seen.key)))

    def switch(self, choice: int) -> None:
        """The cluster changes and the node hears of it at once."""
        self.change(choice or 1)
        self.hear(1)

    def run_manager(self, choice: int) -> None:
        """As far as it comes."""
        self.open_log()
        for _ in range(choice):
            self.succeed()
        self.manager_up()
        self.write()

    def wait(self) -> None:
        self.now += 0.6
        self.tell(None)

    def step(self, what: str, choice: int) -> None:
        """choice: 0 to 3; each kind of step takes it as it likes."""
        if self.machine is None:
            self.start()
        match what:
            case "change":
                self.change(choice)
            case "hear":
                self.hear(choice)
            case "switch":
                self.switch(choice)
            case "certificate":
                self.certificate(True, self.history[-1] if choice else self.rng.choice(self.history))
            case "demotion":
                self.certificate(False, Kek())
            case "kill":
                self.kill(choice)
            case "wait":
                self.wait()
            case "succeed":
                self.succeed()
            case "fail":
                self.fail()
            case "run manager":
                self.run_manager(choice)
            case "stop manager":
                self.manager_down()
            case "write":
                self.write()

    def check(self) -> None:
        """What must hold whenever the power may go: the disk alone is enough, and what is sealed stays hidden."""
        disk = copy.copy(self.disk)
        disk.raft = disk.raft.copy()
        disk.recover()
        key_file = disk.key_file
        assert key_file is not None
        if not self.is_manager:
            assert (key_file.kek, key_file.raft_keys) == (Kek(), None)
            return
        assert key_file.kek in (*self.history, Kek()), "Kek() is what a worker had that became a manager"
        keys = key_file.raft_keys
        if not key_file.locked and keys is not None:
            self.shown |= {keys.current, keys.pending} - {CLEAR}
        disk.raft.open(keys)
        assert [entry.Index for entry in disk.raft.load().entries] == list(
            range(max(0, self.index - KEPT) + 1, self.index + 1)
        )
        if key_file.locked and keys is not None and not keys.needs_rotation:
            assert not {keys.current, keys.pending} & self.shown, "it was in the clear"
            assert disk.raft.data_keys() <= {keys.current, keys.pending} - {CLEAR}

    def settle(self) -> None:
        """Faults end; the node is a manager, and knows the cluster."""
        if self.machine is None:
            self.start()
        self.finish()
        if not self.is_manager:
            self.certificate(True, self.history[-1])
            self.finish()
        self.open_log()
        self.finish()
        self.manager_up()
        self.write()
        self.tell(ClusterChanged(cluster(self.history[-1].version, self.history[-1].key)))
        self.finish()
        self.now += defaults.DISK_RETRY_S
        self.tell(None)
        self.finish()

    def end(self) -> None:
        """After everything is settled the disk is as the cluster wants it, and nothing is left to do."""
        self.settle()
        self.check()
        assert self.machine is not None
        assert (self.machine.trouble, self.machine.deadline()) == ("", None)
        key_file = self.disk.key_file
        assert key_file is not None
        assert key_file.kek.key == self.history[-1].key
        if key_file.locked:
            keys = key_file.raft_keys
            assert keys is not None
            assert (keys.pending, keys.needs_rotation) == (b"", False)
            assert self.disk.raft.data_keys() == {keys.current}


STEPS = (
    *("change", "hear", "switch", "switch", "certificate", "certificate", "demotion", "kill", "wait", "write"),
    *("succeed", "succeed", "succeed", "fail", "run manager", "run manager", "run manager", "stop manager"),
)


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), min_size=30, max_size=90))
def test_whatever_happens_the_disk_ends_as_the_newest_cluster_says_and_hides_what_was_once_sealed(
    locked: bool, steps: list[tuple[str, int]]
) -> None:
    story = Story(KEY if locked else b"")
    for what, choice in steps:
        story.step(what, choice)
        story.check()
    story.end()


@pytest.mark.parametrize("seed", range(10))
def test_a_node_with_a_long_life_ends_as_the_newest_cluster_says_too(seed: int) -> None:
    rng = Random(seed)
    story = Story(KEY if seed % 2 else b"")
    for _ in range(2000):
        story.step(rng.choice(STEPS), rng.randrange(4))
        story.check()
    story.end()
