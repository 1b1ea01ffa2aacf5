"""Clients that keep writing to a manager that keeps dying, and what they must find afterwards.

Each writer owns its objects, does one thing after the other, and notes what was acknowledged. A request whose answer
never came may or may not have happened; the writer looks it up when the manager is back, before it goes
on. So after every restart each object must be exactly as the last acknowledged write left it, or as the write that was
under way would have left it.
"""

from __future__ import annotations

import base64
import http.client
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from integration import calls
from integration.lab import Host

COMMAND = ["sh", "-c", "trap exit TERM; while sleep 0.2; do :; done"]
NOWHERE = "node.labels.nowhere==true"
REPLICAS_MAX = 4


class Gone(Exception):
    """The manager did not answer: the request may or may not have been carried out."""


@dataclass
class Known:
    """An object as its writer knows it: what was acknowledged, and what may have come after it.

    count: of updates, kept in a label; None: there is no such object. pending: what ``count`` is if the write under
    way happened. version: the lowest that it can have after
    the last acknowledged write.
    """

    kind: str
    name: str
    count: int | None = None
    pending: int | None = None
    under_way: bool = False
    version: int = 0
    replicas: int = 1
    pending_replicas: int = 1


class Writer:
    """One client. ``place`` of its services is a constraint, so that some run and most only wait."""

    def __init__(self, host: Host, name: str, seed: str, places: tuple[str, ...]) -> None:
        self._host = host
        self._rng = random.Random(seed)
        self._services = {f"{name}-{i}": Known("services", f"{name}-{i}") for i in range(len(places))}
        self._places = dict(zip(self._services, places, strict=True))
        self._configs: dict[str, Known] = {}
        self._name = name
        self.acknowledged = 0
        self.refused: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Write until told to stop, or until the manager is gone."""
        try:
            while not stop.is_set():
                self._step()
        except Gone:
            return

    def _step(self) -> None:
        if self._rng.random() < 0.25:
            self._configure()
            return
        known = self._rng.choice(list(self._services.values()))
        if known.count is None:
            body = self._spec(known, 0, 1)
            self._write(known, 0, 1, lambda: self._call("POST", "/services/create", body), 201)
        elif self._places[known.name] == NOWHERE and self._rng.random() < 0.1:
            self._write(known, None, 1, lambda: self._call("DELETE", f"/services/{known.name}"), 200)
        else:
            self._update(known)

    def _configure(self) -> None:
        known = Known("configs", f"{self._name}-c{len(self._configs)}")
        self._configs[known.name] = known
        body = {"Name": known.name, "Data": base64.b64encode(b"x" * 200).decode(), "Labels": {"count": "0"}}
        self._write(known, 0, 1, lambda: self._call("POST", "/configs/create", body), 201)

    def _update(self, known: Known) -> None:
        status, service = self._call("GET", f"/services/{known.name}")
        assert status == 200, service
        count = (known.count or 0) + 1
        replicas = self._rng.randint(1, REPLICAS_MAX)
        body = self._spec(known, count, replicas)
        path = f"/services/{known.name}/update?version={service['Version']['Index']}"
        if self._write(known, count, replicas, lambda: self._call("POST", path, body), 200):
            known.version = service["Version"]["Index"] + 1

    def _spec(self, known: Known, count: int, replicas: int) -> dict[str, Any]:
        container = {"Image": "busybox:latest", "Command": COMMAND, "Env": [f"ROUND={count // 16}"]}
        place = {"Constraints": [self._places[known.name]]}
        return {
            "Name": known.name,
            "Labels": {"count": str(count)},
            "TaskTemplate": {"ContainerSpec": container, "Placement": place, "RestartPolicy": {"Delay": 0}},
            "Mode": {"Replicated": {"Replicas": replicas}},
            "UpdateConfig": {"Parallelism": 0},
        }

    def _write(
        self, known: Known, count: int | None, replicas: int, send: Callable[[], tuple[int, Any]], wanted: int
    ) -> bool:
        """Do one write and note what it says; whether it was acknowledged."""
        known.under_way, known.pending, known.pending_replicas = True, count, replicas
        status, body = send()
        known.under_way = False
        if status == wanted:
            known.count, known.replicas = count, replicas
            self.acknowledged += 1
            return True
        if "out of sequence" not in str(body):  # the manager itself writes the state of updates into services
            self.refused.append(f"{known.name}: {status} {body}")
        return False

    def _call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        try:
            return calls.call(self._host, method, path, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Gone from error

    # --- afterwards ------------------------------------------------------------------------------------------------

    def check(self, found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
        """Compare this writer's objects with those found, (kind, name) -> object; returns what is wrong."""
        wrong = []
        for known in (*self._services.values(), *self._configs.values()):
            item = found.get((known.kind, known.name))
            count = int(item["Spec"]["Labels"]["count"]) if item else None
            version = int(item["Version"]["Index"]) if item else known.version
            allowed = [known.count, *([known.pending] if known.under_way else [])]
            if count not in allowed:
                wrong.append(f"{known.kind} {known.name} has count {count} instead of one of {allowed}")
            if version < known.version:
                wrong.append(f"{known.kind} {known.name} went back from version {known.version} to {version}")
            if known.under_way and count == known.pending:
                known.replicas = known.pending_replicas
            if known.kind == "services" and item and _replicas(item) != known.replicas:
                wrong.append(f"{known.name} has {_replicas(item)} replicas instead of {known.replicas}")
            known.count, known.version, known.under_way = count, version, False
        return wrong

    def wanted(self) -> dict[str, int]:
        """Service -> replicas, of those that can run."""
        return {
            name: known.replicas
            for name, known in self._services.items()
            if known.count is not None and self._places[name] != NOWHERE
        }


@dataclass
class CheckedWriters:
    """Several writers at once, each a client of the Engine API."""

    writers: list[Writer]
    stop: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start all writers."""
        self.stop.clear()
        self.threads = [threading.Thread(target=writer.run, args=(self.stop,)) for writer in self.writers]
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        """Stop all writers and wait for them."""
        self.stop.set()
        for thread in self.threads:
            thread.join()

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged so far."""
        return sum(writer.acknowledged for writer in self.writers)

    def check(self, manager: Host) -> list[str]:
        """Everything that is not as acknowledged, every refusal, and every slot or task that is there twice."""
        found = {
            (kind, item["Spec"]["Name"]): item
            for kind in ("services", "configs")
            for item in calls.get(manager, f"/{kind}")
        }
        wrong = [text for writer in self.writers for text in (*writer.check(found), *writer.refused)]
        return wrong + doubles(manager)


def _replicas(service: dict[str, Any]) -> int:
    return int(service["Spec"]["Mode"]["Replicated"]["Replicas"])


def doubles(manager: Host) -> list[str]:
    """Slots with more than one task that is meant to run, and tasks of services that are gone."""
    services = {service["ID"] for service in calls.get(manager, "/services")}
    slots: dict[tuple[str, int], list[str]] = {}
    wrong = []
    for task in calls.get(manager, "/tasks"):
        if task["DesiredState"] in ("ready", "running"):
            slots.setdefault((task["ServiceID"], task["Slot"]), []).append(task["ID"])
            if task["ServiceID"] not in services:
                wrong.append(f"task {task['ID']} of a removed service is meant to run")
    return wrong + [f"slot {slot} of {service} has {ids}" for (service, slot), ids in slots.items() if len(ids) > 1]
