"""Load with a memory: writers and readers on several managers, and a checker over what was acknowledged.

Writers create configs, each with a name of its own, and move one shared config from version to version; readers look
at the shared one. Afterwards nothing acknowledged may be missing, and what anybody saw of the shared config may never
be older than what had been seen or acknowledged before the question was asked.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from integration import calls
from integration.lab import Host

PATIENCE_S = 30.0
SHARED = "shared"
_PAUSE_S = 0.02


@dataclass
class Outcome:
    """One call: when it began, how long it took, its status (0: no answer)."""

    host: str
    what: str
    began: float
    took_s: float
    status: int
    text: str = ""


@dataclass
class Record:
    """What happened; appended to by all threads."""

    outcomes: list[Outcome] = field(default_factory=list)
    acknowledged: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    newest: int = 0

    @property
    def hung(self) -> list[Outcome]:
        """Calls that were neither answered nor refused while anybody would have waited."""
        return [outcome for outcome in self.outcomes if outcome.took_s >= PATIENCE_S]

    def writes_through(self, host: Host) -> int:
        """Acknowledged writes of one manager."""
        return sum(o.status in (200, 201) and o.host == host.name and o.what != "read" for o in self.outcomes)


class Load:
    """``with Load(managers) as record: ...``; calls go to all managers in turn, whether they run or not."""

    def __init__(self, managers: list[Host], writers: int = 3, readers: int = 2) -> None:
        self.record = Record()
        self._managers = managers
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._numbers = itertools.count(1)
        jobs = [self._create] * writers + [self._move] + [self._read] * readers
        self._threads = [
            threading.Thread(target=self._run, args=(job, seed), daemon=True) for seed, job in enumerate(jobs)
        ]

    def __enter__(self) -> Record:
        shared = {"Name": SHARED, "Data": b64encode(b"0").decode(), "Labels": {}}
        status, body = calls.call(self._managers[0], "POST", "/configs/create", shared)
        assert status == 201, body
        for thread in self._threads:
            thread.start()
        return self.record

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a call hangs"

    def _run(self, job: Any, seed: int) -> None:
        rng = random.Random(seed)
        while not self._over.is_set():
            job(rng.choice(self._managers))
            time.sleep(_PAUSE_S)

    def _call(self, host: Host, what: str, method: str, path: str, body: object = None) -> tuple[int, Any]:
        began = time.monotonic()
        try:
            status, answer = calls.call(host, method, path, body, timeout_s=PATIENCE_S)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            status, answer = 0, f"{type(error).__name__}: {error}"
        outcome = Outcome(
            host.name, what, began, time.monotonic() - began, status, str(answer) if status >= 400 else ""
        )
        with self._lock:
            self.record.outcomes.append(outcome)
        return status, answer

    def _create(self, host: Host) -> None:
        name = f"load-{next(self._numbers)}"
        body = {"Name": name, "Data": b64encode(name.encode() * 20).decode()}
        status, answer = self._call(host, "create", "POST", "/configs/create", body)
        if status == 201:
            with self._lock:
                self.record.acknowledged[name] = answer["ID"]

    def _read(self, host: Host) -> dict[str, Any] | None:
        with self._lock:
            known = self.record.newest
        status, answer = self._call(host, "read", "GET", f"/configs/{SHARED}")
        if status != 200:
            return None
        self._seen(host, answer["Version"]["Index"], known)
        found: dict[str, Any] = answer
        return found

    def _move(self, host: Host) -> None:
        found = self._read(host)
        if found is None:
            return
        spec = {**found["Spec"], "Labels": {"step": str(next(self._numbers))}}
        version = found["Version"]["Index"]
        path = f"/configs/{found['ID']}/update?version={version}"
        status, _ = self._call(host, "update", "POST", path, spec)
        if status == 200:
            with self._lock:  # the answer does not name the new version, but it is newer than this one
                self.record.newest = max(self.record.newest, version + 1)

    def _seen(self, host: Host, version: int, known: int) -> None:
        with self._lock:
            if version < known:
                self.record.stale.append(f"{host.name} showed version {version} after {known} was known")
            self.record.newest = max(self.record.newest, version)


def missing(host: Host, record: Record) -> list[str]:
    """Names of acknowledged configs that this manager does not show."""
    present = {config["ID"] for config in calls.get(host, "/configs")}
    return [name for name, config_id in record.acknowledged.items() if config_id not in present]
