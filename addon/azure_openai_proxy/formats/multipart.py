"""A multipart form on its way (RFC 7578): parts are edited as they pass, and nothing is held but what an edit needs.

Whatever pieces the form comes in, the same bytes go out; what is not edited goes out byte for byte.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Edit", "Field", "Lines", "Part", "Rewriter", "boundary", "field"]

CHUNK = 64 * 1024
MAX_HEAD = 16 * 1024
"""Bytes of a part's headers. Behind longer ones nothing is looked for."""
MAX_PARTS = 1000
"""Boundaries in a form, and text that begins like one. Behind more of them nothing is looked for, so that the work stays bounded."""

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^";,\s]+))', re.IGNORECASE)
_DISPOSITION = b"\ncontent-disposition:"
_NAME = re.compile(rb'[;\s]name="?([^";\r\n]*)"?', re.IGNORECASE)
_AFTER_DELIMITER = re.compile(rb"--|[ \t]{0,64}(?=\r\n)")
_PERHAPS = re.compile(rb"-?|[ \t]{0,64}\r?")  # the beginning of that


class Part(NamedTuple):
    name: str


class Edit(Protocol):
    """What becomes of one part's content."""

    def feed(self, data: bytes) -> bytes:
        """What goes out now."""

    def end(self) -> bytes:
        """What is left to go out."""


class Field:
    """A short text, replaced as a whole; a long one, or one that is no text, passes."""

    def __init__(self, new: Callable[[str], str], limit: int = 4096) -> None:
        self._new = new
        self._limit = limit
        self._held: list[bytes] = []  # joined once, however small its pieces are
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        self._held.append(data)
        self._size += len(data)
        if self._size <= self._limit:
            return b""
        self._limit = -1
        return self._flush()

    def end(self) -> bytes:
        held = self._flush()
        try:
            return self._new(held.decode()).encode() if held else b""
        except UnicodeDecodeError:
            return held

    def _flush(self) -> bytes:
        held, self._held = b"".join(self._held), []
        return held


class Lines:
    """A file of lines, each replaced as a whole; one longer than `limit` passes."""

    def __init__(self, new: Callable[[bytes], bytes], limit: int) -> None:
        self._new = new
        self._limit = limit
        self._held: list[bytes] = []  # of a line that has not ended; joined once, however small its pieces are
        self._size = 0
        self._passing = False  # the rest of a line that was too long

    def feed(self, data: bytes) -> bytes:
        if b"\n" not in data:
            return self._unfinished(data)
        first, _, rest = data.partition(b"\n")
        out = [self._finished(first), b"\n"]
        *lines, last = rest.split(b"\n")
        for line in lines:
            out += self._new(line), b"\n"
        out.append(self._unfinished(last))
        return b"".join(out)

    def end(self) -> bytes:
        return self._finished(b"")

    def _finished(self, data: bytes) -> bytes:
        passing, self._passing = self._passing, False
        line = self._take(data)
        return line if passing else self._new(line)

    def _unfinished(self, data: bytes) -> bytes:
        self._held.append(data)
        self._size += len(data)
        self._passing |= self._size > self._limit
        return self._take() if self._passing else b""

    def _take(self, data: bytes = b"") -> bytes:
        held = b"".join([*self._held, data])
        self._held, self._size = [], 0
        return held


def boundary(content_type: str) -> bytes | None:
    """What separates the parts; None: it is no form."""
    found = _BOUNDARY.search(content_type) if content_type.lower().startswith("multipart/") else None
    return (found[1] or found[2]).encode(errors="surrogateescape") if found else None


def field(content: bytes, content_type: str, name: str) -> str | None:
    """A field's text; None: the form has none, or `content` ends before it does."""
    separator, found = boundary(content_type), list[str]()
    if not separator:
        return None

    def seen(text: str) -> str:
        found.append(text)
        return text

    rewriter = Rewriter(separator, lambda part: Field(seen) if part.name == name else None)
    for start in range(0, len(content), CHUNK):
        rewriter.feed(content[start : start + CHUNK])
        if found:
            return found[0]
    return None


def _name(head: bytes) -> str | None:
    """The name in a part's headers. Only the first content-disposition counts: each byte is read once, whatever they repeat."""
    lines = b"\n" + head
    at = lines.lower().find(_DISPOSITION)
    if at < 0:
        return None
    found = _NAME.search(lines, at + len(_DISPOSITION), lines.find(b"\r\n", at + 1))
    return found[1].decode("utf-8", "replace") if found else None


class Rewriter:
    """One form. `choose` is asked about each part: its edit, or None where it stays as it is."""

    def __init__(self, boundary: bytes, choose: Callable[[Part], Edit | None]) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._choose = choose
        self._held = b"\r\n"  # the first delimiter may do without its line end
        self._at = 0  # where in it the next step begins: what is behind is cut off once a feed, not once a step
        self._drop = 2
        self._edit: Edit | None = None  # of the part that passes
        self._step: Callable[[], bytes | None] = self._content
        self.steps = 0
        """Work done so far: with the number of feeds it is bounded, whatever the form holds."""
        self._left = MAX_PARTS

    def feed(self, data: bytes) -> bytes:
        self._held, self._at = self._held[self._at :] + data, 0
        pieces = []
        while (piece := self._step()) is not None:  # each step may choose the next
            self.steps += 1
            pieces.append(piece)
        out = b"".join(pieces)
        drop = min(self._drop, len(out))
        self._drop -= drop
        return out[drop:]

    def end(self) -> bytes:
        """The end of the body, wherever in the form it is."""
        return (self._pass(self._cut(len(self._held))) + self._edit_end())[self._drop :]

    # The steps: each gives what goes out, or None for want of more

    def _content(self) -> bytes | None:
        """Before the first part, or in one."""
        at = self._held.find(self._delimiter, self._at)
        if at < 0:
            at = self._held.rfind(b"\r", max(self._at, len(self._held) - len(self._delimiter) + 1))
            perhaps = at >= 0 and self._delimiter.startswith(self._held[at:])
            return self._pass(self._cut(at if perhaps else len(self._held))) or None
        end = at + len(self._delimiter)
        after = _AFTER_DELIMITER.match(self._held, end)
        if not after and _PERHAPS.fullmatch(self._held, end):
            return self._pass(self._cut(at)) or None
        self._left -= 1
        if self._left < 0:
            self._step = self._rest
            return self._pass(self._cut(at)) + self._edit_end()
        if not after:
            return self._pass(self._cut(end))
        content = self._pass(self._cut(at)) + self._edit_end()
        self._step = self._rest if after[0] == b"--" else self._head
        return content + self._cut(after.end())

    def _head(self) -> bytes | None:
        end = self._held.find(b"\r\n\r\n", self._at)
        if end < 0:
            if len(self._held) - self._at > MAX_HEAD:
                self._step = self._rest
                return b""
            return None
        head = self._cut(end + 4)
        name = _name(head)
        self._edit = self._choose(Part(name)) if name is not None else None
        self._step = self._content
        return head

    def _rest(self) -> bytes | None:
        """Behind the last part, or what cannot be read."""
        return self._cut(len(self._held)) or None

    def _pass(self, content: bytes) -> bytes:
        return self._edit.feed(content) if self._edit and content else content

    def _edit_end(self) -> bytes:
        edit, self._edit = self._edit, None
        return edit.end() if edit else b""

    def _cut(self, end: int) -> bytes:
        start, self._at = self._at, end
        return self._held[start:end]
