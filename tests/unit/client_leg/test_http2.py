"""Events and errors of an HTTP/2 connection. tests/unit/mitmproxy_patches/test_http2_server.py has them with real clients."""

from __future__ import annotations

from typing import Any

from h2.events import DataReceived, Event, RequestReceived, StreamReset, WindowUpdated

from azure_openai_proxy.client_leg import http2

KINDS = ((RequestReceived, 1), (DataReceived, 1), (StreamReset, 1), (StreamReset, 3), (WindowUpdated, 5))


def event(kind: type[Event], stream_id: int) -> Any:
    """An event with any version of h2, whose constructors differ."""
    made: Any = object.__new__(kind)
    made.stream_id = stream_id
    return made


def test_unquoted() -> None:
    """A client's header is not in the message, and the message is short."""
    assert "Received header value" == http2.unquoted("Received header value: b'Bearer sk-secret'")
    assert http2.MAX_MESSAGE == len(http2.unquoted("x" * 10_000))


def test_reset_at_once() -> None:
    """Only the requests that are started and reset in the same events are dropped, with their data."""
    started, data, reset, other, window = (event(kind, stream) for kind, stream in KINDS)
    assert ([started, data, window], []) == http2.reset_at_once([started, data, window])
    assert ([other, window], [data]) == http2.reset_at_once([started, data, reset, other, window])
