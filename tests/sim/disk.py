"""What survives on one node: its small files, the log of Raft, the journal of its tasks.

Who it is and what it knows are kept by production's key store and state file, on simulated files (files.py). Key file
and log change together as with swarm/io/disk/replaced_file.py: the rewritten log waits beside the old one, the
replacement of the key file is the commit, and then the rewritten log takes the old one's place (raft_image.py). The
journal survives the death of the process, but with the machine its newest records may go. Everything is kept as bytes,
so that a restart reads what was written, not yesterday's objects.
"""

from __future__ import annotations

import errno
from collections import deque
from pathlib import Path
from random import Random

from certs.errors import CertsError
from certs.keystore import CERTIFICATE_FILE, KEY_FILE, ROOT_FILE, KeyStore, RaftKeys
from swarm.io.node.state_file import StateFile
from swarm.node.state import NodeState
from tests.sim.files import Outcome, SimFiles, Trouble
from tests.sim.raft_content import Write
from tests.sim.raft_image import RaftImage

JOURNAL_UNSYNCED_MAX = 20


class Disk:
    """One node's disk, in a directory that is not there yet. The file of its state makes a machine a node."""

    def __init__(self, directory: Path) -> None:
        self.files = SimFiles(directory)
        self.raft = RaftImage()
        self.log_trouble: Trouble | None = None
        self.journal: dict[str, bytes] = {}
        self._directory = directory
        self._certificates = directory / "certificates"
        self._undo: deque[dict[str, bytes | None]] = deque()

    # --- as a process uses it --------------------------------------------------------------------------------------

    def state_file(self) -> StateFile:
        """For a process that starts."""
        return StateFile(self._directory, self.files)

    def key_store(self) -> KeyStore:
        """For a process that starts."""
        return KeyStore(self._certificates, self.files)

    def write_log(self, write: Write) -> str:
        """One transaction. Returns why it failed, if it did."""
        if self.files.full:
            return "disk full"
        try:
            self.raft.settle()
        except (OSError, CertsError) as error:
            return str(error)
        outcome = self.log_trouble.strike() if self.log_trouble is not None else Outcome.DONE
        if outcome is Outcome.DONE:
            self.raft.write(write)
            return ""
        if outcome is Outcome.DONE_AND_FAILED:
            self.raft.fail_to_synchronise(write)
        return "disk I/O error"

    def write_beside(self, raft_keys: RaftKeys) -> None:
        """The log is written anew, sealed by these keys. Raises OSError, RecordLocked."""
        if self.files.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.raft.prepare(raft_keys)

    def forget_log(self) -> None:
        """Delete Raft's log."""
        self.raft = RaftImage()

    def erase(self) -> None:
        """Delete log and journal."""
        self.raft, self.journal = RaftImage(), {}
        self._undo.clear()

    # --- as others look at it --------------------------------------------------------------------------------------

    @property
    def saved(self) -> bool:
        """Whether this machine is a node, or will be: an init or join was acknowledged, or a join is under way."""
        found = self.state_file().find()
        joins = found.state is not None and (found.state.pending is None or bool(found.state.pending.token))
        return (joins or found.error is not None) and not found.leaving

    @property
    def state(self) -> NodeState | None:
        """What the file says; None without a file that can be read."""
        return self.state_file().find().state

    @property
    def raft_id(self) -> int:
        """Whose log must be there; 0: none is expected."""
        state = self.state
        return state.raft_id if state is not None else 0

    @property
    def certificate_pem(self) -> bytes:
        """Empty without one."""
        return self._read(CERTIFICATE_FILE)

    @property
    def root_pem(self) -> bytes:
        """Empty without one."""
        return self._read(ROOT_FILE)

    @property
    def key_file(self) -> bytes:
        """Empty without one."""
        return self._read(KEY_FILE)

    def _read(self, name: str) -> bytes:
        path = self._certificates / name
        return path.read_bytes() if path.exists() else b""

    def put_certificate(self, certificate_pem: bytes) -> None:
        """Replace the certificate and nothing else."""
        (self._certificates / CERTIFICATE_FILE).write_bytes(certificate_pem)

    def set_managers(self, managers: tuple[tuple[str, str], ...]) -> None:
        """An operator writes other managers into the file."""
        state = self.state
        assert state is not None
        self.files.start()  # nothing that was in store for the last process happens to who does this
        self.state_file().save(state.with_managers(managers))

    # --- the journal -----------------------------------------------------------------------------------------------

    def write_journal(self, puts: dict[str, bytes], drops: tuple[str, ...]) -> None:
        """One transaction of the journal."""
        before = {task_id: self.journal.get(task_id) for task_id in (*drops, *puts)}
        for task_id in drops:
            self.journal.pop(task_id, None)
        self.journal.update(puts)
        self._undo.append(before)
        if len(self._undo) > JOURNAL_UNSYNCED_MAX:
            self._undo.popleft()

    def synced(self) -> None:
        """The journal's file was checkpointed."""
        self._undo.clear()

    # --- what nature does ------------------------------------------------------------------------------------------

    def lose_power(self, rng: Random) -> None:
        """What was not synchronised may never have reached the platter: names, contents, the newest of the journal."""
        self.files.lose_power(rng)
        self.raft.lose_power(rng)
        for _ in range(rng.randint(0, len(self._undo))):
            for task_id, record in self._undo.pop().items():
                if record is None:
                    self.journal.pop(task_id, None)
                else:
                    self.journal[task_id] = record
        self._undo.clear()
