"""The failures that clients get for mitmproxy's errors."""

from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.proxy.layers.http import ErrorCode

from azure_openai_proxy.client_leg import failures


@pytest.mark.parametrize("code", failures._FAILURES)
def test_codes(code: str) -> None:
    """Each is a code of mitmproxy's."""
    assert code == ErrorCode[code].name


def test_failure() -> None:
    """A failure has a status and a sentence; a cancelled request has none."""
    assert (502, "upstream_unreachable", "Could not connect upstream: refused") == failures.failure("CONNECT_FAILED", "refused")
    assert failures.failure("CLIENT_DISCONNECTED", "gone") is None


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


@pytest.mark.parametrize(
    "headers, ends",
    [
        ({"content-type": "text/event-stream; charset=utf-8"}, True),
        ({"content-type": "application/json"}, False),
        ({}, False),
        ({"content-type": "text/event-stream", "content-length": "10"}, False),
        ({"content-type": "text/event-stream", "content-encoding": "gzip"}, False),
    ],
)
def test_ends_with_event(headers: dict[str, str], ends: bool) -> None:
    """A stream of events whose bytes are readable and may go on."""
    response = http.Response.make(200)
    response.headers = http.Headers([(name.encode(), value.encode()) for name, value in headers.items()])
    assert ends == failures.ends_with_event(response)
