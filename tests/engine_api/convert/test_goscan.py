"""Reading JSON costs little, whatever is in it: the scanner looks at every character once, and values are counted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_api.convert.gojson import JsonError, base64_by_digits, first_value_of, whole_characters, whole_value
from engine_api.convert.goscan import Premature, Scan, ScanError
from swarm import defaults

_SIZE = 1 << 20


def lines_of(run: Callable[[], object]) -> int:
    """How many lines of Python code are executed: work that is counted, not timed."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def refused(body: bytes) -> str:
    with pytest.raises(JsonError) as caught:
        first_value_of(body)
    return str(caught.value)


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    return before + unit * (_SIZE // len(unit)) + after


MALFORMED = {
    "a string that does not end": (filled(b'{"a":"', b"x", b""), "unexpected EOF"),
    "escapes that do not end": (filled(b'"', b"\\n", b""), "unexpected EOF"),
    "hexadecimal escapes": (filled(b'"', b"\\u0041", b"\\u00g"), "invalid character 'g' in \\u hexadecimal"),
    "a control character": (filled(b'"', b"x", b'\x01"'), "invalid character '\\x01' in string literal"),
    "space": (filled(b"[1", b" ", b"}"), "invalid character '}' after array element"),
    "space that does not end": (filled(b"[", b" \n", b""), "unexpected EOF"),
    "a number of many digits": (filled(b"[", b"1", b"}"), "invalid character '}' after array element"),
    "a fraction of many digits": (filled(b"[1.", b"1", b"}"), "invalid character '}' after array element"),
    "an exponent of many digits": (filled(b"[1e", b"1", b"}"), "invalid character '}' after array element"),
    "bytes that are not UTF-8": (filled(b'["', b"\xff", b'"}'), "invalid character '}' after array element"),
    "a mark of byte order": (b"\xef\xbb\xbf" + filled(b'"', b"x", b'"'), "invalid character '\u00ef' looking for"),
    "nesting": (filled(b"", b"[", b""), "exceeded max depth"),
    "nesting of objects": (filled(b"", b'{"a":', b""), "exceeded max depth"),
    "values": (filled(b"[", b"1,", b"1}"), "the text has more than 20000 values"),
    "floats": (filled(b"[", b"1.5,", b"1}"), "the text has more than 20000 values"),
    "objects": (filled(b"[", b'{"a":1},', b"1}"), "the text has more than 20000 values"),
    "empty arrays": (filled(b"[", b"[],", b"1}"), "the text has more than 20000 values"),
    "equal keys": (filled(b"{", b'"a":1,', b'"a"]'), "the text has more than 20000 values"),
    "strings": (filled(b"[", b'"a\\n",', b'"}'), "the text has more than 20000 values"),
    "an array that is no value": (b"[1." + b"1" * _SIZE + b".", "invalid character '.' after array element"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_large_malformed_body_is_refused_after_little_work(name: str) -> None:
    body, text = MALFORMED[name]
    assert refused(body).startswith(text)
    work = lines_of(lambda: refused(body))
    assert work < 50 * defaults.API_JSON_VALUES_MAX, "before, it was several lines for each byte"


VALID = {
    "values": filled(b"[", b"1,", b"1]"),
    "floats": filled(b"[", b"1.5,", b"1]"),
    "keys": b"{" + b",".join(b'"%d":{}' % number for number in range(_SIZE // 8)) + b"}",
    "empty arrays": filled(b"[", b"[],", b"1]"),
}


@pytest.mark.parametrize("name", VALID)
def test_a_body_with_more_values_than_any_client_sends_is_refused_before_they_are_made(name: str) -> None:
    assert refused(VALID[name]) == "the text has more than 20000 values"
    work = lines_of(lambda: refused(VALID[name]))
    assert work < 50 * defaults.API_JSON_VALUES_MAX


def test_commas_and_brackets_in_strings_are_no_values() -> None:
    body = filled(b'{"a":"', b"[{,", b'"}')
    assert len(first_value_of(body)[0]["a"]) > _SIZE - 3


def test_as_many_values_as_allowed_are_read() -> None:
    assert len(whole_value("[" + "1," * (defaults.API_JSON_VALUES_MAX - 2) + "1]")) == defaults.API_JSON_VALUES_MAX - 1
    with pytest.raises(JsonError, match="more than 20000 values"):
        whole_value("[" + "1," * (defaults.API_JSON_VALUES_MAX - 1) + "1]")


def test_numbers_of_any_length_are_read_and_told_shortly() -> None:
    value, _ = first_value_of(b"[" + b"1" * _SIZE + b",1e" + b"9" * _SIZE + b",-0." + b"1" * _SIZE + b"]")
    assert value[:2] == [float("inf"), float("inf")]
    assert all(len(number.text) < 200 for number in value)
    assert whole_value("[9223372036854775807,-9223372036854775808,18446744073709551615]")[2] == (1 << 64) - 1


def test_half_pairs_become_replacement_characters_in_long_texts_too() -> None:
    text = ("\ud83d" * 70_000) + "\U0001f600" + "\udc00x"
    assert whole_characters(text) == "\ufffd" * 70_000 + "\U0001f600" + "\ufffdx"


def test_bytes_that_are_not_utf8_are_replaced_across_pieces() -> None:
    body = b'"' + b"\xc3\xa9\xff" * 50_000 + b'"'
    assert first_value_of(body)[0] == body.decode("utf-8", "replace")[1:-1]


@pytest.mark.parametrize("size", [4, 400_000, 400_001, 400_002, 400_003])
@pytest.mark.parametrize("end", ["", "*", "=", "==", "=x", "\n=\n", "x", "==="])
def test_base64_is_checked_without_a_step_for_each_digit(size: int, end: str) -> None:
    text = "QUJD\r\n" * (size // 4) + "Q" * (size % 4) + end

    def run() -> None:
        try:
            base64_by_digits(text)
        except JsonError as error:
            assert "illegal base64 data at input byte " in str(error)  # noqa: PT017 - some are right

    assert lines_of(run) < 100


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON, st.integers(0, 80), st.sampled_from([*list('{}[],:"\\0123456789.eE+-tfn \n\x01é'), ""]))
def test_the_scanner_accepts_what_python_accepts(value: Any, place: int, char: str) -> None:
    text = json.dumps(value)
    damaged = (text[:place] + char + text[place + 1 :]).strip()
    decoder = json.JSONDecoder(parse_constant=lambda name: float(f"no {name}"))
    outcomes = []
    for read in (lambda: decoder.raw_decode(damaged), lambda: Scan(damaged, 0, 1000).value()):
        try:
            read()
            outcomes.append(True)
        except (ValueError, Premature):
            outcomes.append(False)
    assert outcomes[0] == outcomes[1]


def test_more_than_go_nests_is_refused() -> None:
    with pytest.raises(ScanError, match="exceeded max depth"):
        Scan("[" * 10_002, 0, 20_000).value()
