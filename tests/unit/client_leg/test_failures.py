"""The failures that clients get for mitmproxy's errors."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from mitmproxy import http
from mitmproxy.proxy.layers.http import ErrorCode
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg import failures
from azure_openai_proxy.errors import Failure


@pytest.mark.parametrize("code", failures._FAILURES)
def test_codes(code: str) -> None:
    """Each is a code of mitmproxy's."""
    assert code == ErrorCode[code].name


def test_failure() -> None:
    """A failure has a status and a sentence; a cancelled request has none."""
    assert (502, "upstream_unreachable", "Could not connect upstream: refused") == failures.failure("CONNECT_FAILED", "refused")
    assert failures.failure("CLIENT_DISCONNECTED", "gone") is None


@pytest.mark.parametrize(
    "code, expected", [("upstream_unreachable", ErrorCode.CONNECT_FAILED), ("upstream_timeout", ErrorCode.GENERIC_SERVER_ERROR)]
)
def test_error_code(code: str, expected: ErrorCode) -> None:
    """Whether the request may have been sent."""
    assert expected == ErrorCode[failures.error_code(Failure(502, code, "It failed."))]


@pytest.mark.parametrize(
    "code, version, headers, closes",
    [
        ("GENERIC_CLIENT_ERROR", "HTTP/1.1", {}, True),
        ("GENERIC_CLIENT_ERROR", "HTTP/2.0", {}, False),
        ("CONNECT_FAILED", "HTTP/1.1", {}, False),
        ("CONNECT_FAILED", "HTTP/1.1", {"expect": "100-continue"}, True),
        ("CONNECT_FAILED", "HTTP/2.0", {"expect": "100-continue"}, False),
    ],
)
def test_reason_to_close(code: str, version: str, headers: dict[str | bytes, str | bytes], closes: bool) -> None:
    """Only a request without a known end: its framing is invalid, or its client waits for a 100 before it sends a body."""
    request = http.Request.make("GET", "http://a/", headers=headers)
    request.http_version = version
    assert closes == failures.reason_to_close(code, request)


EVENT = b"\n\ndata: {}"


@pytest.mark.parametrize(
    "headers, end",
    [
        ({"content-type": "text/event-stream; charset=utf-8"}, EVENT),
        ({"content-type": "application/json"}, b""),
        ({}, b""),
        ({"content-type": "text/event-stream", "content-length": "10"}, b""),
        ({"content-type": "text/event-stream", "content-encoding": "gzip"}, b""),
    ],
)
def test_a_truncated_response(headers: dict[str, str], end: bytes) -> None:
    """An event ends a stream of events whose bytes are readable and may go on."""
    flow = tflow.tflow(resp=True)
    assert flow.response
    flow.response.headers = http.Headers([(name.encode(), value.encode()) for name, value in headers.items()])
    told = Failure(502, "upstream_error", "It failed.")
    assert end == failures.truncated_end(flow, told, Mock(last_event=Mock(return_value=EVENT[2:])))
    assert b"" == failures.truncated_end(flow, told, Mock(last_event=Mock(return_value=None)))
    flow.response.stream = Mock(release_withheld=Mock(return_value=b"withheld"))
    assert b"withheld" + end == failures.truncated_end(flow, told, Mock(last_event=Mock(return_value=EVENT[2:])))


def test_what_is_withheld() -> None:
    """Only some functions of a stream withhold a body."""
    response = http.Response.make(200)
    streams: list[Any] = [False, True, lambda data: data, Mock(release_withheld=Mock(return_value=b"body"))]
    assert [b"", b"", b"", b"body"] == [failures.withheld(response) for response.stream in streams]
