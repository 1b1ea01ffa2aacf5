"""Go's ways of printing values, which users see in templates and errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import gotext


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a b", '"a b"'),
        ('"\\\n\t\r\x07', '"\\"\\\\\\n\\t\\r\\a"'),
        ("\x00\x7f", '"\\x00\\x7f"'),
        ("é世\u200b", '"é世\\u200b"'),
        ("\U0001f600\U000e0001", '"😀\\U000e0001"'),
    ],
)
def test_strings_are_quoted_as_in_go(text: str, quoted: str) -> None:
    assert gotext.quote(text) == quoted


@given(st.text())
def test_a_quoted_string_reads_back(text: str) -> None:
    assert gotext.unquote(gotext.quote(text)) == text


@pytest.mark.parametrize(
    "text", ['"', "a", '"\\', '"\\q"', '"\\777"', '"\\xff"', '"\\uD800"', '"a\\"', '"\\U00110000"']
)
def test_text_that_is_not_a_quoted_string_is_refused(text: str) -> None:
    with pytest.raises(gotext.NotQuotedError):
        gotext.unquote(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1e-9, "1e-09"),
        (0.001, "0.001"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1.5, "1.5"),
        (-2.25, "-2.25"),
        (100000.0, "100000"),
        (123456.75, "123456.75"),
        (1e6, "1e+06"),
        (1234567.0, "1.234567e+06"),
        (1e100, "1e+100"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
        (float("nan"), "NaN"),
    ],
)
def test_numbers_are_printed_as_in_go(value: float, text: str) -> None:
    assert gotext.number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_printed_number_reads_back(value: float) -> None:
    assert float(gotext.number(value)) == value


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5µs"),
        (1_000_000, "1ms"),
        (1_000_000_000, "1s"),
        (1_500_000_000, "1.5s"),
        (90_000_000_000, "1m30s"),
        (3_600_000_000_000, "1h0m0s"),
        (90 * 24 * 3_600_000_000_000, "2160h0m0s"),
        (-1_000_000, "-1ms"),
        (-3_601_000_000_000, "-1h0m1s"),
    ],
)
def test_durations_are_printed_as_in_go(nanoseconds: int, text: str) -> None:
    assert gotext.duration(nanoseconds) == text
