"""From the bytes of the engine's log stream to log messages."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_api.engine.errors import EngineError
from engine_api.executor.logframes import LogParser, query
from swarm import api

CONTEXT = api.LogContext(task_id="t1", service_id="s1", node_id="n1")
STAMP = b"2026-11-22T14:52:05.000000007Z "
SECONDS = 1_795_359_125


def frame(stream: int, payload: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def parse(data: bytes, *cuts: int, tty: bool = False) -> list[api.LogMessage]:
    parser = LogParser(CONTEXT, tty)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    messages = [m for i, j in pairwise(edges) for m in parser.feed(data[i:j])]
    return [*messages, *parser.finish()]


def test_a_frame_becomes_a_message() -> None:
    (message,) = parse(frame(2, STAMP + b"a=b,c%2Fd=e+f hello world\n"))
    assert message.context == CONTEXT
    assert message.stream == api.LOG_STREAM_STDERR
    assert (message.timestamp.seconds, message.timestamp.nanos) == (SECONDS, 7)
    assert [(attr.key, attr.value) for attr in message.attrs] == [("a", "b"), ("c/d", "e f")]
    assert message.data == b"hello world\n"


def test_a_line_without_details_keeps_its_blanks() -> None:
    (message,) = parse(frame(1, STAMP + b"  indented\n"))
    assert (message.data, len(message.attrs)) == (b" indented\n", 0)


@pytest.mark.parametrize("line", [b"no stamp\n", b"", b"\n", b"2026-13-45T99:99:99.000000000Z  x\n"])
def test_a_line_without_the_engines_time_stamp_is_kept(line: bytes) -> None:
    (message,) = parse(frame(1, line))
    assert message.data in (line, b"x\n")


def test_a_terminal_has_lines_instead_of_frames() -> None:
    messages = parse(STAMP + b" one\r\n" + STAMP + b"k=v two", tty=True)
    assert [(m.stream, m.data) for m in messages] == [
        (api.LOG_STREAM_STDOUT, b"one\r\n"),
        (api.LOG_STREAM_STDOUT, b"two"),
    ]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40))), st.lists(st.integers(0, 400), max_size=6))
def test_frames_are_put_together_however_they_are_cut(lines: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(stream, STAMP + b" " + text) for stream, text in lines)
    assert [(m.stream, m.data) for m in parse(data, *cuts)] == lines


@pytest.mark.parametrize("data", [frame(9, b"x"), b"\x01\0\0\0\xff\xff\xff\xff" + b"x" * 20])
def test_a_stream_that_is_not_a_log_is_refused(data: bytes) -> None:
    with pytest.raises(EngineError, match="the engine's log stream is malformed"):
        parse(data)


def test_an_error_inside_the_stream_is_raised() -> None:
    with pytest.raises(EngineError, match="Error grabbing logs: gone"):
        parse(frame(1, b"a\n") + frame(3, b"Error grabbing logs: gone\n"))


def test_options_become_parameters() -> None:
    everything = {"stdout": "1", "stderr": "1", "follow": "0", "timestamps": "1", "details": "1"}
    assert query(api.LogSubscriptionOptions()) == everything
    options = api.LogSubscriptionOptions(streams=[api.LOG_STREAM_STDERR], follow=True, tail=-11)
    options.since.CopyFrom(api.Task().status.timestamp)
    options.since.seconds, options.since.nanos = 5, 7
    assert query(options) == {**everything, "stdout": "0", "follow": "1", "tail": "10", "since": "5.000000007"}
    assert query(api.LogSubscriptionOptions(tail=-1))["tail"] == "0"
    with pytest.raises(EngineError, match="tail relative to start"):
        query(api.LogSubscriptionOptions(tail=1))
