"""Run fuzz targets with atheris: ``python -m tests.fuzz --seconds 600 [http2 grpc ...]``.

Each target runs in a process of its own, from the committed corpus; what it finds new is kept in --work, and with
--merge the corpus is made anew from both, as small as the same coverage allows. An input that breaks a rule is left as
``crash-*`` in --work: run it alone with --input, fix what it shows, and keep it in the corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TARGETS = (
    "http2",
    "grpc",
    "http1",
    "api",
    "manager",
    "raft",
    "disk",
    "wal",
    "certs",
    "templates",
    "json_bodies",
    "dns",
)
PACKAGES = ("swarm", "certs", "engine_api", "overlay", "hpack")
FILES_MAX, BYTES_MAX = 60, 100_000
INPUT_BYTES_MAX = 4_096
HANG_S = 25


def fuzz(target: str, arguments: list[str]) -> None:
    """Become libFuzzer; returns never."""
    import atheris
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # nobody reads a million lines
    with atheris.instrument_imports(include=list(PACKAGES)):
        module = importlib.import_module(f"tests.fuzz.{target}")
    itself = f"{sys.executable} -m tests.fuzz --become {target}"  # which it starts again to merge
    atheris.Setup([itself, *arguments], module.one)
    atheris.Fuzz()


def start(target: str, arguments: list[str]) -> int:
    """A fuzzer process; its exit status."""
    command = [sys.executable, "-m", "tests.fuzz", "--become", target, *arguments]
    return subprocess.run(command, check=False, env={**os.environ, "PYTHONHASHSEED": "0"}).returncode


def run(target: str, seconds: int, work: Path) -> int:
    """Fuzz a target for so long; 0 when nothing was found."""
    found = work / target
    found.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"tests.fuzz.{target}")
    for seed in module.seeds():
        (found / _name(seed)).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={HANG_S}", f"-max_len={INPUT_BYTES_MAX}", "-rss_limit_mb=2048"]
    return start(target, [*limits, "-print_final_stats=1", f"-artifact_prefix={found}-", str(found), *_kept(target)])


def merge(target: str, work: Path) -> int:
    """Make the committed corpus of a target anew: few and short inputs with the coverage of all."""
    (work / target).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        status = start(
            target,
            ["-set_cover_merge=1", f"-artifact_prefix={work / target}-", scratch, str(work / target), *_kept(target)],
        )
        if status == 0:
            inputs = sorted((path.read_bytes() for path in Path(scratch).iterdir()), key=lambda data: (len(data), data))
            _keep(target, inputs)
    return status


def _keep(target: str, inputs: list[bytes]) -> None:
    """The shortest ones, as many as the limits allow, and all that have a name: those found a fault once."""
    place = CORPUS / target
    place.mkdir(parents=True, exist_ok=True)
    for path in place.glob("[0-9a-f]" * 12 + ".bin"):
        path.unlink()
    left = sorted(place.iterdir())
    count, size = len(left), sum(path.stat().st_size for path in left)
    step = max(1.0, len(inputs) / max(1, FILES_MAX - count))
    for data in [inputs[int(number * step)] for number in range(int(len(inputs) / step))]:
        size += len(data)
        if size > BYTES_MAX:
            break
        (place / _name(data)).write_bytes(data)


def _kept(target: str) -> list[str]:
    return [str(CORPUS / target)] if (CORPUS / target).is_dir() else []


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12] + ".bin"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--become", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--merge", action="store_true", help="then make the committed corpora anew")
    parser.add_argument("--input", type=Path, help="run one input through the target, with a traceback")
    options, rest = parser.parse_known_args()
    if options.become:
        fuzz(rest[0], rest[1:])
    targets = rest or list(TARGETS)
    if unknown := [target for target in targets if target not in TARGETS]:
        parser.error(f"no such target: {' '.join(unknown)}; there are {' '.join(TARGETS)}")
    if options.input is not None:
        importlib.import_module(f"tests.fuzz.{targets[0]}").one(options.input.read_bytes())
        return 0
    failed = []
    for target in targets:
        sys.stdout.write(f"--- {target}: {options.seconds} s\n")
        sys.stdout.flush()
        status = run(target, options.seconds, options.work) if options.seconds else 0
        if options.merge and status == 0:
            status = merge(target, options.work)
        if status:
            failed.append(target)
    if not options.merge and not failed:
        return 0
    sys.stdout.write(f"found something: {' '.join(failed) or 'nothing'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
