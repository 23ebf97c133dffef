"""The heads of upstream requests. Real ones are sent in test_request.py."""

from __future__ import annotations

import pytest
from mitmproxy import http

from azure_openai_proxy.egress.connect import Destination, Proxy
from azure_openai_proxy.egress.request_head import request_head

DIRECT = Destination("r.example", 443, tls=True)
BEHIND = Destination("r.example", 80, tls=False, proxy=Proxy("proxy.example", 3128, authorization=b"Basic eA=="))


@pytest.mark.parametrize(
    "headers, destination, streamed, expected, chunked",
    [
        ((("Host", "h"), ("A", "1")), DIRECT, False, b"POST /v1 HTTP/1.1\r\nHost: h\r\nA: 1\r\n\r\n", False),
        ((), DIRECT, False, b"POST /v1 HTTP/1.1\r\nHost: r.example:443\r\n\r\n", False),
        ((("Cookie", "a"), ("Cookie", "b")), DIRECT, False, b"POST /v1 HTTP/1.1\r\nHost: r.example:443\r\ncookie: a; b\r\n\r\n", False),
        (
            (("Host", "h"), ("Transfer-Encoding", "chunked")),
            DIRECT,
            True,
            b"POST /v1 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
            True,
        ),
        (
            (("Host", "h"), ("Transfer-Encoding", "chunked"), ("Content-Length", "9")),
            DIRECT,
            False,
            b"POST /v1 HTTP/1.1\r\nHost: h\r\ncontent-length: 2\r\n\r\n",
            False,
        ),
        (
            (("Host", "h"),),
            BEHIND,
            False,
            b"POST http://r.example:80/v1 HTTP/1.1\r\nHost: h\r\nproxy-authorization: Basic eA==\r\n\r\n",
            False,
        ),
    ],
)
def test_heads(headers: tuple[tuple[str, str], ...], destination: Destination, streamed: bool, expected: bytes, chunked: bool) -> None:
    """Host is first, cookies are joined, a buffered body has a length, and a proxy gets an absolute URL and its credentials."""
    request = http.Request.make("POST", "https://r.example/v1", b"{}")
    request.headers = http.Headers([(name.encode(), value.encode()) for name, value in headers])
    request.data.authority = b""
    assert (expected, chunked) == request_head(request, destination, streamed=streamed)
