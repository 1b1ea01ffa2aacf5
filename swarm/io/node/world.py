"""What a node uses in production to get its certificates: sockets, asyncio, and the system's clock."""

from __future__ import annotations

import asyncio
import time

from certs.keys import new_csr, new_private_key
from swarm.io.grpc import client
from swarm.node.bootstrap import NewKey, World


def _new_key() -> NewKey:
    key = new_private_key()
    return NewKey(key, new_csr(key))


REAL = World(dial=client.connect, sleep=asyncio.sleep, now=time.time, new_key=_new_key)
