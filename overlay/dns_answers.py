"""What to do with a client's query: answer it, pass it on, or stay silent."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random

from overlay import dns
from overlay.names import Names


@dataclass(slots=True)
class Forward:
    """Ask the host's resolvers. book: whether we know the client's names; without it no "no such name" is passed on."""

    query: dns.Query
    book: bool


def respond(
    wire: bytes,
    network_id: str,
    client: IPv4Address,
    names: Names,
    random: Random,
    *,
    tcp: bool,
    internal: bool = False,
) -> bytes | Forward | None:
    """The answer to a query that came in on a network; None: none, so that the client asks again.

    internal: of the network, as long as `names` does not know it. Names of others are refused to clients that are only
    on internal networks: questions leave the host, and could carry data out (as CVE-2024-29018 of the engine).
    """
    try:
        query = dns.parse_query(wire)
    except dns.BadMessage as bad:
        return None if bad.code is None else dns.error(wire, bad.code)
    if query.klass != dns.CLASS_IN:
        return dns.empty(query, dns.REFUSED)
    book = names.knows(network_id)
    if book:
        if answer := _known(query, network_id, client, names, random, tcp=tcp):
            return answer
        internal = names.is_shut_in(network_id, client)
    elif _could_be_ours(query.name):
        return None
    return dns.empty(query, dns.REFUSED) if internal else Forward(query, book)


def _known(
    query: dns.Query, network_id: str, client: IPv4Address, names: Names, random: Random, *, tcp: bool
) -> bytes | None:
    """The answer if the name is ours, whatever the type: what is asked about our names never leaves the node."""
    if query.name is None:
        return None
    if query.type == dns.PTR:
        found = names.pointer(network_id, client, query.name)
        if found is not None:
            return _pointer(query, found)
    addresses = names.addresses(network_id, client, query.name)
    if addresses is None:
        return None
    if query.type not in (dns.A, dns.ANY):
        return dns.empty(query)
    room = room_of(query, tcp=tcp)
    if len(addresses) > 1:
        fit = dns.addresses_that_fit(query, room)
        chosen = random.sample(addresses, min(fit + 1, len(addresses)))  # one too many says that there are more
        return dns.addresses(query, chosen, room)
    return dns.addresses(query, addresses, room)


def _pointer(query: dns.Query, name: str) -> bytes:
    try:
        return dns.pointer(query, name)
    except dns.BadMessage:
        return dns.empty(query)


def room_of(query: dns.Query, *, tcp: bool) -> int:
    """Bytes of the longest answer."""
    return dns.MESSAGE_BYTES_MAX if tcp else query.udp_bytes


def _could_be_ours(name: str | None) -> bool:
    return name is not None and name != "." and ("." not in name or name.startswith("tasks."))
