"""The long run: managers killed at random under writes, then a reckoning.

    python -m integration.kills [--managers 3] [--minutes 10] [--seed N] [--pause 8]

A group of managers in a lab of its own takes writes and reads through all of them. Again and again some of them, at
most one fewer than half, are killed with SIGKILL, and started again after a random while. At the end nothing that was
acknowledged may be missing, nobody may have seen an older version after a newer one, every call must have been
answered or refused in time, and the containers must be the ones that ran at the beginning. Needs root.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import sys
import time
from collections.abc import Sequence

from integration import calls
from integration.lab import Host, Lab
from integration.measure import quantile
from integration.waiting import until
from integration.writers import Load, Outcome, Record, missing

ANSWER_S = 5.0
RECOVERY_S = 120.0
REPLICAS_PER_HOST = 2
COMMAND = ("sh", "-c", "trap exit TERM; while sleep 0.2; do :; done")


def gather(managers: Sequence[Host]) -> None:
    """One swarm of all hosts, every one a manager."""
    first = managers[0]
    # with the heartbeat of every day, a node that is killed twice in a row is rightly given up, and its tasks replaced
    first.docker("swarm", "init", "--advertise-addr", first.ip, "--dispatcher-heartbeat", "1m")
    token = first.docker("swarm", "join-token", "-q", "manager").strip()
    for host in managers[1:]:
        host.docker("swarm", "join", "--token", token, "--advertise-addr", host.ip, f"{first.ip}:2377")
    replicas = str(REPLICAS_PER_HOST * len(managers))
    first.docker("service", "create", "-q", "--name", "steady", "--replicas", replicas, "busybox:latest", *COMMAND)


def whole(managers: Sequence[Host]) -> bool:
    """Whether every manager shows all of them reachable and ready."""
    for host in managers:
        status, nodes = calls.call(host, "GET", "/nodes")
        if status != 200 or len(nodes) != len(managers):
            return False
        for node in nodes:
            if node["Status"]["State"] != "ready" or node["ManagerStatus"].get("Reachability") != "reachable":
                return False
    return True


def kill_at_random(lab: Lab, managers: Sequence[Host], rng: random.Random, until_s: float, pause_s: float) -> int:
    """Kill and start until that time; returns how often a manager was killed. All run in the end."""
    kills = 0
    most = (len(managers) - 1) // 2
    while time.monotonic() < until_s:
        time.sleep(rng.uniform(0.5, pause_s))
        victims = rng.sample(list(managers), rng.randint(1, most))
        for victim in victims:
            lab.kill(victim)
            kills += 1
            time.sleep(rng.choice((0.0, rng.uniform(0.0, 2.0))))
        time.sleep(rng.uniform(0.0, pause_s))
        for victim in victims:
            lab.start(victim)
    return kills


def gap_s(record: Record, began: float, ended: float) -> float:
    """The longest time without an acknowledged write, in seconds."""
    ends = sorted(o.began + o.took_s for o in record.outcomes if o.what != "read" and o.status in (200, 201))
    moments = [began, *ends, ended]
    return max(after - before for before, after in itertools.pairwise(moments))


def report(record: Record, kills: int, lasted_s: float, longest_gap_s: float) -> None:
    """What happened, in numbers."""
    writes = [o for o in record.outcomes if o.what != "read"]
    took = [o.took_s for o in record.outcomes]
    kinds = collections.Counter(_kind(o) for o in writes)
    slowest = max(record.outcomes, key=lambda o: o.took_s)
    print(f"{kills} kills in {lasted_s:.0f} s; {len(record.outcomes)} calls, {len(writes)} of them writes:")
    for kind, count in kinds.most_common():
        print(f"  {count:7d} {kind}")
    print(f"p50 {1000 * quantile(took, 0.5):.1f} ms, p99 {1000 * quantile(took, 0.99):.0f} ms", end=", ")
    print(f"slowest {slowest.took_s:.2f} s ({slowest.what} through {slowest.host}: {_kind(slowest)})")
    print(f"longest time without an acknowledged write: {longest_gap_s:.2f} s")


def _kind(outcome: Outcome) -> str:
    if outcome.status in (200, 201):
        return "acknowledged"
    if outcome.status:
        return f"refused: {outcome.status} {outcome.text[:100]}"
    return "no daemon there, or killed before it answered"


def run(managers: int, minutes: float, seed: int, pause_s: float) -> list[str]:
    """The whole run; returns what is wrong."""
    rng = random.Random(seed)
    lab = Lab(f"kil{managers}")
    lab.up(managers)
    try:
        gather(lab.hosts)
        before = [calls.containers(host, service="steady") for host in lab.hosts]
        began = time.monotonic()
        with Load(lab.hosts) as record:
            kills = kill_at_random(lab, lab.hosts, rng, began + 60 * minutes, pause_s)
        ended = time.monotonic()
        until(lambda: whole(lab.hosts), bool, RECOVERY_S, "all managers together again")
        report(record, kills, ended - began, gap_s(record, began, ended))
        wrong = [f"{host.name} lacks {name}" for host in lab.hosts for name in missing(host, record)]
        wrong += record.stale
        wrong += [f"{_kind(o)} after {o.took_s:.2f} s" for o in record.outcomes if o.took_s >= ANSWER_S]
        if [calls.containers(host, service="steady") for host in lab.hosts] != before:
            wrong.append("the containers are not those of the beginning")
        return wrong
    finally:
        lab.down()


def main() -> int:
    """Parse, run, print; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description="kill managers at random under writes")
    parser.add_argument("--managers", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--pause", type=float, default=8.0, help="longest pause before a kill or a start, in s")
    args = parser.parse_args()
    if args.managers < 3:
        parser.error("fewer than three managers cannot lose one")
    print(f"{args.managers} managers, {args.minutes:g} minutes, seed {args.seed}", flush=True)
    wrong = run(args.managers, args.minutes, args.seed, args.pause)
    for line in wrong[:20]:
        print(f"WRONG: {line}")
    print(f"{len(wrong)} things are wrong" if wrong else "nothing acknowledged was lost, nothing is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
