"""CPU of the gRPC server per unary call over mTLS: ``python -m tests.bench.rpc_bench [connections] [seconds]``.

The server runs in a process of its own, so that its CPU time is only its own; clients call in a closed loop.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection as Pipe

import uvloop

from certs.tls import Credentials, server_context
from swarm import api
from swarm.api import rpc
from swarm.errors import SwarmError
from swarm.grpc.authorize import ClusterAuthorizer
from swarm.io.grpc import client
from swarm.io.grpc.server import RpcServer
from swarm.rpc import Call, Reply, StreamData, StreamEnd
from tests.conftest import Authority

REQUEST = api.HeartbeatRequest(session_id="s" * 25)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def serve(pipe: Pipe, credentials: Credentials, roots_pem: bytes) -> None:
    """The server's process: sends its address, then its CPU time and call count whenever asked."""
    calls = itertools.count()
    response = api.HeartbeatResponse()
    response.period.FromSeconds(5)

    async def main() -> None:
        def handler(event: Call | StreamData | StreamEnd) -> None:
            if isinstance(event, Call):
                next(calls)
                server.send(Reply(event.stream, response))

        context = server_context(credentials, roots_pem)
        authorizer = ClusterAuthorizer("cluster1", lambda node_id: False)
        server = RpcServer(handler, lambda: context, authorizer, itertools.count(1))
        await server.listen("127.0.0.1", 0)
        pipe.send(server.addresses[0])
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(None, pipe.recv):
            rss = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))  # noqa: ASYNC230, SIM115
            pipe.send((cpu_s(), next(calls), int(rss.split()[1])))

    uvloop.run(main())


async def load(address: str, authority: Authority, connections: int, seconds: float, pipe: Pipe) -> None:
    tls = authority.client(authority.issue("w1", "swarm-worker"))
    opened = [await client.connect(address, tls, 30.0) for _ in range(connections)]
    stop = False

    async def one(connection: client.ClientConnection) -> None:
        while not stop:
            await connection.unary(rpc.HEARTBEAT, REQUEST, 5.0)

    tasks = [asyncio.create_task(one(connection)) for connection in opened]
    await asyncio.sleep(1)
    pipe.send(True)
    cpu, calls, _ = pipe.recv()
    mine, started = cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    pipe.send(True)
    cpu_after, calls_after, rss = pipe.recv()
    count = calls_after - calls
    elapsed = time.monotonic() - started
    print(  # noqa: T201
        f"{connections} connections: {count / elapsed:.0f} calls/s, "
        f"server {(cpu_after - cpu) / count * 1e6:.0f} us/call, "
        f"client {(cpu_s() - mine) / count * 1e6:.0f} us/call, server RSS {rss >> 10} MiB"
    )
    stop = True
    for connection in opened:
        connection.close()
    for task in tasks:
        try:
            await task
        except SwarmError:
            continue


def main() -> None:
    connections = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    authority = Authority()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, authority.issue("m1"), authority.pem), daemon=True
    )
    process.start()
    uvloop.run(load(ours.recv(), authority, connections, seconds, ours))
    ours.send(False)
    process.join()


if __name__ == "__main__":
    main()
