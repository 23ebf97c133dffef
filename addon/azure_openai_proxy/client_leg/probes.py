"""Bytes of a response that are sent early, to detect whether the client has disconnected: a closed connection answers with a reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["CONTINUE", "Probes"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""An informational response, allowed at any time before the response."""

START = b"HTTP/1."
"""The beginning of each response. During an upload its bytes are sent one by one."""


class Probes:
    """The probes of one HTTP/1.1 connection. The response of a request is None until it begins; mitmproxy may have sent a 100."""

    def __init__(self) -> None:
        self.sent = 0
        """Bytes of `START` that were sent."""

    def in_upload(self, request: http.Request | None, response: http.Response | None) -> bytes:
        """The next byte of the response's beginning. Empty if none is left, or the response has begun."""
        if not _may_be_probed(request, response) or self.sent == len(START):
            return b""
        self.sent += 1
        return START[self.sent - 1 : self.sent]

    def after_half_close(self, request: http.Request | None, response: http.Response | None) -> bytes:
        """What a client ignores that has only half-closed its connection. Empty if there is nothing of the kind."""
        if _may_be_probed(request, response):
            return self.rest_of(CONTINUE)
        if response and "chunked" in response.headers.get("transfer-encoding", "").lower():
            return b"0"  # a chunk size may have leading zeros
        return b""

    def rest_of(self, data: bytes) -> bytes:
        """The first data of the response, without the bytes that were sent before."""
        sent, self.sent = self.sent, 0
        return data[sent:]


def _may_be_probed(request: http.Request | None, response: http.Response | None) -> bool:
    return request is not None and request.http_version == "HTTP/1.1" and (response is None or response.status_code < 200)
