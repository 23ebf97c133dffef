"""Detection of an error at the start of a stream."""

from __future__ import annotations

import gzip
import json

import pytest

from azure_openai_proxy.api import stream_probe
from azure_openai_proxy.api.stream_probe import Peek, error_response

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


@pytest.mark.parametrize(
    "error, status",
    [
        ({"code": "429"}, 429),
        ({"code": 503}, 503),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "too_many_requests"}, 429),
        ({"code": "content_filter"}, 400),
        ({"type": "invalid_request_error"}, 400),
        ({"code": "200"}, 500),
        ({"code": "4" * 5000}, 500),  # more digits than Python parses
        ({}, 500),
    ],
)
def test_the_error_response_for_an_error_event(error: dict[str, object], status: int) -> None:
    """The error response has the status of the error's code, and Azure's error shape."""
    found, body = error_response(error)
    assert (status, {"error": error}) == (found, json.loads(body))
