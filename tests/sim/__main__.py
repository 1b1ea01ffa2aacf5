"""Many seeds of the simulation: python -m tests.sim [--cores] [--seeds 200 | --minutes 60 | --seed 7 [--trace]].

Prints one line at the end, or the story of the first seed that fails and exits with 1. Seeds run in as many processes
as ``--jobs`` says. --cores: groups of bare consensus cores instead of whole clusters, a thousand of them in a minute.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import Pool

import structlog

from tests.sim.ailments import KINDS, USUAL
from tests.sim.raft_story import simulate_cores
from tests.sim.simulation import Outcome, simulate

Simulate = Callable[..., Outcome]
Result = tuple[int, Outcome | None, str]


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate whole clusters.")
    parser.add_argument("--cores", action="store_true", help="groups of bare consensus cores")
    parser.add_argument("--seeds", type=int, help="how many seeds to run")
    parser.add_argument("--minutes", type=float, help="for how long to run seeds")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--keep-going", action="store_true", help="run the other seeds after one that failed")
    parser.add_argument("--ailments", choices=KINDS, nargs="*", default=sorted(USUAL), help="of disks and requests")
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    run_one = simulate_cores if options.cores else partial(simulate, ailments=frozenset(options.ailments))
    if options.seed is not None:
        outcome = run_one(options.seed, echo=say if options.trace else None)
        say(f"{outcome}")
        return 0
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else None
    seeds = options.seeds or (10**9 if deadline else 200)
    found = results(run_one, range(options.first, options.first + seeds), options.jobs)
    return run(found, deadline, options.keep_going)


def run(found: Iterator[Result], deadline: float | None, keep_going: bool) -> int:
    """Run the seeds, then tell the sums."""
    done: list[Outcome] = []
    failed: list[int] = []
    for seed, outcome, failure in found:
        if outcome is not None:
            done.append(outcome)
        else:
            failed.append(seed)
            say(failure)
            if not keep_going:
                break
        if deadline is not None and time.monotonic() > deadline:
            break
    hours = sum(outcome.virtual_s for outcome in done) / 3600
    say(
        f"{len(done)} seeds passed, {len(failed)} failed {failed or ''}: {hours:.1f} virtual hours, "
        f"{sum(o.events for o in done)} events, {sum(o.decided for o in done)} log entries, "
        f"{sum(o.acknowledged for o in done)} acknowledged writes, {sum(o.reads for o in done)} reads, "
        f"converged after {max((o.converged_s for o in done), default=0.0):.1f} s at most; "
        f"{sum(o.lost for o in done)} disks lost, {sum(o.forced for o in done)} clusters forced, "
        f"{sum(o.moved for o in done)} addresses changed, {sum(o.mixed for o in done)} mixed groups; "
        + ", ".join(f"{kind} {sum(o.ailments.get(kind, 0) for o in done)}" for kind in KINDS)
        + f", {sum(o.replaced for o in done)} nodes replaced"
    )
    return 1 if failed else 0


def results(run_one: Simulate, seeds: range, jobs: int) -> Iterator[Result]:
    """One after the other, in order."""
    if jobs <= 1:
        yield from map(partial(attempt, run_one), seeds)
        return
    with Pool(jobs) as pool:
        yield from pool.imap(partial(attempt, run_one), seeds)


def attempt(run_one: Simulate, seed: int) -> Result:
    """One seed: what it did, or why it failed."""
    try:
        return seed, run_one(seed), ""
    except Exception:
        return seed, None, traceback.format_exc()


def say(text: str) -> None:
    """To the terminal, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
