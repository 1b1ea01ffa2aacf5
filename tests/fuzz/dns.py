"""Fuzz target: the names' server: any query of a container, any answer of an upstream server.

Checked: a query has an answer that a plain reader understands, or is passed on, or gets silence; an answer has the
query's ID and question and fits; it tells only what the client may see; a query that is passed on is the same but for
its ID and size; an upstream answer that is taken answers the question. The first byte chooses which of both is meant.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from random import Random

from overlay import dns
from overlay.dns_answers import Forward, respond, room_of
from overlay.names import Names
from tests.overlay.book import DRAINING, network, service, task
from tests.overlay.dns_messages import AAAA, PTR, TXT, A, answer_to, edns, question, read, read_name

CLIENT = IPv4Address("10.0.1.11")
MANY = [task(f"m{number}", f"10.0.1.{number}", "many") for number in range(20, 220)]
SEEN = network(
    "net",
    service("web", "10.0.1.5", "www"),
    service("many"),
    service("idle"),
    *MANY,
    task("t1", "10.0.1.11"),
    task("i1", "10.0.1.12", "idle", DRAINING),
    name="front",
)
ALSO_SEEN = network("back", service("db", "10.0.9.5"), task("t1", "10.0.9.11"), name="back")
HIDDEN = network("other", service("secret", "10.0.8.5"), task("s", "10.0.8.6", "secret"), name="other")
NAMES = Names()
NAMES.replace({state.network.id: state for state in (SEEN, ALSO_SEEN, HIDDEN)})
VISIBLE = {"10.0.1.5", "10.0.9.5", "10.0.9.11"} | {str(one.address) for one in SEEN.endpoints.values()}
SENT = question("Example.org", number=0x4D4D, udp_bytes=1_232)


def one(data: bytes) -> None:
    """One input."""
    if data[:1] >= b"\x80":
        upstream(data[1:])
    else:
        for names in (NAMES, Names()):
            for tcp in (False, True):
                client(data[1:], names, tcp=tcp)


def client(wire: bytes, names: Names, *, tcp: bool) -> None:
    """A container asks."""
    got = respond(wire, "net", CLIENT, names, Random(1), tcp=tcp)
    if isinstance(got, Forward):
        passed_on(wire, got)
        return
    if got is None:
        is_answer = len(wire) < 12 or bool(wire[2] & 0x80)
        assert is_answer or names is not NAMES, "a query without an answer"
        return
    answer = read(got)
    assert got[:2] == wire[:2]
    if not answer.question:
        assert answer.code
        return
    query = dns.parse_query(wire)
    assert len(got) <= room_of(query, tcp=tcp)
    assert answer.question == wire[12 : query.end]
    assert bool(answer.udp_bytes) == bool(query.opt)
    assert set(answer.addresses) <= VISIBLE
    assert not any("secret" in name or name.endswith(".other") for name in answer.pointers)
    assert answer.names <= {read_name(wire, 12)[0]}
    assert not (answer.truncated and tcp)


def passed_on(wire: bytes, forward: Forward) -> None:
    """It is passed on."""
    sent = dns.upstream_query(forward.query, 0x4D4D)
    again = dns.parse_query(sent)
    assert (again.name, again.type, again.klass) == (forward.query.name, forward.query.type, forward.query.klass)
    assert sent[12 : again.end] == wire[12 : again.end]
    assert len(sent) == len(wire)
    assert again.udp_bytes == forward.query.udp_bytes
    failed = read(dns.empty(forward.query, dns.SERVER_FAILURE))
    assert (failed.code, failed.number) == (2, struct.unpack_from(">H", wire)[0])


def upstream(received: bytes) -> None:
    """A server of the host answers."""
    if not dns.answers(SENT, received):
        return
    assert received[:2] == SENT[:2]
    assert received[12:25].lower() == SENT[12:25].lower()
    query = dns.parse_query(question("eXample.ORG", number=5, udp_bytes=1_232))
    for room in (512, 1_232, 65_535):
        told = dns.passed_on(query, received, room)
        assert len(told) <= room
        assert told[:2] == query.wire[:2]
        assert told[12 : query.end] == query.wire[12 : query.end]
        assert len(received) > room or told[query.end :] == received[query.end :]


def seeds() -> list[bytes]:
    """Queries that people send, and answers."""
    names = ("web", "WWW.Front", "many", "tasks.many", "idle", "db.back", "secret", "secret.other", "example.org", ".")
    queries = [question(name, kind) for name in names for kind in (A, AAAA, TXT)]
    queries += [question("many", udp_bytes=size) for size in (511, 1_232, 65_535)]
    queries += [question(f"{last}.in-addr.arpa", PTR) for last in ("11.1.0.10", "5.1.0.10", "6.8.0.10", "x")]
    queries += [question("web", 255), question("web", klass=3), question("web", flags=0x2800), question("web")[:-1]]
    queries.append(question("web")[:10] + b"\0\2" + question("web")[12:] + edns(1_232) + edns(512))
    answers = [answer_to(SENT, ["192.0.2.1"] * count) for count in (0, 1, 40, 100)]
    answers += [answer_to(SENT, [], code=3), answer_to(SENT, ["192.0.2.1"])[:-2], SENT]
    return [b"\0" + one for one in queries] + [b"\xff" + one for one in answers]
