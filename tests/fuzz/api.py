"""Fuzz target: HTTP requests with bodies, filters and versions as no CLI sends them, through the front to a manager.

Everything between is real: front, aiohttp, routes, conversion, control API, store. Checked: each request is answered
once, with a message when it is refused; nothing is a bug of ours (what stock engines answer with 500 is none); who is
refused has changed nothing; whatever is taken can be shown again; secrets are never shown.
"""

from __future__ import annotations

import asyncio
import atexit
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

from engine_api.app import API_KEY, build_app
from engine_api.backend import InitRequest, JoinRequest, LocalNode, LocalNodeState
from engine_api.convert.address import Interface, resolve_init
from engine_api.front.backends import Backends, Upstream, make_runner
from engine_api.front.front import Front
from engine_api.front.policy import FullAccess
from engine_api.server.fragments import Fragments
from engine_api.server.request import EngineHooks
from swarm import api
from swarm.api.methods import Method, Req, Res
from swarm.api.objects import KINDS
from swarm.errors import Unavailable
from swarm.rpc import Reply, StreamEnd
from tests.engine_api.route_table import IS_LOCAL
from tests.fuzz import house
from tests.fuzz.feed import Feed
from tests.fuzz.house import ROOT, SECRET_VALUE, House
from tests.fuzz.http1 import Wire

GOLDEN = Path(__file__).parents[1] / "golden" / "stock-20.10"
REQUESTS_MAX = 12
VERSIONS = ("", "/v1.41", "/v1.40", "/v1.24", "/v1.25", "/v1.30", "/v1.39", "/v1.12", "/v9.9", "/v1.", "/v" + "9" * 40)
CREATES = (
    "/services/create",
    "/secrets/create",
    "/configs/create",
    "/networks/create",
    "/swarm/update",
    "/swarm/init",
    "/swarm/join",
    "/swarm/unlock",
)
OTHERS = (
    *(
        ("GET", f"/{plural}")
        for plural in ("services", "tasks", "nodes", "secrets", "configs", "swarm", "swarm/unlockkey")
    ),
    *((verb, f"/{plural}/ID") for plural in ("services", "nodes", "secrets", "configs") for verb in ("GET", "DELETE")),
    ("GET", "/tasks/ID"),
    ("GET", "/services/ID/logs"),
    ("GET", "/tasks/ID/logs"),
    ("GET", "/networks"),
    ("GET", "/networks/ID"),
    ("DELETE", "/networks/ID"),
    ("POST", "/networks/prune"),
    ("POST", "/networks/ID/connect"),
    ("POST", "/swarm/leave"),
    ("OPTIONS", "/x"),
    ("PUT", "/services"),
)
UPDATES = ("/services/ID/update", "/nodes/ID/update", "/secrets/ID/update", "/configs/ID/update")
# written into JSON as they are
TOKENS = (
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "1e400",
    "-0.0",
    "9223372036854775808",
    "1" + "0" * 30,
    '""',
    '"x"',
    "[]",
    "{}",
    '"\\ud800"',
    '"\\u0000"',
    '"QUJD"',
    '"QUJ"',
    "[null]",
    '{"a":null}',
    "[[[[1]]]]",
    "NaN",
    "01",
    '"' + "a" * 300 + '"',
    '"{{.Node.ID}}"',
    '"{{"',
    '"24h"',
    '"-5s"',
    '"10.0.0.0/24"',
    '"::1"',
    '"tcp"',
    '"host"',
    '"default"',
    "4294967296",
    "[" * 1500,
    "[" * 700,
    '{"a":' * 450,
    "[" + "1," * 20_000 + "1]",
    "[" + "[1.5]," * 5_000 + "1}",
    "[" + '"A=b",' * 4_000 + "1]",
    '"' + "\\n" * 40_000,
    '"' + "\\ud83d" * 5_000 + '"',
    "1" * 20_000,
    "1e" + "9" * 20_000,
    '"' + "QUJD" * 10_000 + '*"',
    '"{{$x := js `' + "<" * 2_000 + "`}}" + "{{$x = js $x}}" * 40 + '"',
    '"' + "{{1}}" * 3_000 + '"',
    "100001",
)
FILTERS = (
    '{"name":{"a":true}}',
    '{"name":["a"]}',
    '{"x":[]}',
    "[]",
    "null",
    '{"name":1}',
    '{"label":["a=b","c"]}',
    "{",
    "",
    '{"desired-state":["running","x"]}',
    '{"role":["manager"]}',
    '{"service":["web"]}',
    '{"mode":["global"]}',
    '{"name":["(a*)*$"],"id":["["]}',
    '{"name":["a.*b?$"],"type":["custom"],"dangling":["true","x"]}',
    '{"until":["1h"],"label!":["a"]}',
    '{"until":["9999999999999999h"]}',
    "[" * 3000,
    "[" * 800,
)


class Daemon:
    """Drives a Manager in the place of the daemon that the routes talk to."""

    place: House

    def local(self) -> LocalNode:
        return LocalNode(LocalNodeState.ACTIVE, "n1", "10.0.0.1", True, "", (("n1", "10.0.0.1:2377"),))

    def require_manager(self) -> None:
        pass

    async def call(self, method: Method[Req, Res], request: Req) -> Res:
        """See SwarmBackend."""
        for answer in self.place.call(method.name, request):
            if isinstance(answer, Reply):
                return method.checked_response(answer.message)
            if isinstance(answer, StreamEnd) and answer.error is not None:
                raise answer.error
        raise Unavailable("not answered at once")

    async def stream(self, method: Method[Req, Res], request: Req) -> AsyncIterator[Res]:
        """See SwarmBackend."""
        message = api.SubscribeLogsMessage()
        message.messages.add(data=b"a line\n", stream=api.LOG_STREAM_STDOUT).context.node_id = "n1"
        yield method.checked_response(message)

    async def init(self, request: InitRequest) -> str:
        """See SwarmBackend."""
        interfaces = [Interface("eth0", (ip_address("10.99.0.1"),), device=True)]
        resolve_init(request.listen_addr, request.advertise_addr, request.data_path_addr, interfaces, lambda: ())
        return "n1"

    async def join(self, request: JoinRequest) -> None:
        """See SwarmBackend."""

    async def leave(self, force: bool) -> None:
        """See SwarmBackend."""

    async def unlock(self, key: str) -> None:
        """See SwarmBackend."""


def _bodies() -> list[Any]:
    """What clients of a stock engine sent, and what it showed."""
    found = []
    for trace in sorted((GOLDEN / "trace").glob("*.jsonl")):
        for line in trace.read_text().splitlines():
            body = json.loads(line)[3]
            if isinstance(body, dict) and body not in found:
                found.append(body)
    for name in ("service_full", "swarm", "nodes_3", "secrets", "configs"):
        shown = json.loads((GOLDEN / "api" / f"{name}.json").read_text())
        found.append((shown[0] if isinstance(shown, list) else shown)["Spec"])
    found.append(
        {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Spec": found[-4], "DefaultAddrPool": ["10.1.0.0/16"]}
    )
    found.append(
        {"RemoteAddrs": ["10.0.0.1"], "JoinToken": "SWMTKN-1-x", "ListenAddr": "0.0.0.0", "Availability": "drain"}
    )
    found.append({"UnlockKey": "SWMKEY-1-x"})
    address = {
        "Subnet": "10.7.0.0/16",
        "IPRange": "10.7.1.0/24",
        "Gateway": "10.7.0.9",
        "AuxiliaryAddresses": {"a": "b"},
    }
    ipam = {"Driver": "default", "Options": {"a": "b"}, "Config": [address]}
    network = {"Name": "net", "Driver": "overlay", "Attachable": True, "Labels": {"a": "b"}, "Options": {"c": "d"}}
    found.append({**network, "IPAM": ipam, "Scope": "swarm", "Ingress": False, "EnableIPv6": True, "Internal": True})
    found.append({"Name": "net", "Driver": "bridge", "Scope": "swarm", "ConfigFrom": {"Network": "x"}})
    return found


def changed(feed: Feed, body: Any) -> str:
    """The body with some values replaced, and some keys removed, repeated or spelled otherwise."""
    copy = json.loads(json.dumps(body))
    tokens: list[str] = []
    for _ in range(feed.byte() % 6):
        _change(feed, copy, tokens)
    text = json.dumps(copy)
    for number, token in enumerate(tokens):
        text = text.replace(f'"@{number}@"', token)
    return text


def _change(feed: Feed, value: Any, tokens: list[str]) -> None:
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = feed.choice(keys) if keys else None
        inner = value[key] if key is not None else None
        if isinstance(inner, dict | list) and inner and feed.byte() < 200:
            value = inner
            continue
        how = feed.byte()
        tokens.append(feed.choice(TOKENS) if how < 220 else json.dumps(feed.some().decode("utf-8", "replace")))
        mark = f"@{len(tokens) - 1}@"
        if isinstance(value, list):
            if key is None or how & 1:
                value.append(mark)
            else:
                value[key] = mark
        elif how & 15 == 15 and key is not None:
            del value[key]
        elif how & 15 == 14 and key is not None:
            value[key.upper() if how & 16 else key.lower()] = mark
        else:
            value["x" if key is None else key] = mark
        return


class Visit:
    """Drives the front, aiohttp, the routes and a manager with the requests of one client."""

    def __init__(self) -> None:
        self.place = _DAEMON.place = House(_START)
        _APPLICATION[API_KEY].fragments = Fragments()

    async def play(self, feed: Feed) -> None:
        server = _RUNNER.server
        assert server is not None
        backends = Backends(server, IS_LOCAL, _no_engine, "none", linger_s=0.0)
        for _ in range(REQUESTS_MAX):
            if not feed:
                break
            await self._one(feed, backends)

    async def _one(self, feed: Feed, backends: Backends) -> None:
        before = self.place.content()
        line, body, headers = self.request(feed)
        status, answer = await self.ask(backends, line, body, headers)
        said = (line, body[:300], status, answer[:300])
        assert b"see the log of the daemon" not in answer, said
        assert b"its log says why" not in answer, said
        if status >= 400:
            assert self.place.content() == before, said
            assert answer.startswith(b'{"message":') or " /v1." in line, said  # bare below 1.24
        elif line.startswith("POST") and self.place.content() != before:
            await self._shows(backends, said)

    async def _shows(self, backends: Backends, said: tuple[object, ...]) -> None:
        for plural in ("services", "tasks", "nodes", "secrets", "configs", "networks", "swarm"):
            status, shown = await self.ask(backends, f"GET /{plural}")
            assert status == 200, (said, plural, shown[:300])
            json.loads(shown)
            assert SECRET_VALUE not in shown
            assert b64encode(SECRET_VALUE) not in shown
            assert (ROOT.key_pem or b"").splitlines()[1] not in shown

    def request(self, feed: Feed) -> tuple[str, bytes, list[str]]:
        """Request line (without version of HTTP), body and headers."""
        action, version = feed.byte(), feed.choice(VERSIONS) if feed.byte() > 128 else ""
        store = self.place.store
        objects = [obj for kind in KINDS.values() for obj in store.all(kind.message)]
        body = b""
        if action < 60:
            verb, path = feed.choice(OTHERS)
        else:
            verb, path = "POST", feed.choice(CREATES) if action < 160 else feed.choice(UPDATES)
            how = feed.byte()
            text = changed(feed, feed.choice(_BODIES)) if how < 230 else feed.some().decode("latin-1")
            body = text.encode("utf-8", "surrogatepass")[: feed.byte() if how in (228, 229) else None]
        chosen: Any = feed.choice(objects)
        query = [
            f"version={chosen.meta.version.index if feed.byte() < 200 else feed.choice(('x', '-1', '1' * 70, ''))}"
        ]
        if feed.byte() & 1:
            filters = feed.choice(FILTERS) if feed.byte() < 200 else feed.some().decode("latin-1")
            query.append("filters=" + quote(filters))
        if feed.byte() & 1:
            name = feed.choice(
                ("force", "status", "insertDefaults", "rollback", "registryAuthFrom", "rotateWorkerToken")
            )
            query.append(f"{name}={quote(feed.choice(('1', 'true', 'x', 'previous', 'spec', chr(0), '')))}")
        if feed.byte() & 3 == 3:
            name = feed.choice(("tail", "since", "until", "stdout", "follow"))
            query.append(f"{name}={feed.choice(('1', 'all', '1.5', '-1', 'x', '1e9', '9' * 30))}")
        word = chosen.id if feed.byte() < 230 else quote(feed.some().decode("latin-1"), safe="") or "x"
        headers = ["X-Registry-Auth: " + feed.choice(("", "e30=", "x"))] if feed.byte() & 1 else []
        if feed.byte() != 7:
            headers.append("Content-Type: application/json")
        return f"{verb} {version}{path.replace('ID', word)}?{'&'.join(query)}", body, headers

    async def ask(
        self, backends: Backends, line: str, body: bytes = b"", headers: list[str] | None = None
    ) -> tuple[int, bytes]:
        """One request over a connection of its own."""
        front, wire = Front(backends, set(), FullAccess()), Wire()
        front.connection_made(wire)  # type: ignore[arg-type]
        lines = [f"{line} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *(headers or ()), "", ""]
        front.data_received("\r\n".join(lines).encode("latin-1") + body)
        for _ in range(1_000):
            await asyncio.sleep(0)
            if (answer := _answer(bytes(wire.output))) is not None:
                break
        else:
            raise AssertionError(f"no answer: {line} {bytes(wire.output)!r}")
        front.connection_lost(None)
        return answer


def _answer(output: bytes) -> tuple[int, bytes] | None:
    head, found, body = output.partition(b"\r\n\r\n")
    if not found:
        return None
    lowered = head.lower()
    if b"content-length: " in lowered:
        size = int(lowered.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return (int(head[9:12]), body) if len(body) >= size else None
    if b"transfer-encoding: chunked" in lowered:
        return (int(head[9:12]), body) if body.endswith(b"0\r\n\r\n") else None
    return int(head[9:12]), body


async def _no_engine(upstream: Upstream) -> None:
    raise OSError(2, "no engine here")


def one(data: bytes) -> None:
    """The whole of one input."""
    _LOOP.run_until_complete(Visit().play(Feed(data)))


_START = house.furnish()
_BODIES = _bodies()
_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)
_DAEMON = Daemon()
_APPLICATION = build_app(_DAEMON, lambda: "1.41", lambda: "Docker/20.10.24", hooks=EngineHooks(), rng=Random(1))
_RUNNER = _LOOP.run_until_complete(make_runner(_APPLICATION))


def seeds() -> list[bytes]:
    """Inputs to begin with: each route plain, then with each body, changed at one place."""
    out = [bytes((0, 0, number)) + bytes(8) for number in range(len(OTHERS))]
    for number in range(len(_BODIES)):
        for path in range(len(CREATES)):
            out += [
                bytes((100, 0, path, 0, 0, number)) + bytes(7),
                bytes((100, 0, path, 0, number, 3, path)) + bytes(9),
            ]
    for number in range(len(UPDATES)):
        out.append(bytes((200, 0, number, 0, 0, 9 + number)) + bytes(7))
    joined = [b"".join(out[start : start + 8]) for start in range(0, len(out), 8)]
    return out[:: len(CREATES)] + joined
