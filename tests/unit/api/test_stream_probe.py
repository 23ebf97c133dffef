"""Detection of an error at the start of a stream."""

from __future__ import annotations

import gzip

import pytest

from azure_openai_proxy.api import stream_probe
from azure_openai_proxy.api.stream_probe import Peek

FILTER = b'data: {"choices":[],"id":"","prompt_filter_results":[]}\n\n'
EMPTY = b'data: {"id":"","object":"","created":0,"model":"","choices":[]}\n\n'
CONTENT = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
ERROR = b'data: {"error":{"message":"overloaded","code":"429"}}\n\n'


@pytest.mark.parametrize(
    "stream, error",
    [
        (CONTENT, None),
        (FILTER + CONTENT, None),
        (b"\n\n" + ERROR, {"message": "overloaded", "code": "429"}),
        (EMPTY + EMPTY.replace(b"[]", b"null") + ERROR, {"message": "overloaded", "code": "429"}),
        (b"data: [DONE]\n\n", None),
        (b"data: 7\n\n", None),
        (b'data: {"choices":[],"usage":{}}\n\n', None),
        (b'event: response.created\ndata: {"type":"response.created","response":{"error":null}}\n\n', None),
        (ERROR, {"message": "overloaded", "code": "429"}),
        (FILTER + ERROR, {"message": "overloaded", "code": "429"}),
        (b'data: {"error":"broken"}\n\n', {"message": "broken"}),
        (b'event: error\ndata: {"message":"broken"}\n\n', {"message": "broken"}),
        (b'data: {"type":"error","message":"broken"}\n\n', {"message": "broken"}),
        (
            b'event: error\ndata: {"type":"error","sequence_number":0,"error":{"type":"too_many_requests","message":"slow"}}\n\n',
            {"type": "too_many_requests", "message": "slow"},
        ),
        (
            b'event: error\ndata: {"type":"error","sequence_number":0,"code":"rate_limit_exceeded","message":"slow","param":null}\n\n',
            {"code": "rate_limit_exceeded", "message": "slow", "param": None},
        ),
        (b'event: error\ndata: {"type":"server_error","message":"broken"}\n\n', {"type": "server_error", "message": "broken"}),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_the_first_event_that_carries_something(stream: bytes, error: object, size: int) -> None:
    """The first event with content or an error decides, for any chunks."""
    looking = Peek(None)
    verdicts = [looking.feed(stream[start : start + size]) for start in range(0, len(stream), size)]
    verdict = next(verdict for verdict in verdicts if verdict)
    assert error == verdict.error


@pytest.mark.parametrize("before", [b"", FILTER, b"\n", b"id: 1\n\n"])
@pytest.mark.parametrize("comment", [b": keepalive\n\n", b": keepalive\n", b":\r\n"])
def test_a_comment_ends_the_hold(before: bytes, comment: bytes) -> None:
    """A complete comment line decides for content, unless an error arrived with it."""
    looking = Peek(None)
    text = comment.rstrip(b"\r\n")
    assert None is looking.feed(before.replace(b"id: 1\n\n", b"") + text)
    verdict = looking.feed(comment.removeprefix(text))
    assert verdict
    assert verdict.error is None
    verdict = Peek(None).feed(before + comment + ERROR)
    assert verdict
    assert {"message": "overloaded", "code": "429"} == verdict.error


def test_compressed() -> None:
    """A compressed stream is decompressed; invalid data is left to the stream's reader."""
    verdict = Peek("gzip").feed(gzip.compress(ERROR))
    assert verdict
    assert verdict.error
    broken = Peek("gzip").feed(b"plain")
    assert broken
    assert None is broken.error


def test_no_more_is_held_than_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of buffered bytes is limited for a stream without events."""
    monkeypatch.setattr(stream_probe, "AT_MOST", 10)
    looking = Peek(None)
    assert None is looking.feed(b"data: 6789")
    assert None is not looking.feed(b"0")


def typed(value: str, name: bytes = b"") -> bytes:
    return (b"event: " + name + b"\n" if name else b"") + b"data: " + value.encode() + b"\n\n"


CREATED = typed('{"type":"response.created","response":{"id":"resp_1","error":null}}', b"response.created")
PROGRESS = typed('{"type":"response.in_progress","response":{}}')
ROLE = typed('{"choices":[{"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}]}')
SLOW = {"code": "rate_limit_exceeded", "message": "slow down"}
FAILED = typed('{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"slow down"}}}', b"response.failed")
NULL = typed('{"type":"response.failed","response":{"error":null}}', b"response.failed")
FLAT = typed('{"type":"error","sequence_number":3,"code":"rate_limit_exceeded","message":"slow down"}', b"error")
NESTED = typed('{"type":"error","error":{"code":"rate_limit_exceeded","message":"slow down"}}', b"error")
INVALID = typed('{"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"no"}}}', b"response.failed")
DELTA = typed('{"type":"response.output_text.delta","delta":"x"}', b"response.output_text.delta")
FLAT_CHAT = typed('{"code":"rate_limit_exceeded","message":"slow down"}')


@pytest.mark.parametrize(
    "stream, error",
    [
        (CREATED + FAILED, SLOW),
        (CREATED + PROGRESS + FAILED, SLOW),
        (CREATED + FLAT, SLOW),
        (CREATED + NESTED, SLOW),
        (CREATED + NULL + FLAT, SLOW),
        (CREATED + NULL + NESTED, SLOW),
        (NULL + NESTED, SLOW),
        (FILTER + ROLE + typed('{"error":{"code":"rate_limit_exceeded","message":"slow down"}}'), SLOW),
        (FILTER + ROLE + FLAT_CHAT, SLOW),
        (ROLE + EMPTY + FLAT_CHAT, SLOW),
        (CREATED + INVALID, None),
        (CREATED + NULL + INVALID, None),
        (CREATED + NULL + NULL, None),
        (CREATED + NULL + DELTA, None),
        (CREATED + DELTA, None),
        (FILTER + ROLE + CONTENT, None),
        (ROLE + typed('{"error":{"code":"content_filter"}}'), None),
        (CREATED + typed("[]"), None),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10**6])
def test_a_late_failure(stream: bytes, error: object, size: int) -> None:
    """The first output or failure decides, for any chunks; only an overload is a failure that another backend may not have."""
    looking = Peek(None, late=True)
    verdicts = [looking.feed(stream[start : start + size]) for start in range(0, len(stream), size)]
    verdict = next(verdict for verdict in verdicts if verdict)
    assert error == verdict.error


@pytest.mark.parametrize("stream", [CREATED, PROGRESS, ROLE, CREATED + b": keep-alive\n\n", INVALID])
def test_no_late_failure_is_waited_for(stream: bytes) -> None:
    """Without another backend, and after a comment, the beginning is released at once."""
    verdict = Peek(None, late=stream.endswith(b"alive\n\n")).feed(stream)
    assert verdict
    assert verdict.error is None


@pytest.mark.parametrize("late", [False, True])
def test_a_failure_as_the_first_event(late: bool) -> None:
    """An overload is found with and without another backend."""
    verdict = Peek(None, late=late).feed(FAILED)
    assert verdict
    assert SLOW == verdict.error


@pytest.mark.parametrize(
    "stream, first",
    [(CREATED + PROGRESS, b"resp_1"), (FILTER + ROLE, b"assistant"), (FILTER, b""), (b": x\n", b"")],
)
def test_the_first_event(stream: bytes, first: bytes) -> None:
    """Its data is known before the verdict, and an empty chunk is none."""
    looking = Peek(None, late=True)
    looking.feed(stream)
    assert (bool(first), True) == (bool(looking.first), first in looking.first)


def test_a_long_beginning() -> None:
    """`response.created` repeats the request: it may be long where a late failure is waited for."""
    long = CREATED.replace(b"resp_1", b"x" * stream_probe.AT_MOST)
    looking = Peek(None, late=True)
    assert None is looking.feed(long)
    assert None is not looking.feed(long * (stream_probe.LATE_AT_MOST // len(long)))


@pytest.mark.parametrize(
    "stream, error",
    [
        (CREATED + FAILED.rstrip(b"\n"), SLOW),
        (CREATED + DELTA.rstrip(b"\n"), None),
        (b"data: {", None),
        (b": x", None),
        (FAILED[:20], None),
    ],
)
def test_an_event_without_its_blank_line(stream: bytes, error: object) -> None:
    """The end of the stream completes it."""
    looking = Peek(None, late=True)
    assert None is looking.feed(stream)
    verdict = looking.end()
    assert error == (verdict and verdict.error)
