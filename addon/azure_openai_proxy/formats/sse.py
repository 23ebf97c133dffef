r"""An incremental parser for server-sent events.

The rules are WHATWG's (https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream), with two differences. The
bytes of each event are kept, so an unchanged event is forwarded byte for byte: all `raw` joined are the input. `flush` returns an
incomplete event at the end of the stream, which a browser discards; the caller decides.

Comments and blank lines before an event are returned before it: some servers send keep-alive comments without a blank line. An event of
more than `LONGEST` bytes is not buffered: it is returned in pieces without data, so an endless line takes no memory.

An event ends with a blank line, and a line ends with `\n`, `\r\n` or `\r`. A `\r` at the end of the input is held back, because a following
`\n` belongs to it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Decoder", "Event", "encode", "finish", "without"]

BOM = b"\xef\xbb\xbf"

_LINE_END = re.compile(rb"\r\n|\n|\r")
# `\r` must not match alone before its `\n`: half a line end would count as a blank line.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_ONE_LINE_END = re.compile(rb"\r\n|\n|\r(?!\n)")
# Blank lines and comments at the start of an event. One match takes all of them, so a flood of them is cheap.
_COMMENTS = re.compile(rb"(?:(?::[^\r\n]*+)?+(?:\r\n|\n|\r(?!\n)))++")
_NO_EVENT = (b":", b"\n", b"\r")
_LONGEST_BLANK_LINE = 4

LONGEST = 32 << 20
"""Maximum size in bytes of a buffered event. The images that Azure sends in one event are smaller."""


class Event(NamedTuple):
    """The bytes of an event with its blank line. `data` is None for other fields without data, and for comments and blank lines."""

    raw: bytes
    data: bytes | None
    event: bytes | None = None


class Decoder:
    """Parses a stream. The events with data do not depend on the chunks that the stream arrives in."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._first = True
        self._returns = False  # the stream contains `\r`; most streams do not and are searched with a plain find
        self._passing = False  # in an event larger than LONGEST
        self.passed = False  # there was such an event

    @property
    def idle(self) -> bool:
        r"""Return whether the decoder is between two events and no line has ended with `\r` so far."""
        return not self._held and not self._returns

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes."""
        self._returns = self._returns or b"\r" in chunk
        buffer: bytes | bytearray = chunk
        searched = 0
        if self._held:
            # Do not search bytes twice, except for the last ones, in which a blank line may begin.
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
            kept = 1 - _LONGEST_BLANK_LINE  # bytes that may begin the blank line
            events.append(Event(bytes(self._held[:kept]), None))
            del self._held[:kept]
        return events

    def _end_of_long(self, buffer: bytes | bytearray, searched: int, events: list[Event]) -> int:
        """Return the end of the current event, which is larger than LONGEST; 0 if it does not end in `buffer`."""
        end = _blank_line(buffer, searched, returns=self._returns)
        if end < 0:
            return 0
        self._passing = False
        events.append(Event(bytes(buffer[:end]), None))
        return end

    def flush(self) -> list[Event]:
        """Return the remaining event at the end of the stream, if there is one. It may lack its blank line."""
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
    r"""Return `of` with other data. Its other fields are kept, and so are its line ends unless they are lone `\r`."""
    raw = of.raw
    plain = of.data is not None and len(raw) == len(of.data) + 8 and raw.startswith(b"data: ") and raw.endswith(b"\n\n")
    if plain and b"\n" not in data and b"\r" not in data:
        return b"data: %b\n\n" % data
    fields = []
    new = [b"data: " + line for line in _LINE_END.split(data)]
    pieces = _LINE_END.split(raw.removeprefix(BOM))
    # A lone \r would become half of a \r\n if the next event begins with \n.
    end = b"\r\n" if (match := _LINE_END.search(raw)) and match[0] == b"\r\n" else b"\n"
    for line in pieces:
        if _field(line)[0] == b"data":
            fields += new
            new = []
        elif line:
            fields.append(line)
    blank = end * (2 if pieces[-2:] == [b"", b""] else 1 if pieces[-1:] == [b""] else 0)
    return end.join(fields + new) + blank


def without(event: Event, start: int, end: int) -> Event:
    """Return `event` without the bytes of its data from `start` to `end`. All other bytes stay as they are."""
    data, raw = event.data or b"", event.raw
    kept = data[:start] + data[end:]
    if len(raw) == len(data) + 8 and raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
        return event._replace(raw=b"data: %b\n\n" % kept, data=kept)
    before, after = raw[: _place(raw, start)], raw[_place(raw, end) :]
    if after[:1] not in (b"\r", b"\n"):  # a value follows, which may need the colon or the space of its own line
        line = _LINE_END.split(before)[-1].removeprefix(BOM)
        if line == b"data":
            before += b": "
        elif line == b"data:" and after.startswith(b" "):
            before += b" "
    return event._replace(raw=before + after, data=kept)


def _place(raw: bytes, offset: int) -> int:
    """Return the place in an event's bytes of an offset in its data."""
    at = len(BOM) if raw.startswith(BOM) else 0
    for line in _LINE_END.split(raw[at:]):
        name, value = _field(line)
        if name == b"data":
            if offset <= len(value):
                return at + len(line) - len(value) + offset
            offset -= len(value) + 1
        at += len(line)
        at += 2 if raw.startswith(b"\r\n", at) else 1
    return len(raw)


def finish(event: Event) -> Event:
    """Return `event` with a blank line at its end, which a truncated stream lacks."""
    if _BLANK_LINE.search(event.raw) or _ONE_LINE_END.fullmatch(event.raw):
        return event
    missing = event.raw[-1:] if event.raw.endswith((b"\n", b"\r")) else b"\n\n"
    return event._replace(raw=event.raw + missing)


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Return name and value. A comment has an empty name."""
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")


def _end(buffer: bytes | bytearray, start: int, searched: int, *, returns: bool) -> int:
    """Return the end of the event at `start`; -1 if it is incomplete."""
    if buffer.startswith(_NO_EVENT, start):
        # A \r at the end may be the first half of a line end.
        known = len(buffer) - buffer.endswith(b"\r")
        if not _LINE_END.search(buffer, searched, known):
            return -1
        return match.end() if (match := _COMMENTS.match(buffer, start, known)) else -1
    return _blank_line(buffer, searched, returns=returns)


def _blank_line(buffer: bytes | bytearray, searched: int, *, returns: bool) -> int:
    """Return the end of the first blank line; -1 if there is none yet."""
    if not returns:
        found = buffer.find(b"\n\n", searched)
        return found + 2 if found >= 0 else -1
    match = _BLANK_LINE.search(buffer, searched)
    if not match or (match.end() == len(buffer) and buffer.endswith(b"\r")):
        return -1
    return match.end()
