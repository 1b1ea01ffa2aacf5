"""One heap, one virtual clock, and scripts that wait for futures: generators, or production's own coroutines.

A coroutine of production runs here as it is, without asyncio, if it awaits nothing but what it was handed: dial, unary,
sleep. In the simulation those return this module's futures.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any

from certs.errors import CertsError
from swarm.errors import DeadlineExceeded, SwarmError

STORY_LINES = 400


class Future:
    """Something that will be known later; it is settled once, what comes after is ignored."""

    __slots__ = ("_callbacks", "done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None
        self._callbacks: list[Callable[[], None]] = []

    def resolve(self, value: Any = None) -> None:
        """It is known."""
        if not self.done:
            self.done, self.value = True, value
            self._tell()

    def fail(self, error: Exception) -> None:
        """It will never be known."""
        if not self.done:
            self.done, self.error = True, error
            self._tell()

    def __await__(self) -> Generator[Future, Any, Any]:
        """For coroutines of production: what it resolves to, or its error."""
        return (yield self)

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once it is settled, at once if it is."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def _tell(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


Script = Generator[Future, Any, Any]
Runnable = Script | Coroutine[Future, Any, Any]


class Kernel:
    """Time, chance and memory of a world. Everything is drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.events = 0
        self.rng = Random(f"{seed}/world")
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.echo: Callable[[str], None] | None = None
        self._trace = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = 0

    def at(self, delay_s: float, call: Callable[[], object]) -> None:
        """Call it later."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, call))

    def advance(self, until: float) -> None:
        """Run everything that is due by then."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call = heapq.heappop(heap)
            self.events += 1
            call()
        self.now = until

    def say(self, *what: object) -> None:
        """Something worth telling happened; it becomes part of the trace."""
        line = f"{self.now:.4f} " + " ".join(map(str, what))
        self.story.append(line)
        self._trace.update(line.encode())
        if self.echo is not None:
            self.echo(line)

    def mark(self, *what: object) -> None:
        """As say, but not worth telling: only the digest and whoever listens get it."""
        line = f"{self.now:.4f} " + " ".join(map(str, what))
        self._trace.update(line.encode())
        if self.echo is not None:
            self.echo(line)

    @property
    def trace(self) -> str:
        """A digest of everything that was told."""
        return self._trace.hexdigest()

    def sleep(self, delay_s: float) -> Future:
        """Done after a while."""
        future = Future()
        self.at(delay_s, future.resolve)
        return future

    def within(self, future: Future, limit_s: float) -> Future:
        """The same future, which fails with DeadlineExceeded if it takes too long."""
        self.at(limit_s, lambda: future.fail(DeadlineExceeded("context deadline exceeded")))
        return future


class Scope:
    """Scripts that end together, for example when their process dies."""

    def __init__(self) -> None:
        self.closed = False
        self._running: dict[int, Runnable] = {}
        self._count = 0
        self._inside: list[int] = []

    def run(self, script: Runnable) -> Future:
        """Start a script; the future gets what it returns or raises."""
        self._count += 1
        number, result = self._count, Future()
        if self.closed:
            script.close()
            return result
        self._running[number] = script
        self._step(number, result, None)
        return result

    def _step(self, number: int, result: Future, awaited: Future | None) -> None:
        script = self._running.get(number)
        if script is None:
            return
        self._inside.append(number)
        try:
            if awaited is None:
                future = script.send(None)
            elif awaited.error is not None:
                future = script.throw(awaited.error)
            else:
                future = script.send(awaited.value)
        except StopIteration as stop:
            self._running.pop(number, None)
            result.resolve(stop.value)
            return
        except Exception as error:
            self._running.pop(number, None)
            result.fail(error)
            if not isinstance(error, SwarmError | CertsError | OSError):
                raise
            return
        finally:
            self._inside.pop()
        if number not in self._running:  # the scope was closed from inside the script
            script.close()
            return
        future.then(lambda: self._step(number, result, future))

    def close(self) -> None:
        """End all scripts where they wait."""
        self.closed = True
        running, self._running = self._running, {}
        for number, script in running.items():
            if number not in self._inside:
                script.close()
