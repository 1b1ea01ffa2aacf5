"""What is done with a query."""

from __future__ import annotations

from ipaddress import IPv4Address
from random import Random

import pytest

from overlay.dns_answers import Forward, respond
from overlay.model import NetworkState
from overlay.names import Names
from tests.overlay.book import network, service, task
from tests.overlay.dns_messages import AAAA, MX, PTR, TXT, Answer, question, read

CLIENT = IPv4Address("10.0.1.200")
TASKS = [task(f"t{number}", f"10.0.1.{number}", "many") for number in range(10, 190)]
BOOK = network(
    "net", service("web", "10.0.1.5"), service("many"), service("idle"), *TASKS, task("c", "10.0.1.9"), name="front"
)


def names_of(*states: NetworkState) -> Names:
    names = Names()
    names.replace({state.network.id: state for state in states})
    return names


NAMES = names_of(BOOK)


def ask(wire: bytes, *, names: Names = NAMES, tcp: bool = False, seed: int = 1) -> Answer:
    answer = respond(wire, "net", CLIENT, names, Random(seed), tcp=tcp)
    assert isinstance(answer, bytes)
    return read(answer)


def is_forwarded(wire: bytes, names: Names = NAMES) -> bool:
    return isinstance(respond(wire, "net", CLIENT, names, Random(1), tcp=False), Forward)


def test_a_name_is_answered_whatever_its_spelling() -> None:
    for name in ("web", "WEB", "wEb.front", "web.FRONT."):
        answer = ask(question(name))
        assert (answer.code, answer.addresses) == (0, ["10.0.1.5"])
        assert answer.question == question(name)[12:]


@pytest.mark.parametrize("kind", [AAAA, MX, TXT, 65])
def test_a_name_has_no_other_records_but_exists(kind: int) -> None:
    answer = ask(question("web", kind))
    assert (answer.code, answer.addresses, answer.authoritative) == (0, [], True)


def test_a_name_without_anything_ready_exists() -> None:
    answer = ask(question("idle"))
    assert (answer.code, answer.addresses) == (0, [])


def test_many_addresses_come_whole_by_tcp_and_as_many_as_fit_by_udp() -> None:
    everything = {str(one.address) for one in TASKS}
    whole = ask(question("many"), tcp=True)
    assert (set(whole.addresses), whole.truncated) == (everything, False)
    for udp_bytes, count in ((0, 30), (512, 29), (1_232, 74), (65_535, 74)):
        part = ask(question("many", udp_bytes=udp_bytes))
        assert (len(set(part.addresses)), part.truncated) == (count, True)
        assert set(part.addresses) <= everything


def test_the_order_of_addresses_changes() -> None:
    assert len({tuple(ask(question("many"), tcp=True, seed=seed).addresses) for seed in range(9)}) > 1
    firsts = {ask(question("many"), seed=seed).addresses[0] for seed in range(200)}
    assert len(firsts) > 50, "every address is sometimes the first, also of those that do not fit"


def test_addresses_have_names() -> None:
    assert ask(question("9.1.0.10.in-addr.arpa", PTR)).pointers == ["c.1.c.front"]
    assert ask(question("5.1.0.10.IN-ADDR.arpa", PTR)).pointers == ["web.front"]


def test_what_is_not_ours_is_passed_on() -> None:
    for name in ("example.org", "nothing", "web.example.org", ".", "tasks.nothing", "x" * 63):
        assert is_forwarded(question(name))
    assert is_forwarded(question("1.2.0.192.in-addr.arpa", PTR))


def test_other_classes_are_refused() -> None:
    assert ask(question("version.bind", TXT, klass=3)).code == 5


def test_a_broken_query_is_told_so_and_an_answer_is_not_answered() -> None:
    assert ask(question("web") + b"x").code == 1
    assert ask(question("web", flags=0x2800)).code == 4
    assert respond(question("web", flags=0x8000), "net", CLIENT, NAMES, Random(1), tcp=False) is None
    assert respond(b"short", "net", CLIENT, NAMES, Random(1), tcp=False) is None


@pytest.mark.parametrize("names", [Names(), names_of(network("other"))], ids=["no book", "not this network's"])
def test_while_the_network_is_unknown_names_that_may_be_ours_get_no_answer(names: Names) -> None:
    for wire in (question("web"), question("tasks.web", AAAA), question("Tasks.web.front")):
        assert respond(wire, "net", CLIENT, names, Random(1), tcp=False) is None
    forwarded = respond(question("example.org"), "net", CLIENT, names, Random(1), tcp=False)
    assert isinstance(forwarded, Forward)
    assert not forwarded.book
    known = respond(question("example.org"), "net", CLIENT, NAMES, Random(1), tcp=False)
    assert isinstance(known, Forward)
    assert known.book


@pytest.mark.parametrize("also_outside", [False, True])
def test_foreign_names_are_refused_to_who_is_only_on_internal_networks(also_outside: bool) -> None:
    inside = network("net", service("web", "10.0.1.5"), task("t1", str(CLIENT)), internal=True)
    other = network("other", *[task("t1", "10.0.2.9")] if also_outside else [])
    more = network("more", task("t1", "10.0.3.9"), internal=True)
    names = names_of(inside, other, more)
    assert ask(question("web"), names=names).addresses == ["10.0.1.5"]
    if also_outside:
        assert is_forwarded(question("example.org"), names)
    else:
        assert ask(question("example.org"), names=names).code == 5
        assert ask(question("1.2.0.192.in-addr.arpa", PTR), names=names).code == 5


def test_until_the_managers_told_the_engine_says_whether_a_network_is_internal() -> None:
    refused = respond(question("example.org"), "net", CLIENT, Names(), Random(1), tcp=False, internal=True)
    assert isinstance(refused, bytes)
    assert read(refused).code == 5
    assert respond(question("web"), "net", CLIENT, Names(), Random(1), tcp=False, internal=True) is None
    told = respond(question("example.org"), "net", CLIENT, NAMES, Random(1), tcp=False, internal=True)
    assert isinstance(told, Forward), "the managers' word counts"
