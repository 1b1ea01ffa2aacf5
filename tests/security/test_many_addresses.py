"""Attacks on the cluster port from many addresses at once, each of which keeps below what an address may do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from certs.tls import client_context
from swarm import api, defaults
from swarm.api import rpc
from swarm.grpc import frames as h2
from swarm.store.tx import Tx
from tests.security.attacked_manager import OTHER_WORKER, WORKER, AttackedManager, framed, settled

ADDRESSES = [f"127.1.{number >> 8}.{number & 255}" for number in range(1, 301)]
NODE_ADDRESS, OTHER_ADDRESS = "127.9.0.1", "127.9.0.2"
ROOT = framed(api.GetRootCACertificateRequest())
ANONYMOUS_MAX = 40


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_MAX", ANONYMOUS_MAX)
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX", 20)


class ConnectionFlood:
    """Connections from all of the addresses, again and again: an address whose connection is closed comes back."""

    def __init__(
        self, attacked: AttackedManager, hello: bytes, context: ssl.SSLContext | None, requests: bytes = b""
    ) -> None:
        self.came = 0
        self.turned_away = 0
        self.most = 0
        self._fort = attacked
        self._hello = hello
        self._context = context
        self._requests = requests
        self._open: dict[str, asyncio.StreamWriter] = {}
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            for address in ADDRESSES:
                await self._come(address)

    async def _come(self, address: str) -> None:
        held = self._open.pop(address, None)
        if held is not None:
            held.transport.abort()
        self.came += 1
        server_name = "swarm-manager" if self._context else None
        try:
            _, writer = await asyncio.open_connection(
                *self._fort.address, local_addr=(address, 0), ssl=self._context, server_hostname=server_name
            )
        except (OSError, ssl.SSLError):
            self.turned_away += 1
        else:
            writer.write(self._hello + self._requests)
            self._open[address] = writer
        self.most = max(self.most, len(self._fort.server._admission._anonymous))

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for writer in self._open.values():
            writer.transport.abort()


@contextlib.asynccontextmanager
async def flood(
    attacked: AttackedManager, hello: bytes, tls: bool, requests: bytes = b""
) -> AsyncIterator[ConnectionFlood]:
    """Begins when every address has connected once, and continues until the block ends."""
    made = ConnectionFlood(attacked, hello, client_context(attacked.client_tls(None)) if tls else None, requests)
    try:
        await settled(lambda: made.came > len(ADDRESSES))
        yield made
    finally:
        await made.stop()


@pytest.mark.parametrize(
    ("hello", "tls"),
    [
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", False, id="half a handshake"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", False, id="not TLS"),
        pytest.param(h2.PREFACE + h2.settings_frame({}), True, id="anonymous"),
    ],
)
async def test_members_are_served_and_let_in_during_a_flood_from_everywhere(
    attacked: AttackedManager, hello: bytes, tls: bool
) -> None:
    def move(tx: Tx) -> None:
        tx.edit(api.Node, WORKER).status.addr = NODE_ADDRESS

    await attacked.write(move)  # it has not connected since the manager started; its address is in the store
    with capture_logs() as logs:
        async with attacked.served_meanwhile(), flood(attacked, hello, tls) as anonymous:
            for _ in range(20):
                member = await attacked.connect(attacked.worker(OTHER_WORKER))
                await member.unary(rpc.GET_ROOT_CA_CERTIFICATE, api.GetRootCACertificateRequest())
                member.close()
                await attacked.intrude(attacked.worker(), source=NODE_ADDRESS)  # at the first try
    assert anonymous.most <= ANONYMOUS_MAX
    said = {(entry["event"], entry["peer"].partition(":")[0]) for entry in logs}
    assert len(logs) == len(said)


async def test_half_requests_from_many_addresses_end_the_oldest_of_them(
    attacked: AttackedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "RPC_ANONYMOUS_CONNECTIONS_PER_S_MAX", 500)
    monkeypatch.setattr(defaults, "RPC_UNFINISHED_UNKNOWN_ADDRESSES_BYTES_MAX", 200_000)
    half = (30_000).to_bytes(5, "big") + b"x" * 20_000
    async with attacked.served_meanwhile():
        intruders = []
        for address in ADDRESSES[:ANONYMOUS_MAX]:
            intruder = await attacked.intrude(source=address)
            intruder.request(1, "NodeCA/IssueNodeCertificate", half, end=False)
            await intruder.alive()
            intruders.append(intruder)
        for intruder in intruders[: ANONYMOUS_MAX - 10]:
            await intruder.end()
        for intruder in intruders[ANONYMOUS_MAX - 9 :]:
            await intruder.alive()
        joiner = await attacked.intrude(source=OTHER_ADDRESS)
        joiner.request(1, "CA/GetRootCACertificate", ROOT)
        assert await joiner.answer() == (0, "")
