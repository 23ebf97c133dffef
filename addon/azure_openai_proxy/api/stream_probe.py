"""Detection of an error at the start of a stream. Nothing is changed.

Azure sends the status 200 before it knows whether the model has capacity. A stream is buffered until its first event with content or an
error. A first chunk with only the content filter's results for the prompt is neither. A comment ends the buffering: it keeps the client
connected while the model works, which may take minutes.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from azure_openai_proxy.formats import compression, sse

__all__ = ["Peek", "Verdict", "error_response"]

AT_MOST = 64 * 1024
"""Maximum number of bytes that are buffered. A longer beginning counts as content."""


class Verdict(NamedTuple):
    error: dict[str, Any] | None
    """The error in the event; None: the stream has content."""
    first: bytes
    """The event's data."""


class Peek:
    def __init__(self, encoding: str | None) -> None:
        self._decompressor = compression.decompressor(encoding)
        self._events = sse.Decoder()
        self._seen = 0
        self.verdict: Verdict | None = None

    def feed(self, data: bytes) -> Verdict | None:
        """Return the verdict; None if more input is needed."""
        self.verdict = self._feed(data)
        return self.verdict

    def _feed(self, data: bytes) -> Verdict | None:
        try:
            plain = self._decompressor.feed(data) if self._decompressor else data
        except compression.BrokenError:
            return Verdict(None, b"")  # the reader of the stream reports the error
        self._seen += max(len(data), len(plain))
        commented = False
        for event in self._events.feed(plain):
            commented = commented or (event.data is None and b":" in event.raw)
            if event.data is not None and (verdict := _verdict(event.data, event.event)):
                return verdict
        return Verdict(None, b"") if commented or self._seen > AT_MOST else None


def _verdict(data: bytes, kind: bytes | None) -> Verdict | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return Verdict(None, data)
    if not isinstance(value, dict):
        return Verdict(None, data)
    error = value.get("error")
    if error or kind == b"error" or value.get("type") == "error":
        if not error:  # The event itself is the error. A response body has no sequence number, and `type` is then the error's own.
            error = {name: item for name, item in value.items() if name != "sequence_number" and (name, item) != ("type", "error")}
        return Verdict(error if isinstance(error, dict) else {"message": str(error)}, data)
    if "choices" in value and not value["choices"] and value.get("usage") is None:
        return None
    return Verdict(None, data)


def error_response(error: dict[str, Any]) -> tuple[int, bytes]:
    """Return the status and the body of an error response that corresponds to an error in a stream."""
    code = str(error.get("code") or error.get("status") or "")
    if len(code) == 3 and code.isascii() and code.isdigit() and 400 <= int(code) < 600:
        status = int(code)
    else:
        text = f"{code} {error.get('type')}".lower()
        status = 429 if "rate" in text or "too_many" in text else 400 if "invalid" in text or "filter" in text else 500
    return status, json.dumps({"error": error}).encode()
