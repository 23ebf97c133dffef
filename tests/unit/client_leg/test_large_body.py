"""The buffer of a large request body."""

from __future__ import annotations

from azure_openai_proxy.client_leg.large_body import LargeBody


def test_large_body() -> None:
    """It is mitmproxy's buffer for what uses it, and gives the body without a copy."""
    body = LargeBody(b"ab")
    body += b"cd"
    assert (4, b"abcd", True) == (len(body), bytes(body), bool(body))
    body = LargeBody(bytes(1 << 20))
    first, second = bytes(body), bytes(body)
    assert first is second
    body.clear()
    assert (0, b"", False) == (len(body), bytes(body), bool(body))
