"""The network between processes: connections as TCP gives them, and messages of the log that may suffer anything.

A connection keeps its order in each direction, stalls while its hosts are cut from each other and breaks when that
lasts; each side learns of the other's death at a time of its own. Messages of the log go one by one: delayed, lost,
repeated, out of order. Servers judge callers by the real rules (swarm/grpc/authorize.py).
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from google.protobuf.message import Message

from swarm.api.methods import METHODS, AnyMethod
from swarm.errors import Aborted, SwarmError, Unavailable
from swarm.rpc import MANAGER_ROLE, Call, Peer, Reply, StreamData, StreamEnd
from swarm.store.store import copy_of
from tests.sim.kernel import Future, Kernel, Script

if TYPE_CHECKING:
    from tests.sim.manager_driver import ManagerDriver

Answer = Reply | StreamData | StreamEnd
Word = Call | StreamData | StreamEnd
Listener = Callable[[Answer], None]
Metadata = Sequence[tuple[str, str]]

RETRANSMIT_S = 0.25
REFUSED = "connection refused:"
PORT = 2377


class Caller(Protocol):
    """Who connects: a process, or a client that a process starts."""

    host: str

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        ...

    @property
    def identity(self) -> Peer:
        """What its certificate says now."""
        ...

    @property
    def connections(self) -> dict[int, Connection]:
        """Open ones, of both sides."""
        ...


class Network:
    """Who can reach whom, how fast, and who listens where."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.delay_s = 0.002
        self.loss = 0.0
        self.duplication = 0.0
        self.cut: dict[tuple[str, str], bool] = {}
        self.vacant: dict[str, None] = {}  # addresses of hosts that have another one now
        self.disguised: dict[str, str] = {}  # hosts whose packets seem to come from another one
        self.listeners: dict[str, ManagerDriver] = {}
        self._connections = 0

    def delay(self) -> float:
        """How long the next packet takes."""
        return self.kernel.rng.expovariate(1 / self.delay_s) + 0.0001

    def open(self, a: str, b: str) -> bool:
        """Whether packets go from a to b."""
        return a == b or not ((a, b) in self.cut or a in self.vacant or b in self.vacant)

    def seen(self, caller: Caller) -> Peer:
        """Who calls, as a server sees it."""
        host = self.disguised.get(caller.host)
        return caller.identity if host is None else replace(caller.identity, addr=f"{host}:40000")

    def dial(self, caller: Caller, addr: str, limit_s: float, node_id: str = "") -> Future:
        """A Connection to the manager that listens at ``addr``; fails with Unavailable or DeadlineExceeded.

        node_id: see ClientTls.
        """
        kernel, future = self.kernel, Future()
        host = addr.rpartition(":")[0]
        kernel.within(future, limit_s)

        def arrive() -> None:
            if future.done or not caller.alive:
                return
            if not (self.open(caller.host, host) and self.open(host, caller.host)):
                kernel.at(RETRANSMIT_S, arrive)
                return
            server = self.listeners.get(addr)
            if server is not None and server.process.stalled_until > kernel.now:  # it greets nobody now
                kernel.at(RETRANSMIT_S, arrive)
                return
            if server is None or server.process.identity.role != MANAGER_ROLE:
                future.fail(Unavailable(f"{REFUSED} {addr}"))
                return
            if node_id and server.process.node_id != node_id:
                future.fail(_another(server, node_id))
                return
            self._connections += 1
            future.resolve(Connection(self, self._connections, caller, server))

        kernel.at(self.delay() + self.delay(), arrive)
        return future

    def message(
        self,
        caller: Caller,
        addr: str,
        limit_s: float,
        deliver: Callable[[ManagerDriver, Listener], None],
        node_id: str = "",
    ) -> Future:
        """One call that is answered by one word, over a link that keeps no promises; fails if no answer comes back.

        node_id: see ClientTls.
        """
        kernel, future = self.kernel, Future()
        host = addr.rpartition(":")[0]

        def answered(answer: Answer) -> None:
            if self._arrives(host, caller.host):
                kernel.at(self.delay(), lambda: settle(future, answer))

        def arrive() -> None:
            server = self.listeners.get(addr)
            if server is not None and node_id and server.process.node_id != node_id:
                if self.open(host, caller.host):
                    future.fail(_another(server, node_id))
            elif server is not None:
                deliver(server, answered)
            elif self.open(host, caller.host):
                future.fail(Unavailable(f"{REFUSED} {addr}"))

        if self._arrives(caller.host, host):
            kernel.at(self.delay(), arrive)
            if kernel.rng.random() < self.duplication:
                kernel.at(self.delay() + kernel.rng.expovariate(1.0), arrive)
        kernel.within(future, limit_s)
        return future

    def _arrives(self, a: str, b: str) -> bool:
        return self.open(a, b) and not (self.loss and self.kernel.rng.random() < self.loss)


def _another(server: ManagerDriver, node_id: str) -> Unavailable:
    return Unavailable(f"certificate is of node {server.process.node_id}, not {node_id}")


def settle(future: Future, answer: Answer) -> None:
    """The end of a call as a future."""
    if isinstance(answer, Reply):
        future.resolve(answer.message)
    elif isinstance(answer, StreamEnd):
        if answer.error is not None:
            future.fail(answer.error)
        else:
            future.resolve()


class Way:
    """One direction of a connection."""

    def __init__(self, connection: Connection, a: str, b: str) -> None:
        self._connection = connection
        self._a, self._b = a, b
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._last = 0.0
        self._stalled_at: float | None = None
        self.patience_s = connection.network.kernel.rng.uniform(20.0, 50.0)

    def send(self, deliver: Callable[[], None]) -> None:
        """Deliver after everything that was sent before."""
        network = self._connection.network
        kernel = network.kernel
        self._last = max(self._last, kernel.now + network.delay())
        self._queue.append((self._last, deliver))
        if len(self._queue) == 1:
            kernel.at(self._last - kernel.now, self._pump)

    def _pump(self) -> None:
        network = self._connection.network
        kernel = network.kernel
        while self._queue and self._queue[0][0] <= kernel.now and not self._connection.gone:
            if not network.open(self._a, self._b):
                if self._stalled_at is None:
                    self._stalled_at = kernel.now
                if kernel.now - self._stalled_at > self.patience_s:
                    self._connection.broken("keepalive ping failed to receive ACK within timeout")
                else:
                    kernel.at(RETRANSMIT_S, self._pump)
                return
            self._stalled_at = None
            self._queue.popleft()[1]()
        if self._connection.gone:
            self._queue.clear()
        if self._queue:
            kernel.at(self._queue[0][0] - kernel.now, self._pump)


class Connection:
    """From a caller to a manager, with the calls that are open on it."""

    def __init__(self, network: Network, number: int, caller: Caller, server: ManagerDriver) -> None:
        self.network = network
        self.number = number
        self.caller = caller
        self.server = server
        self.closed = Future()  # on the caller's side: why
        self.dropped = False  # on the server's side
        self.peer = network.seen(caller)
        host, server_host = caller.host, server.process.host
        self._up, self._down = Way(self, host, server_host), Way(self, server_host, host)
        self._listeners: dict[int, Listener] = {}
        self._uploads: dict[int, None] = {}
        self._streams: dict[int, int] = {}
        self._methods: dict[int, str] = {}
        self._own_streams = -1
        caller.connections[number] = self
        server.process.connections[number] = self

    @property
    def gone(self) -> bool:
        """Whether neither side knows of it any more."""
        return self.closed.done and self.dropped

    # --- the caller's side -----------------------------------------------------------------------------------------

    def open(self, call: Call, listener: Listener, metadata: Metadata = ()) -> None:
        """See ClientConnection.open."""
        if self.closed.done:
            error = self.closed.value
            self.network.kernel.at(0.0, lambda: listener(StreamEnd(call.stream, error)))
            return
        self._listeners[call.stream] = listener
        if METHODS[call.method].client_streaming:
            self._uploads[call.stream] = None
        request = copy_of(call.request) if call.request is not None else None
        words: dict[str, tuple[str, ...]] = {}
        for key, value in metadata:
            words[key] = (*words.get(key, ()), value)
        self._up.send(lambda: self._accept(call.stream, call.method, request, words))

    def send(self, word: StreamData | StreamEnd) -> None:
        """See ClientConnection.send."""
        if word.stream not in self._listeners:
            return
        if isinstance(word, StreamData):
            message = copy_of(word.message)
            self._up.send(lambda: self._tell(word.stream, lambda stream: StreamData(stream, message)))
        elif word.error is None:
            if word.stream in self._uploads:  # other calls ended with their one request
                self._up.send(lambda: self._tell(word.stream, StreamEnd))
        else:
            self._listeners.pop(word.stream)
            self._up.send(lambda: self._cancelled(word.stream))

    @types.coroutine
    def unary(self, method: AnyMethod | str, request: Message, timeout_s: float, metadata: Metadata = ()) -> Script:
        """One request, one answer. Raises SwarmError. For scripts and coroutines alike."""
        self._own_streams -= 1
        stream, future = self._own_streams, Future()
        name = method if isinstance(method, str) else method.name
        self.open(Call(stream, name, request), lambda answer: settle(future, answer), metadata)
        self.network.kernel.within(future, timeout_s)
        try:
            return (yield future)
        finally:
            if stream in self._listeners:
                self.send(StreamEnd(stream, Aborted("given up")))

    def close(self, reason: str = "the connection is closing") -> None:
        """The caller hangs up: it fails what is open at once, the server hears of it later."""
        self._caller_gone(reason)
        self._up.send(self._server_gone)

    # --- the server's side -----------------------------------------------------------------------------------------

    def answer(self, stream: int, client_stream: int, answer: Answer) -> None:
        """An answer of the manager goes to the caller."""
        if not isinstance(answer, StreamData):
            self._streams.pop(client_stream, None)
            self.server.routes.pop(stream, None)
        if isinstance(answer, StreamEnd):
            word: Answer = StreamEnd(client_stream, answer.error)
        else:
            word = type(answer)(client_stream, copy_of(answer.message))
        self._down.send(lambda: self._hear(word))

    def end_calls(self, why: Callable[[AnyMethod, Peer], SwarmError | None]) -> None:
        """See RpcServer.end_calls."""
        for stream in list(self._streams.values()):
            _, client_stream, peer = self.server.routes[stream]
            error = why(METHODS[self._methods[stream]], peer)
            if error is not None:
                self.answer(stream, client_stream, StreamEnd(stream, error))
                self.server.incoming(StreamEnd(stream, error))

    def drop(self, error: SwarmError) -> None:
        """See ServerConnection.stop: what is still open ends with this error, then the connection."""
        for client_stream, stream in list(self._streams.items()):
            self.answer(stream, client_stream, StreamEnd(stream, error))
            self.server.incoming(StreamEnd(stream, error))
        self.shut()

    def shut(self) -> None:
        """The server closes it: both sides know soon."""
        self._server_gone()
        self._down.send(lambda: self._caller_gone("error reading from server: EOF"))

    def _accept(
        self, client_stream: int, method: str, request: Message | None, words: Mapping[str, tuple[str, ...]]
    ) -> None:
        if self.dropped:
            return
        try:
            peer = self.server.authorizer(METHODS[method], self.peer, words)
        except SwarmError as error:
            refusal = StreamEnd(client_stream, error)
            self._down.send(lambda: self._hear(refusal))
            return
        stream = next(self.server.streams)
        self._streams[client_stream] = stream
        self._methods[stream] = method
        self.server.routes[stream] = (self, client_stream, peer)
        self.server.incoming(Call(stream, method, request, peer))

    def _tell(self, client_stream: int, word: Callable[[int], Word]) -> None:
        stream = self._streams.get(client_stream)
        if stream is not None and not self.dropped:
            self.server.incoming(word(stream))

    def _cancelled(self, client_stream: int) -> None:
        self._tell(client_stream, lambda stream: StreamEnd(stream, Aborted("the caller cancelled")))
        stream = self._streams.pop(client_stream, None)
        if stream is not None:
            self.server.routes.pop(stream, None)

    # --- ends ------------------------------------------------------------------------------------------------------

    def broken(self, reason: str) -> None:
        """The network gave up: each side finds out by itself."""
        kernel = self.network.kernel
        kernel.at(kernel.rng.uniform(0.0, 5.0), lambda: self._caller_gone(reason))
        kernel.at(kernel.rng.uniform(0.0, 5.0), self._server_gone)

    def side_died(self, dead: Caller, silent: bool) -> None:
        """One of the processes is gone; silent: with its host, which does not even say so."""
        kernel = self.network.kernel
        delay = kernel.rng.uniform(20.0, 50.0) if silent else self.network.delay()
        if dead is self.caller:
            self._caller_gone("the process died")
        if dead is self.server.process:
            self.dropped = True
        kernel.at(delay, lambda: self.broken("connection reset by peer"))

    def _hear(self, answer: Answer) -> None:
        listener = self._listeners.get(answer.stream)
        if listener is not None:
            if not isinstance(answer, StreamData):
                del self._listeners[answer.stream]
            listener(answer)

    def _caller_gone(self, reason: str) -> None:
        if self.closed.done:
            return
        self.caller.connections.pop(self.number, None)
        error = Unavailable(f"connection error: desc = {reason}")
        listeners, self._listeners = self._listeners, {}
        self.closed.resolve(error)
        if self.caller.alive:
            for stream, listener in listeners.items():
                listener(StreamEnd(stream, error))

    def _server_gone(self) -> None:
        if self.dropped:
            return
        self.dropped = True
        self.server.process.connections.pop(self.number, None)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            self.server.routes.pop(stream, None)
            self.server.incoming(StreamEnd(stream, Unavailable("connection error: desc = the peer is gone")))
