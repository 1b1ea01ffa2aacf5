"""DNS messages: what clients send, what they get, what upstream servers may say."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay import dns
from tests.overlay.dns_messages import AAAA, PTR, A, answer_to, edns, name_bytes, question, read

LABEL = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,20})", fullmatch=True)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)
PACKED = st.lists(st.binary(min_size=4, max_size=4), max_size=200, unique=True)


@given(NAME, st.sampled_from((A, AAAA, PTR)), st.integers(0, 65_535), st.integers(0, 65_535))
def test_a_query_is_read_as_it_was_written(name: str, kind: int, number: int, udp_bytes: int) -> None:
    query = dns.parse_query(question(name, kind, number=number, udp_bytes=udp_bytes))
    assert (query.name, query.type, query.klass) == (name.lower(), kind, 1)
    assert bool(query.opt) == bool(udp_bytes)
    assert query.udp_bytes == (min(max(udp_bytes, 512), 1_232) if udp_bytes else 512)


@given(NAME, PACKED, st.sampled_from((512, 1_232, 65_535)), st.sampled_from((0, 4_096)))
def test_an_answer_holds_the_addresses_that_fit_and_says_when_there_are_more(
    name: str, packed: list[bytes], room: int, udp_bytes: int
) -> None:
    query = dns.parse_query(question(name, number=321, udp_bytes=udp_bytes))
    wire = dns.addresses(query, packed, room)
    answer = read(wire)
    assert len(wire) <= room
    assert (answer.number, answer.code, answer.authoritative, answer.recursion) == (321, 0, True, True)
    assert answer.question == query.wire[12 : query.end], "the client's spelling"
    expected = [".".join(map(str, one)) for one in packed]
    assert answer.addresses == expected[: len(answer.addresses)]
    assert answer.truncated == (len(answer.addresses) < len(packed))
    assert len(answer.addresses) == min(len(packed), dns.addresses_that_fit(query, room))
    assert answer.udp_bytes == (1_232 if udp_bytes else 0)
    assert answer.ttls <= {5}


def test_a_pointer_answer_has_the_name() -> None:
    query = dns.parse_query(question("11.1.0.10.in-addr.arpa", PTR))
    assert read(dns.pointer(query, "web.1.t1.front")).pointers == ["web.1.t1.front"]


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, ".".join(["x" * 60] * 5), "a."])
def test_what_is_no_name_is_not_written(name: str) -> None:
    with pytest.raises(dns.BadMessage):
        dns.wire_name(name)


@pytest.mark.parametrize(
    "label", [b"a.b", b"caf\xc3\xa9", b"\xff"], ids=["a dot in a label", "letters beyond ASCII", "bytes"]
)
def test_a_name_that_is_no_text_is_nobodys(label: bytes) -> None:
    wire = question("x")
    assert dns.parse_query(wire[:12] + bytes([len(label)]) + label + b"\0" + wire[-4:]).name is None


def test_the_root_is_a_name() -> None:
    assert dns.parse_query(question(".")).name == "."


def code_of(wire: bytes) -> int | None:
    with pytest.raises(dns.BadMessage) as refused:
        dns.parse_query(wire)
    return refused.value.code


def header(flags: int = 0, questions: int = 1, answers: int = 0, authorities: int = 0, additions: int = 0) -> bytes:
    return struct.pack(">HHHHHH", 9, flags, questions, answers, authorities, additions)


QUESTION = name_bytes("web") + b"\0\1\0\1"


@pytest.mark.parametrize(
    "wire",
    [
        header(),
        header() + b"\3we",
        header() + b"\3web",
        header() + b"\3web\0\0\1\0",
        header() + b"\xc0\x0c\0\1\0\1",
        header() + b"\3web\xc0\x0c\0\1\0\1",
        header() + b"\x40web\0\0\1\0\1",
        header() + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1",
        header(questions=0),
        header(questions=2) + QUESTION + QUESTION,
        header() + QUESTION + b"\0",
        header(additions=1) + QUESTION,
        header(additions=1) + QUESTION + b"\0\0\x29\4\xd0\0\0\0\0\0\1",
        header(additions=1) + QUESTION + b"\3web\0\0\x29\4\xd0\0\0\0\0\0\0",
        header(additions=2) + QUESTION + edns(1_232) + edns(1_232),
        header(answers=1) + QUESTION + edns(1_232),
        header(additions=1) + QUESTION + b"\xc0\x30\0\1\0\1\0\0\0\0\0\0",
        header(additions=1) + QUESTION + b"\xc0",
        header(additions=9) + QUESTION + b"\0\0\1\0\1\0\0\0\0\0\0" * 9,
        header(additions=65_535) + QUESTION,
    ],
)
def test_a_broken_query_is_a_format_error(wire: bytes) -> None:
    assert code_of(wire) == dns.FORMAT_ERROR
    answer = read(dns.error(wire, dns.FORMAT_ERROR))
    assert (answer.number, answer.code, answer.question) == (9, dns.FORMAT_ERROR, b"")


@pytest.mark.parametrize("wire", [b"", b"x" * 11, header(0x8000) + QUESTION, bytes(70_000)])
def test_what_is_no_query_at_all_is_not_answered(wire: bytes) -> None:
    assert code_of(wire) is None


def test_other_operations_are_not_implemented() -> None:
    assert code_of(header(0x2800) + QUESTION) == dns.NOT_IMPLEMENTED


def test_an_unknown_version_of_edns_is_named_so() -> None:
    wire = header(additions=1) + QUESTION + edns(1_232, version=1)
    assert code_of(wire) == dns.BAD_VERSION
    assert read(dns.error(wire, dns.BAD_VERSION)).code == dns.BAD_VERSION


def test_a_signature_behind_a_query_is_no_fault() -> None:
    signature = name_bytes("key") + struct.pack(">HHIH", 250, 255, 0, 3) + b"abc"
    query = dns.parse_query(header(additions=2) + QUESTION + edns(4_096) + signature)
    assert (query.name, query.udp_bytes) == ("web", 1_232)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_query_or_a_bad_message(tail: bytes) -> None:
    for wire in (tail, header(additions=1) + tail, header(additions=1) + QUESTION + tail):
        try:
            query = dns.parse_query(wire)
        except dns.BadMessage as bad:
            if bad.code is not None:
                read(dns.error(wire, bad.code))
        else:
            read(dns.empty(query))


def test_upstream_is_asked_with_another_id_and_for_answers_without_fragments() -> None:
    wire = question("example.org", number=7, udp_bytes=4_096)
    sent = dns.upstream_query(dns.parse_query(wire), 999)
    assert sent[:2] == struct.pack(">H", 999)
    asked = dns.parse_query(sent)
    assert (asked.name, asked.udp_bytes, len(sent)) == ("example.org", 1_232, len(wire))
    assert sent.endswith(edns(1_232))


def test_an_answer_to_the_question_is_taken() -> None:
    sent = question("Example.org", number=77)
    assert dns.answers(sent, answer_to(sent, ["192.0.2.1", "192.0.2.2"]))
    lower = answer_to(sent, ["192.0.2.1"]).replace(b"Example", b"example")
    assert dns.answers(sent, lower), "some servers change the spelling"


@pytest.mark.parametrize(
    "received",
    [
        b"",
        answer_to(question("example.org", number=78), []),
        answer_to(question("example.com", number=77), []),
        answer_to(question("example.org", PTR, number=77), []),
        question("example.org", number=77),
        answer_to(question("example.org", number=77), ["192.0.2.1"])[:-1],
        answer_to(question("example.org", number=77), ["192.0.2.1"])[:-5],
        answer_to(question("example.org", number=77), [])[:20],
        struct.pack(">HHHHHH", 77, 0x8180, 0, 0, 0, 0),
        struct.pack(">HHHHHH", 77, 0x8180, 1, 65_535, 65_535, 65_535) + question("example.org")[12:],
        struct.pack(">HHHHHH", 77, 0x8180, 1, 1, 0, 0) + question("example.org")[12:] + b"\xc0\x1d\0\1\0\1" + bytes(6),
        struct.pack(">HHHHHH", 77, 0xA980, 1, 0, 0, 0) + question("example.org")[12:],
    ],
)
def test_what_does_not_answer_the_question_is_not_taken(received: bytes) -> None:
    assert not dns.answers(question("example.org", number=77), received)


def test_an_upstream_answer_has_the_clients_id_and_spelling() -> None:
    query = dns.parse_query(question("eXample.org", number=7))
    found = answer_to(dns.upstream_query(query, 5), ["192.0.2.1"]).replace(b"eXample", b"example")
    answer = read(dns.passed_on(query, found, 512))
    assert (answer.number, answer.addresses, answer.question) == (7, ["192.0.2.1"], query.wire[12 : query.end])
    assert not answer.authoritative


def test_an_upstream_answer_that_is_too_long_asks_for_tcp() -> None:
    query = dns.parse_query(question("example.org"))
    found = answer_to(dns.upstream_query(query, 5), [f"192.0.2.{last}" for last in range(40)])
    answer = read(dns.passed_on(query, found, 512))
    assert (answer.truncated, answer.addresses) == (True, [])
    assert len(read(dns.passed_on(query, found, 65_535)).addresses) == 40


@given(st.binary(max_size=60))
def test_any_bytes_of_an_upstream_server_are_taken_or_not(tail: bytes) -> None:
    sent = question("example.org", number=77)
    end = struct.pack(">HHHHHH", 77, 0x8180, 1, 2, 1, 0) + sent[12:]
    for received in (tail, end + tail):
        dns.answers(sent, received)
