"""Error messages of Go's JSON scanner for invalid JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_api.convert.gojson import JsonError, base64_by_digits, base64_bytes, first_value, quote, whole_value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nojson", "invalid character 'o' in literal null (expecting 'u')"),
        ("{'a'", "invalid character '\\'' looking for beginning of object key string"),
        ('{"a" 1', "invalid character '1' after object key"),
        ('{"a":1 "b"', "invalid character '\"' after object key:value pair"),
        ("[1 2", "invalid character '2' after array element"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("-x", "invalid character 'x' in numeric literal"),
        ("[1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("[1ex", "invalid character 'x' in exponent of numeric literal"),
        ('"\\q', "invalid character 'q' in string escape code"),
        ('"\\u12g', "invalid character 'g' in \\u hexadecimal character escape"),
        ('"a\nb"', "invalid character '\\n' in string literal"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("1 x", "invalid character 'x' after top-level value"),
        ('{"a":', "unexpected end of JSON input"),
        ("", "unexpected end of JSON input"),
        ('["a', "unexpected end of JSON input"),
        ("tru", "unexpected end of JSON input"),
    ],
)
def test_a_fault_is_described_as_go_describes_it(text: str, fault: str) -> None:
    with pytest.raises(JsonError) as caught:
        whole_value(text)
    assert str(caught.value) == fault


def test_a_stream_reads_the_first_value_and_leaves_the_rest() -> None:
    assert first_value(' {"a":1} x') == ({"a": 1}, "x")
    with pytest.raises(EOFError):
        first_value(" \n")
    with pytest.raises(JsonError, match="unexpected EOF"):
        first_value('{"ListenAddr":')


def test_json_that_nests_too_deep_is_refused() -> None:
    with pytest.raises(JsonError):
        whole_value("[" * 200_000)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_json_is_read_as_python_reads_it(value: Any) -> None:
    assert whole_value(json.dumps(value)) == value


@given(_JSON, st.integers(0, 60), st.characters())
def test_a_damaged_text_is_read_or_refused_but_never_breaks(value: Any, place: int, char: str) -> None:
    text = json.dumps(value)
    damaged = text[:place] + char + text[place + 1 :]
    try:
        json.loads(damaged, parse_constant=lambda name: pytest.fail(name))
    except ValueError:
        with pytest.raises(JsonError):
            whole_value(damaged)


def test_strings_are_quoted_as_go_quotes_them() -> None:
    assert quote('a"b\n\x01é\u2028') == '"a\\"b\\n\\x01é\\u2028"'


@given(st.text("AQg=/+\n\ré-_ ", max_size=13))
def test_the_fast_decoder_agrees_with_the_one_that_goes_digit_by_digit(text: str) -> None:
    def outcome(decode: Callable[[str], bytes]) -> bytes | str:
        try:
            return decode(text)
        except JsonError as error:
            return str(error)

    assert outcome(base64_bytes) == outcome(base64_by_digits)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [450, 700, 990, 1500, 100_000])
@pytest.mark.parametrize("end", ["", "x"])
def test_a_text_that_is_too_deep_is_refused_whatever_else_is_wrong_with_it(opening: str, depth: int, end: str) -> None:
    with pytest.raises(JsonError, match=r"exceeded max depth|unexpected EOF|looking for beginning of value"):
        first_value(opening * depth + end)
