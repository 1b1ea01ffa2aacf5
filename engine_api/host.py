"""This host's addresses, and the texts for requests that do not fit the state of its node.

(moby: daemon/cluster/listen_addr.go, listen_addr_linux.go, noderunner.go)
"""

from __future__ import annotations

import errno
import os
import socket

from certs.errors import CertsError
from engine_api.convert import address
from engine_api.errors import ApiError
from overlay.io import netlink
from swarm import api
from swarm.address import join_host_port, parse_host_port
from swarm.errors import SwarmError
from swarm.node.events import Refusal
from swarm.node.state import Addresses, NodeState

NOT_IN_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this "
    "command on a manager node or promote the current node to a manager."
)
PREPARING = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
TIMED_OUT = (
    "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the "
    '"docker info" command to see the current swarm status of your node.'
)
LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager "
    "erases all current state of the swarm. Use `--force` to ignore this message. "
)
LOCKED = (
    'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'
)
LEAVE_LOCKED = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message."
SUPPRESS = "Use `--force` to suppress this message."
REFUSALS = {
    Refusal.IN_SWARM: ALREADY,
    Refusal.NOT_IN_SWARM: "This node is not part of a swarm",
    Refusal.NO_MANAGER: WORKER,
    Refusal.LOCKED: LOCKED,
    Refusal.NOT_LOCKED: "swarm is not locked",
    Refusal.STILL_JOINING: TIMED_OUT,
    Refusal.LEFT: "`docker swarm leave` ended the attempt to join",
    Refusal.STOPPING: "this daemon is being stopped",
}
"""What users are told when a request does not fit the state of this node. Refusal.MANAGER needs the cluster for it."""
LISTEN_FAILED = "failed to listen on remote API address: listen tcp"
EXPECTED = (SwarmError, CertsError, OSError, TimeoutError)
"""Errors that can happen in operation; any other exception is a bug."""
_BIND_ERRORS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
AVAILABILITY = {
    "": api.NodeSpec.ACTIVE,
    "active": api.NodeSpec.ACTIVE,
    "pause": api.NodeSpec.PAUSE,
    "drain": api.NodeSpec.DRAIN,
}


def interfaces() -> list[address.Interface]:
    """The interfaces of this network namespace, as the rules of engine_api.convert.address want them."""
    by_index: dict[int, list[address.Address]] = {}
    for entry in netlink.addresses():
        if not entry.ip.is_link_local:
            by_index.setdefault(entry.index, []).append(entry.ip)
    return [
        address.Interface(link.name, tuple(by_index.get(link.index, ())), link.up, link.loopback, not link.kind)
        for link in netlink.links()
    ]


def addresses_of(endpoints: address.Endpoints) -> Addresses:
    """The addresses that a node stores. Raises ApiError for a port that is not a number."""
    return Addresses(
        listen_host=endpoints.listen_host,
        listen_port=port_of(endpoints.listen_port),
        advertise_host=endpoints.advertise_host,
        advertise_port=port_of(endpoints.advertise_port),
        local_addr=endpoints.local_addr,
        data_path_addr=endpoints.data_path_addr,
    )


def address_towards(remote: str) -> str:
    """The address this host would call ``remote`` ("host:port") from; empty: no route. Nothing is sent."""
    try:
        host, port = parse_host_port(remote)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""


def port_of(text: str) -> int:
    """A port number. Raises ApiError with stock's text, which stock engines give only when they bind."""
    if text.isdigit() and int(text) < 65536:
        return int(text)
    raise ApiError(f"manager stopped: {LISTEN_FAILED}: address tcp/{text}: unknown port")


def availability_of(text: str) -> int:
    """The availability that a node requests when it joins. Raises ApiError for an unknown word."""
    if text not in AVAILABILITY:
        raise ApiError(f'invalid Availability: "{text}"')
    return AVAILABILITY[text]


def start_error(error: BaseException, state: NodeState | None) -> str:
    """Why this node's roles did not start, in users' terms. state: has the address that a manager listens on."""
    if isinstance(error, TimeoutError):
        return "manager stopped: timed out waiting for it to become the leader of its new cluster"
    text = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno in _BIND_ERRORS and state is not None:
        listen = join_host_port(state.listen_host, state.listen_port)
        text = f"{LISTEN_FAILED} {listen}: bind: {os.strerror(error.errno).lower()}"
    return f"manager stopped: {text}" if isinstance(error, OSError) else text


def join_error(error: BaseException) -> ApiError:
    """Status and text of a failed join (SURFACE: swarm life cycle)."""
    if isinstance(error, SwarmError):
        status = {3: 400, 9: 400, 14: 503}.get(int(error.code), 500)
        return ApiError(error.rpc_text, status)
    return ApiError(str(error), 500)
