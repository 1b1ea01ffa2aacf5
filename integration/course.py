"""A course of docker commands as data, one runner for any lab, and a comparison of two runs step by step.

    python -m integration.course            run it on three sideswarm hosts and on three stock hosts, print differences

A step is a docker command on a host, a wait (the same command again until its output matches), or something that
happens to a host. What comes back is kept as the text a person would see: output, errors, exit code. ``masked`` takes
out what differs between any two swarms (ids, times, tokens, which of three equal nodes got a task), so that what is
left differs only where ours and stock do.
"""

from __future__ import annotations

import difflib
import http.client
import json
import re
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from integration.course_steps import STEPS
from integration.course_words import Step
from integration.lab import Host, Lab

POLL_S = 0.2
DIVERGENCE = Path(__file__).resolve().parent.parent / "docs" / "divergence.md"


@dataclass
class Seen:
    """What one step showed on one lab: its masked text, and the raw one for a person to look at."""

    step: Step
    raw: str
    text: str = field(init=False)

    def __post_init__(self) -> None:
        self.text = masked(self.raw, self.step.mask)


class Course:
    """One walk through the steps on one lab. ``kept`` holds what earlier steps showed, for later commands."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.kept: dict[str, str] = {}
        self._stdin = ""

    def run(self, steps: Iterable[Step] = STEPS, tell: Callable[[str], None] = lambda _: None) -> list[Seen]:
        """Run the steps in order; a wait that times out is recorded, and the course continues."""
        seen = []
        for step in steps:
            started = time.monotonic()
            text = self._act(step) if step.action else self._command(step)
            tell(f"{time.monotonic() - started:6.1f} s  {step.name}")
            seen.append(Seen(step, text))
        return seen

    def _act(self, step: Step) -> str:
        host = self._lab.host(step.host)
        getattr(self._lab, step.action)(host, "engine")
        if step.action == "start":
            self._lab.ensure(host, "daemon")
        return f"{step.action} {step.host}\n"

    def _command(self, step: Step) -> str:
        deadline = time.monotonic() + step.timeout_s
        arguments = shlex.split(re.sub(r"@(\w+)@", lambda name: self.kept.get(name[1], name[0]), step.command))
        while True:
            text, output = self._once(step, arguments)
            if not step.until or re.search(step.until, text, re.MULTILINE):
                break
            if time.monotonic() > deadline:
                text += f"[not seen in {step.timeout_s:.0f} s: {step.until}]\n"
                break
            time.sleep(POLL_S)
        for name, pattern in step.keep:
            found = re.search(pattern, output, re.MULTILINE)
            self.kept[name] = found[1] if found else f"no-{name}"
        return text

    def _once(self, step: Step, arguments: list[str]) -> tuple[str, str]:
        host: Host = self._lab.host(step.host)
        if arguments[0] in ("GET", "POST"):
            body = json.dumps(ask(host, *arguments), indent=1) + "\n"
            return body + "[exit 0]\n", body
        done = host.docker_run(*arguments, stdin=step.stdin or None, timeout_s=180.0, engine=step.engine)
        text = done.stdout + (f"[stderr]\n{done.stderr}" if done.stderr else "") + f"[exit {done.returncode}]\n"
        return text, done.stdout


def ask(host: Host, method: str, path: str, body: str | None = None) -> Any:
    """The JSON that a host's API answers."""
    connection = http.client.HTTPConnection("docker", timeout=30)
    with socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.connect(host.api.removeprefix("unix://"))
        connection.request(method, path, body, {"Connection": "close", "Content-Type": "application/json"})
        with connection.getresponse() as response:
            return json.loads(response.read())


_EVERYWHERE: tuple[tuple[str, str], ...] = (
    (r"SWMTKN-1-\w+-\w+", "SWMTKN-1-..."),
    (r"(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", "<certificate>"),
    (r"\b[0-9a-f]{64}\b", "<digest>"),
    (r"\b[0-9a-z]{25}\b", "<id>"),
    (r"(?m)(?:^|(?<=\.))[0-9a-z]{12}(?= |@|$)", "<id>"),
    (r"\b(?=[a-z]*[0-9])(?=[0-9]*[a-z])[0-9a-z]{12}\b", "<id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 utc| \+0000 UTC)", "<time>"),
    (r"(?i)(about )?(less than )?\b(an?|\d+) (second|minute|hour)s? ago", "<ago>"),
    (r"\?version=\d+", "?version=<n>"),
    (r'"Index": ?\d+', '"Index": <n>'),
    (r'"(CertIssuerPublicKey|CertIssuerSubject)": ?"[^"]*"', r'"\1": "..."'),
    (r"(Issuer (?:Subject|Public Key):\s+)\S+", r"\1..."),
    (r'"(PID|ForceRotate)": ?\d+', r'"\1": <n>'),
    (r"/var/lib/sideswarm-lab/\w+/", "<lab>/"),
    (r"(?m)[ \t]+$", ""),
    (r"(?<=\S)  +", "  "),
)

_NAMED: dict[str, Callable[[str], str]] = {}


def masked(text: str, names: tuple[str, ...] = ()) -> str:
    """The text without what differs between any two swarms. Names: see ``_NAMED``."""
    text = _members(text) if "members" in names else _last_progress(text)
    for pattern, replacement in _EVERYWHERE:
        text = re.sub(pattern, replacement, text)
    for name in names:
        text = _NAMED.get(name, str)(text)
    return text


def _named(function: Callable[[str], str]) -> Callable[[str], str]:
    _NAMED[function.__name__.strip("_")] = function
    return function


@_named
def _nodes(text: str) -> str:
    """Which of several equal nodes it is."""
    return re.sub(r"\bnode[123]\b", "<node>", text)


@_named
def _count(text: str) -> str:
    """How many tasks ran for a moment when an update failed, and what the CLI saw last of its rollback."""
    text = re.sub(r"^rollback: .*", "rollback: <state>", text, flags=re.MULTILINE)
    return re.sub(r"overall progress: \d+ out", "overall progress: <n> out", text)


@_named
def _sort(text: str) -> str:
    """Lines in no order of their own."""
    return "".join(sorted(text.splitlines(keepends=True)))


@_named
def _task(text: str) -> str:
    """Which slot of a service a container is."""
    return re.sub(r"\b(\w+)\.\d+\.<id>", r"\1.<slot>.<id>", text)


@_named
def _slots(text: str) -> str:
    """Which slot it is, and on which of several equal nodes the names in the first column follow each other."""
    return re.sub(r"(?m)^( \\_ )?(\w+)\.\d+\b", r"\2.<slot>", text)


@_named
def _up(text: str) -> str:
    """For how long a container is up."""
    return re.sub(r"Up (About |Less than )?(an?|\d+) (second|minute)s?", "Up <time>", text)


@_named
def _address(text: str) -> str:
    """Addresses on the engine's own bridge."""
    return re.sub(r'"(172\.\d+\.\d+\.\d+|(?:[0-9a-f]{2}:){5}[0-9a-f]{2})"', '"<address>"', text)


@_named
def _info(text: str) -> str:
    """Of the text of docker info only what concerns the swarm."""
    found = re.search(r"(?s) Swarm: .*?(?=\n Runtimes)", text)
    return found[0] if found else text


def _members(text: str) -> str:
    """Of JSON only which members there are and of what kind: ``Spec.Labels: object``."""
    value, _, rest = text.rpartition("[exit")
    return "".join(f"{line}\n" for line in sorted(set(_kinds(json.loads(value))))) if rest else text


def _kinds(value: Any, path: str = "") -> Iterable[str]:
    names = {dict: "object", list: "list", str: "text", bool: "bool", int: "number", float: "number"}
    empty = "empty " if value in ({}, []) else ""
    yield f"{path or '.'}: {empty}{names.get(type(value), 'null')}"
    for key, element in value.items() if isinstance(value, dict) else ():
        yield from _kinds(element, f"{path}.{key}")
    for element in value if isinstance(value, list) else ():
        yield from _kinds(element, f"{path}[]")


@_named
def _unique(text: str) -> str:
    """A line that is there once or many times."""
    return "".join(dict.fromkeys(text.splitlines(keepends=True)))


_PROGRESS = re.compile(r"^(overall progress|active tasks|verify|\d+/\d+|\w{12}): ?.*\n", re.MULTILINE)


def _last_progress(text: str) -> str:
    """Of a progress display only what it says last about each thing."""
    text = re.sub(r"^job progress: .*\n", "", text, flags=re.MULTILINE)
    last: dict[str, str] = {}
    for found in _PROGRESS.finditer(text):
        last[found[1]] = found[0]
    if "overall progress" not in last and "active tasks" not in last and "verify" not in last:
        return text
    first = next(_PROGRESS.finditer(text)).start()
    rest = _PROGRESS.sub("", text[first:])
    rest = re.sub(r"^\n", "", rest, flags=re.MULTILINE)
    return text[:first] + "".join(last.values()) + rest


def difference(ours: Seen, stock: Seen) -> str:
    """A unified difference of one step, empty when both showed the same."""
    unseen = any("[not seen in" in one.raw for one in (ours, stock))
    if not unseen and (ours.step.silent or ours.text == stock.text):
        return ""
    title = f"{ours.step.host}$ docker {ours.step.command}" if ours.step.command else ours.step.name
    lines = difflib.unified_diff(stock.text.splitlines(), ours.text.splitlines(), "stock", "ours", lineterm="", n=2)
    return "\n".join([f"### {ours.step.name}: {title}", *lines]) + "\n"


def side_by_side(ours: Lab, stock: Lab, tell: Callable[[str], None] = lambda _: None) -> list[tuple[Seen, Seen]]:
    """Run the course on both labs at the same time; what each step showed on ours and on stock."""
    with ThreadPoolExecutor(2) as pool:
        mine = pool.submit(Course(ours).run, STEPS, lambda line: tell(f"ours  {line}"))
        theirs = pool.submit(Course(stock).run, STEPS, lambda line: tell(f"stock {line}"))
    return list(zip(mine.result(), theirs.result(), strict=True))


def differences(pairs: list[tuple[Seen, Seen]]) -> list[tuple[str, str]]:
    """(name of the step, unified difference) where there is one."""
    return [(ours.step.name, text) for ours, stock in pairs if (text := difference(ours, stock))]


@dataclass(frozen=True)
class Explained:
    """A row of docs/divergence.md: in steps that fit a pattern, lines with ``stock`` or ``ours`` may differ."""

    steps: tuple[str, ...]
    stock: tuple[str, ...]
    ours: tuple[str, ...]

    def covers(self, step: str, line: str) -> bool:
        """Whether the row explains this line (which begins with - or +) of the difference of that step."""
        words = self.stock if line[0] == "-" else self.ours
        return any(fnmatch(step, pattern) for pattern in self.steps) and any(word in line for word in words)


def explained(table: str) -> list[Explained]:
    """The rows of a Markdown table whose first column names steps: | steps | what | stock | ours | why |."""
    rows = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0].startswith("`"):
            steps, stock, ours = (tuple(re.findall(r"`([^`]+)`", cells[column])) for column in (0, 2, 3))
            rows.append(Explained(steps, stock, ours))
    return rows


def judge(found: list[tuple[str, str]], rows: list[Explained]) -> tuple[list[str], list[Explained]]:
    """Differences that no row explains, and rows that explained nothing."""
    used: dict[Explained, None] = {}
    unexplained = []
    for step, text in found:
        lines = [line for line in text.splitlines()[3:] if line[:1] in ("-", "+")]
        covering = [next((row for row in rows if row.covers(step, line)), None) for line in lines]
        used.update((row, None) for row in covering if row is not None)
        if not lines or None in covering:
            unexplained.append(text)
    return unexplained, [row for row in rows if row not in used]


def main() -> int:
    """Make both labs, run the course, print the differences."""
    ours, stock = Lab("crsa"), Lab("crsb")
    try:
        ours.up(3)
        stock.up(0, stock=3)
        found = differences(side_by_side(ours, stock, lambda line: print(line, file=sys.stderr)))
    finally:
        ours.down()
        stock.down()
    unexplained, idle = judge(found, explained(DIVERGENCE.read_text()))
    for _, text in found:
        print(text)
    print(f"{len(found)} of {len(STEPS)} steps differ, {len(unexplained)} without an explanation")
    for row in idle:
        print(f"no longer seen: {row}")
    return 1 if unexplained or idle else 0


if __name__ == "__main__":
    sys.exit(main())
