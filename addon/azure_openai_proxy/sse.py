r"""Server-sent events: bytes in, events out, incrementally.

The rules are WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream), with two
differences. The bytes of each event are kept, so that what nobody needs to change goes on as it came: all `raw` together are
the input again. And what stands unfinished at the end of the stream is given out by `flush` for the caller to judge; a
browser would throw it away.

An event ends with a blank line, and a line with `\n`, `\r\n` or `\r`. A `\r` that is the last byte so far is held back,
for the `\n` that may follow belongs to it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Decoder", "Event", "encode", "finish"]

BOM = b"\xef\xbb\xbf"

_LINE_END = re.compile(rb"\r\n|\n|\r")
# `\r` alone must not match in front of its `\n`, or half a line end would count as a blank line.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_ONE_LINE_END = re.compile(rb"\r\n|\n|\r(?!\n)")
_LONGEST_BLANK_LINE = 4


class Event(NamedTuple):
    """The bytes up to and with one blank line. Without data it is a comment, a lone field or the blank line itself."""

    raw: bytes
    data: bytes | None
    event: bytes | None = None


class Decoder:
    """Feed it the stream in any pieces: the events are the same."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._first = True
        self._returns = False  # a `\r` was seen: most streams have none, and a plain find does for them

    @property
    def idle(self) -> bool:
        """Between two events, and no line ended with a return so far."""
        return not self._held and not self._returns

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes."""
        self._returns = self._returns or b"\r" in chunk
        buffer: bytes | bytearray = chunk
        searched = 0
        if self._held:
            # What was searched before is not searched again, but for the bytes a blank line could have begun in.
            searched = max(0, len(self._held) - _LONGEST_BLANK_LINE + 1)
            self._held += chunk
            buffer = self._held
        events = []
        start = 0
        while (end := _end(buffer, start, searched, returns=self._returns)) > 0:
            events.append(self._event(bytes(buffer[start:end])))
            start = searched = end
        if buffer is self._held:
            del self._held[:start]
        else:
            self._held += chunk[start:]
        return events

    def flush(self) -> list[Event]:
        """What is left at the end of the stream: no event, or one, which may lack its blank line."""
        raw = bytes(self._held)
        self._held.clear()
        return [self._event(raw)] if raw else []

    def _event(self, raw: bytes) -> Event:
        lines = raw
        if self._first:
            self._first = False
            lines = raw.removeprefix(BOM)
        if lines.startswith(b"data: ") and lines.find(b"\n") == len(lines) - 2 and not self._returns:
            return Event(raw, lines[6:-2])
        data: list[bytes] = []
        event = None
        for line in _LINE_END.split(lines):
            name, value = _field(line)
            if name == b"data":
                data.append(value)
            elif name == b"event":
                event = value
        return Event(raw, b"\n".join(data) if data else None, event)


def encode(data: bytes, *, of: Event) -> bytes:
    """`of` again with other data: its other fields stay, and its line ends, unless they are lone returns."""
    raw = of.raw
    plain = of.data is not None and len(raw) == len(of.data) + 8 and raw.startswith(b"data: ") and raw.endswith(b"\n\n")
    if plain and b"\n" not in data and b"\r" not in data:
        return b"data: %b\n\n" % data
    fields = []
    new = [b"data: " + line for line in _LINE_END.split(data)]
    pieces = _LINE_END.split(raw.removeprefix(BOM))
    # A lone \r would become half of a \r\n where the next event begins with \n.
    end = b"\r\n" if (match := _LINE_END.search(raw)) and match[0] == b"\r\n" else b"\n"
    for line in pieces:
        if _field(line)[0] == b"data":
            fields += new
            new = []
        elif line:
            fields.append(line)
    blank = end * (2 if pieces[-2:] == [b"", b""] else 1 if pieces[-1:] == [b""] else 0)
    return end.join(fields + new) + blank


def finish(event: Event) -> Event:
    """`event` with the blank line that the end of the stream cut off."""
    if _BLANK_LINE.search(event.raw) or _ONE_LINE_END.fullmatch(event.raw):
        return event
    missing = event.raw[-1:] if event.raw.endswith((b"\n", b"\r")) else b"\n\n"
    return event._replace(raw=event.raw + missing)


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Name and value. A comment has the empty name."""
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


def _end(buffer: bytes | bytearray, start: int, searched: int, *, returns: bool) -> int:
    """Where the event at `start` ends; -1 if that is still to come."""
    if not returns:
        if buffer.startswith(b"\n", start):
            return start + 1
        found = buffer.find(b"\n\n", searched)
        return found + 2 if found >= 0 else -1
    match = _ONE_LINE_END.match(buffer, start) or _BLANK_LINE.search(buffer, searched)
    if not match or (match.end() == len(buffer) and buffer.endswith(b"\r")):
        return -1
    return match.end()
