"""Errors in the events of a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mitmproxy import http

from azure_openai_proxy.api.stream_failures import error_of, error_response, has_output, is_overload


@pytest.mark.parametrize(
    "error, overload",
    [
        ({"code": "rate_limit_exceeded"}, True),
        ({"type": "too_many_requests", "code": None}, True),
        ({"code": "server_is_overloaded"}, True),
        ({"type": "server_error"}, True),
        ({"code": "TooManyRequests"}, True),
        ({"code": 429}, True),
        ({"status": "503"}, True),
        ({"type": "429"}, False),
        ({"code": "invalid_prompt", "type": "invalid_request_error"}, False),
        ({"code": "400"}, False),
        ({}, False),
    ],
)
def test_an_overload(error: dict[str, Any], overload: bool) -> None:
    """Code or type say it, or a status of those after which another backend is asked."""
    assert overload is is_overload(error)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "response.failed", "response": None},
        {"type": "response.failed", "response": {"error": None}},
        {"choices": [], "message": "x", "code": "server_error"},
        {"message": "x"},
        {"error": None},
    ],
)
def test_no_error(value: dict[str, Any]) -> None:
    """A failure whose error is null reports none, and an event with choices is no error."""
    assert None is error_of(value, None)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "response.failed", "code": "server_error", "message": "m"},
        {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}},
        {"type": "response.failed", "error": {"code": "server_error", "message": "m"}, "response": {"error": None}},
        {"type": "error", "sequence_number": 3, "code": "server_error", "message": "m"},
        {"error": {"code": "server_error", "message": "m"}, "choices": []},
    ],
)
def test_an_error(value: dict[str, Any]) -> None:
    """It is a member of the event, of its response, or the event itself."""
    assert {"code": "server_error", "message": "m"} == error_of(value, None)


@pytest.mark.parametrize(
    "value, output",
    [
        ({"type": "response.queued"}, False),
        ({"type": "response.output_item.added"}, True),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, False),
        ({"choices": [{"delta": {"role": "assistant", "tool_calls": [{"index": 0}]}}]}, True),
        ({"choices": [{"delta": {"content": "x"}}]}, True),
        ({"choices": [{"delta": {}, "finish_reason": "stop"}]}, True),
        ({"choices": [{"text": ""}]}, False),
        ({"choices": [{"text": "x"}]}, True),
        ({"choices": [{"delta": None}]}, True),
        ({"choices": [7]}, True),
        ({"choices": [{"delta": {}}], "usage": {}}, True),
        ({"choices": None}, True),
        ({"type": "\ud800"}, True),
    ],
)
def test_output(value: dict[str, Any], output: bool) -> None:
    """The events before the output of a response, and a chunk with the role alone, have none."""
    assert output is has_output(value)


@pytest.mark.parametrize(
    "error, status",
    [
        ({"code": "429"}, 429),
        ({"code": 503}, 503),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"type": "too_many_requests"}, 429),
        ({"code": "server_is_overloaded"}, 503),
        ({"code": "content_filter"}, 400),
        ({"type": "invalid_request_error"}, 400),
        ({"code": "200"}, 500),
        ({"code": "4" * 5000}, 500),  # more digits than Python parses
        ({}, 500),
    ],
)
def test_the_error_response_for_an_error_event(error: dict[str, object], status: int) -> None:
    """The error response has the status of the error's code, Azure's error shape and the other headers of the stream."""
    head = http.Response.make(200, headers={"content-type": "text/event-stream", "transfer-encoding": "chunked", "x-request-id": "1"})
    response = error_response(head, error)
    content = response.content or b""
    assert (status, {"error": error}) == (response.status_code, json.loads(content))
    assert {"content-type": "application/json", "x-request-id": "1", "content-length": str(len(content))} == dict(response.headers)
    assert "text/event-stream" == head.headers["content-type"]
