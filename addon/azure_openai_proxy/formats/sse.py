r"""Server-sent events: bytes in, events out, incrementally.

The rules are WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream), with two
differences. The bytes of each event are kept, so that what nobody needs to change goes on as it came: all `raw` together are
the input again. And what stands unfinished at the end of the stream is given out by `flush` for the caller to judge; a
browser would throw it away.

Comments and blank lines in front of an event are given out before it: some servers send keep-alives without a blank line. An event of
more than `LONGEST` bytes is not collected: it passes in pieces without data, so that a line without an end takes no memory.

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
# Blank lines and comments where an event could begin. A flood of them is one match.
_COMMENTS = re.compile(rb"(?:(?::[^\r\n]*+)?+(?:\r\n|\n|\r(?!\n)))++")
_NO_EVENT = (b":", b"\n", b"\r")
_LONGEST_BLANK_LINE = 4

LONGEST = 32 << 20
"""Bytes of an event that are held until its end; the images that Azure sends in one are smaller."""


class Event(NamedTuple):
    """The bytes up to and with one blank line. Without data it is a lone field, or comments and blank lines between events."""

    raw: bytes
    data: bytes | None
    event: bytes | None = None


class Decoder:
    """Feed it the stream in any pieces: the events with data are the same."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._first = True
        self._returns = False  # a `\r` was seen: most streams have none, and a plain find does for them
        self._passing = False  # in an event that is too long
        self.passed = False  # there was one

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
        events: list[Event] = []
        start = 0
        if self._passing:
            start = searched = self._end_of_long(buffer, searched, events)
        while not self._passing and (end := _end(buffer, start, searched, returns=self._returns)) > 0:
            events.append(self._event(bytes(buffer[start:end])))
            start = searched = end
        if buffer is self._held:
            del self._held[:start]
        else:
            self._held += chunk[start:]
        if self._passing or len(self._held) > LONGEST:
            self._passing = self.passed = True
            kept = 1 - _LONGEST_BLANK_LINE  # may be the beginning of the blank line
            events.append(Event(bytes(self._held[:kept]), None))
            del self._held[:kept]
        return events

    def _end_of_long(self, buffer: bytes | bytearray, searched: int, events: list[Event]) -> int:
        """Where the event that is too long ends, if it does; 0 if not."""
        end = _blank_line(buffer, searched, returns=self._returns)
        if end < 0:
            return 0
        self._passing = False
        events.append(Event(bytes(buffer[:end]), None))
        return end

    def flush(self) -> list[Event]:
        """What is left at the end of the stream: no event, or one, which may lack its blank line."""
        raw = bytes(self._held)
        self._held.clear()
        if not raw:
            return []
        return [Event(raw, None) if self._passing else self._event(raw)]

    def _event(self, raw: bytes) -> Event:
        lines = raw
        if self._first:
            self._first = False
            lines = raw.removeprefix(BOM)
        if lines.startswith(_NO_EVENT):
            return Event(raw, None)
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
    if buffer.startswith(_NO_EVENT, start):
        # A \r at the end may be the first half of a line end.
        known = len(buffer) - buffer.endswith(b"\r")
        if not _LINE_END.search(buffer, searched, known):
            return -1
        return match.end() if (match := _COMMENTS.match(buffer, start, known)) else -1
    return _blank_line(buffer, searched, returns=returns)


def _blank_line(buffer: bytes | bytearray, searched: int, *, returns: bool) -> int:
    """Where the first blank line ends; -1 if it is still to come."""
    if not returns:
        found = buffer.find(b"\n\n", searched)
        return found + 2 if found >= 0 else -1
    match = _BLANK_LINE.search(buffer, searched)
    if not match or (match.end() == len(buffer) and buffer.endswith(b"\r")):
        return -1
    return match.end()
