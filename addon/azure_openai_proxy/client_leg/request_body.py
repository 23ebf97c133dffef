"""The body of a translated request while it arrives: it is buffered up to a limit, or streamed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from mitmproxy.utils import human

from .headers import is_checked
from .http1 import forbidden_bytes
from .large_body import LargeBody

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.options import Options

    from .interface import HttpPolicy

__all__ = ["HELD", "RequestBody"]

HELD = 1 << 20
"""Bytes of a body to buffer before streaming starts. They contain the model, which decides the destination; a small body can be retried."""


class RequestBody:
    """It does not keep the flow, which would stay in memory as long as the stream."""

    def __init__(self, policy: HttpPolicy, limit: int) -> None:
        self._policy, self._limit = policy, limit
        self._may_stream: bool | None = None  # not determined yet, since that is slow and most bodies are small

    @classmethod
    def of(cls, flow: http.HTTPFlow, policy: HttpPolicy, options: Options) -> Self | None:
        """The body of a translated request; None for other requests, to which mitmproxy's own options apply."""
        limit = policy.max_body(flow)
        if limit is None:
            return None
        if flow.request.stream is True and (large := human.parse_size(options.stream_large_bodies)) is not None:
            flow.request.stream = _declared(flow.request) <= large  # mitmproxy would stream a larger one untranslated
        configured = human.parse_size(options.body_size_limit)
        return cls(policy, limit if configured is None else min(limit, configured))

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
        if not is_checked(flow.request) and (wrong := forbidden_bytes(flow.request)):
            return wrong, "REQUEST_VALIDATION_FAILED"
        return self.error_in_size(flow, _declared(flow.request))

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


def _declared(request: http.Request) -> int:
    """The declared length of the body; 0 if it has none."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0
