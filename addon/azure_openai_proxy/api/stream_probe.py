"""Detection of an error at the start of a stream. Nothing is changed.

Azure sends the status 200 before it knows whether the model has capacity. A stream is buffered until its first event with content or an
error. A first chunk with only the content filter's results for the prompt is neither. A comment ends the buffering: it keeps the client
connected while the model works, which may take minutes.

With `late` the stream is buffered until its first output, so that an overload that Azure reports after `response.created`, or after a chunk
with the role alone, is still found.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from azure_openai_proxy.formats import compression, sse

from . import stream_failures

__all__ = ["Peek", "Verdict"]

AT_MOST = 64 * 1024
"""Maximum number of bytes that are buffered. A longer beginning counts as content."""
LATE_AT_MOST = 1 << 20
"""The same with `late`: `response.created` repeats the instructions and the tools of the request."""
HOLD_STREAM = 2.0
"""Seconds for which a stream is buffered at most, unless the configuration says otherwise."""


class Verdict(NamedTuple):
    error: dict[str, Any] | None
    """The error in the stream; None: the stream has content."""


_CONTENT = Verdict(None)


class Peek:
    def __init__(self, encoding: str | None, *, late: bool = False, seconds: float | None = None) -> None:
        self.seconds = HOLD_STREAM if seconds is None else seconds
        self.verdict: Verdict | None = None
        self.first = b""
        """The data of the first event that is not empty."""
        self._late = late
        self._decompressor = compression.decompressor(encoding)
        self._events = sse.Decoder()
        self._seen = 0
        self._failed = False  # a failure without an error: the next event has it

    def feed(self, data: bytes) -> Verdict | None:
        """Return the verdict; None if more input is needed."""
        self.verdict = self._feed(data)
        return self.verdict

    def end(self) -> Verdict | None:
        """Return the verdict at the end of the stream, whose last event may lack its blank line; None if there is none."""
        verdicts = (self._verdict(event.data, event.event) for event in self._events.flush() if event.data is not None)
        self.verdict = next(filter(None, verdicts), None)
        return self.verdict

    def _feed(self, data: bytes) -> Verdict | None:
        try:
            plain = self._decompressor.feed(data) if self._decompressor else data
        except compression.BrokenError:
            return _CONTENT  # the reader of the stream reports the error
        self._seen += max(len(data), len(plain))
        commented = False
        for event in self._events.feed(plain):
            commented = commented or (event.data is None and b":" in event.raw)
            if event.data is not None and (verdict := self._verdict(event.data, event.event)):
                return verdict
        return _CONTENT if commented or self._seen > (LATE_AT_MOST if self._late else AT_MOST) else None

    def _verdict(self, data: bytes, kind: bytes | None) -> Verdict | None:
        began, self.first = bool(self.first), self.first or data
        if kind in stream_failures.BEFORE_OUTPUT:  # may be long: not parsed
            return None if self._late else _CONTENT
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return _CONTENT
        if not isinstance(value, dict):
            return _CONTENT
        error = stream_failures.error_of(value, kind)
        failed = value.get("type") == stream_failures.FAILED
        if error is not None:
            # Another backend refuses an invalid request too: the client gets it as Azure sent it, unless the error comes first.
            return _CONTENT if (began or failed) and not stream_failures.is_overload(error) else Verdict(error)
        if failed and not self._failed:
            self._failed = True
            return None
        if "choices" in value and not value["choices"] and value.get("usage") is None:
            if not began:
                self.first = b""
            return None
        return _CONTENT if not self._late or self._failed or stream_failures.has_output(value) else None
