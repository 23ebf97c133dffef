"""The failures that clients get for mitmproxy's errors, by the names of their codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from azure_openai_proxy.errors import UNSENT, Failure

from .http1 import body_may_follow

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

    from .interface import HttpPolicy

__all__ = ["error_code", "failure", "reason_to_close", "truncated_end", "withheld"]

_INVALID = frozenset({"GENERIC_CLIENT_ERROR", "REQUEST_VALIDATION_FAILED"})
_FAILURES = {
    "GENERIC_CLIENT_ERROR": (400, "invalid_request", "The request cannot be read: "),
    "REQUEST_VALIDATION_FAILED": (400, "invalid_request", ""),
    "DESTINATION_UNKNOWN": (400, "invalid_request", ""),
    "REQUEST_TOO_LARGE": (413, "request_too_large", ""),
    "CONNECT_FAILED": (502, "upstream_unreachable", "Could not connect upstream: "),
    "GENERIC_SERVER_ERROR": (502, "upstream_error", "The connection upstream failed: "),
    "CANCEL": (502, "upstream_error", "The connection upstream failed: "),
    "HTTP_1_1_REQUIRED": (502, "upstream_error", "The connection upstream failed: "),
    "RESPONSE_TOO_LARGE": (502, "upstream_error", "The response from upstream cannot be forwarded: "),
    "RESPONSE_VALIDATION_FAILED": (502, "upstream_error", "The response from upstream cannot be forwarded: "),
}
"""Status, code and beginning of the message. Other error codes mean that the request was cancelled."""


def failure(code: str, message: str) -> Failure | None:
    """The failure of a request; None if it was cancelled."""
    if code not in _FAILURES:
        return None
    status, kind, intro = _FAILURES[code]
    return Failure(status, kind, f"{intro}{message}")


def error_code(failure: Failure) -> str:
    """mitmproxy's code for a failure of the upstream leg."""
    return "CONNECT_FAILED" if failure.code in UNSENT else "GENERIC_SERVER_ERROR"


def reason_to_close(code: str, request: http.Request) -> bool:
    """Whether the connection must be closed after the error: the end of an HTTP/1 request is unknown if its framing is invalid."""
    return (code in _INVALID and not (request.is_http2 or request.is_http3)) or body_may_follow(request)


def truncated_end(flow: http.HTTPFlow, failure: Failure, policy: HttpPolicy) -> bytes:
    """The last bytes of a response that breaks off: those withheld, and an event, so that the client does not take it for complete."""
    response = cast("http.Response", flow.response)
    event = policy.last_event(failure, flow) if _ends_with_event(response) else None
    return withheld(response) + (b"\n\n" + event if event else b"")  # the blank line ends an incomplete event


def _ends_with_event(response: http.Response) -> bool:
    headers = response.headers
    return "text/event-stream" in headers.get("content-type", "") and not ("content-encoding" in headers or "content-length" in headers)


def withheld(response: http.Response) -> bytes:
    """What the `stream` function of the response has withheld until its end."""
    release: Callable[[http.Response], bytes] | None = getattr(response.stream, "release_withheld", None)
    return release(response) if release else b""
