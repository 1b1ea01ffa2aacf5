"""pytest-docker's compose command, for the lab: ``up``, ``down`` and ``port`` of a JSON file with hosts.

pytest-docker runs ``<command> -f FILE -p PROJECT up --build -d`` and the like. The file is a compose file in JSON whose
services are the lab's hosts; ``x-lab`` says how many of them are stock, and how many managers a swarm shall have. The
project is the lab's name.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from integration.lab import Lab, LabError


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m integration.compose")
    parser.add_argument("-f", dest="file", type=Path, required=True)
    parser.add_argument("-p", dest="project", required=True)
    parser.add_argument("verb", choices=("up", "down", "port"))
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    lab = Lab(args.project)
    try:
        if args.verb == "up":
            plan = json.loads(args.file.read_text())
            options = plan.get("x-lab", {})
            stock = int(options.get("stock", 0))
            lab.up(len(plan["services"]) - stock, stock, int(options.get("managers", 0)))
        elif args.verb == "down":
            lab.down()
        else:
            print(f"{lab.host(args.rest[0]).ip}:{args.rest[1]}")
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
