"""The body of a translated request while it arrives: it is buffered up to a limit, or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .http1 import forbidden_bytes
from .large_body import LargeBody

if TYPE_CHECKING:
    from mitmproxy import http

    from .interface import HttpPolicy

__all__ = ["HELD", "RequestBody"]

HELD = 1 << 20
"""Bytes of a body to buffer before streaming starts. They contain the model, which decides the destination; a small body can be retried."""


class RequestBody:
    """It does not keep the flow, which would stay in memory as long as the stream."""

    def __init__(self, policy: HttpPolicy, limit: int) -> None:
        self._policy, self._limit = policy, limit
        self._may_stream: bool | None = None  # not determined yet, since that is slow and most bodies are small

    def may_stream(self, flow: http.HTTPFlow) -> bool:
        """Whether the body may be streamed from now on. Then the limit does not apply."""
        if self._may_stream is None:
            self._may_stream = self._policy.may_stream_upload(flow)
        return self._may_stream

    def start_stream(self, flow: http.HTTPFlow, start: bytes) -> None:
        self._may_stream = False
        self._policy.start_streamed_upload(flow, start)

    def error_in_head(self, flow: http.HTTPFlow) -> tuple[str, str] | None:
        """The error message and the name of mitmproxy's error code, or None."""
        if wrong := forbidden_bytes(flow.request):
            return wrong, "REQUEST_VALIDATION_FAILED"
        declared = flow.request.headers.get("content-length", "")
        return self.error_in_size(flow, int(declared) if declared.isdecimal() else 0)

    def error_in_size(self, flow: http.HTTPFlow, size: int) -> tuple[str, str] | None:
        if size <= self._limit or self.may_stream(flow):
            return None
        return f"The request's body is larger than {self._limit} bytes.", "REQUEST_TOO_LARGE"

    @staticmethod
    def gathered(buffer: LargeBody | bytearray) -> LargeBody:
        """The buffer for the rest of a large body, without a second copy at its end. `buffer`: mitmproxy's, which is cleared."""
        if isinstance(buffer, LargeBody):
            return buffer
        body = bytes(buffer)
        buffer.clear()
        return LargeBody(body)
