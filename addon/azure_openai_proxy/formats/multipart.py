"""A streaming rewriter for multipart forms (RFC 7578). It edits parts while they pass and buffers only the bytes that an edit needs.

The output does not depend on the chunks of the input. Parts without an edit are unchanged byte for byte.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BLANK", "Blank", "Edit", "Field", "Lines", "Part", "Rewriter", "boundary", "field", "values"]

CHUNK = 64 * 1024
MAX_HEAD = 16 * 1024
"""Maximum size in bytes of a part's headers. After larger ones the rest passes unchanged, or blank if the rewriter is strict."""
MAX_PARTS = 1000
"""Maximum number of delimiters, including text that begins like one. After them the rest of the form passes likewise, so the work is
bounded.
"""
BLANK = b"-"
"""Takes the place of each byte that a strict rewriter does not let pass, so that the length stays."""

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^";,\s]+))', re.IGNORECASE)
_BOUNDARIES = re.compile(r"boundary[*0-9]{0,8}\s*=", re.IGNORECASE)
_DISPOSITION = re.compile(rb"\ncontent-disposition[ \t]*:((?:[^\r\n]|\r?\n[ \t])*)", re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name(\*)?[ \t]*=[ \t]*(?:"((?:[^"\\\r\n]|\\.)*)"?|([^";\s]*))', re.IGNORECASE)
_LANGUAGE = re.compile(rb"[\w-]*'[^']*'")  # before a value of RFC 8187
_AFTER_DELIMITER = re.compile(rb"--|[ \t]{0,64}(?=\r\n)")
_INCOMPLETE_AFTER_DELIMITER = re.compile(rb"-?|[ \t]{0,64}\r?")  # an incomplete match of _AFTER_DELIMITER


class Part(NamedTuple):
    name: str
    odd: bool = False  # its headers have several names, of which parsers take different ones


class Edit(Protocol):
    """An edit of one part's content."""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to send now."""

    def end(self) -> bytes:
        """Return the remaining bytes to send."""


class Field:
    """Replaces a short text as a whole. A longer one, or one that is not UTF-8, passes unchanged."""

    def __init__(self, new: Callable[[str], str], limit: int = 4096) -> None:
        self._new = new
        self._limit = limit
        self._held: list[bytes] = []  # joined once, so many small pieces cost little
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


class Blank:
    """Replaces each byte."""

    def feed(self, data: bytes) -> bytes:
        return BLANK * len(data)

    def end(self) -> bytes:
        return b""


class Lines:
    """Replaces each line of a file. A line longer than `limit` passes unchanged."""

    def __init__(self, new: Callable[[bytes], bytes], limit: int) -> None:
        self._new = new
        self._limit = limit
        self._held: list[bytes] = []  # of an incomplete line; joined once, so many small pieces cost little
        self._size = 0
        self._passing = False  # in a line longer than the limit

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
    """Return the boundary between the parts; None if the content type is not a multipart form."""
    found = _BOUNDARY.search(content_type) if content_type.lower().startswith("multipart/") else None
    if found and len(_BOUNDARIES.findall(content_type)) > 1:  # parsers take different ones
        return None
    return (found[1] or found[2]).encode(errors="surrogateescape") if found else None


def field(content: bytes, content_type: str, name: str) -> str | None:
    """Return the text of a form's field; None if the form has no such field, or if `content` ends before the field does."""
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


def values(content: bytes, content_type: str, name: str) -> tuple[list[str], bool]:
    """Return the texts of all fields of that name, and whether every parser finds the same ones."""
    separator, found, odd = boundary(content_type), list[str](), list[Part]()
    if not separator:
        return [], not content_type.lower().startswith("multipart/")

    def seen(text: str) -> str:
        found.append(text)
        return text

    def choose(part: Part) -> Edit | None:
        odd.extend([part] if part.odd else [])
        return Field(seen) if part.name == name else None

    rewriter = Rewriter(separator, choose)
    for start in range(0, len(content), CHUNK):
        rewriter.feed(content[start : start + CHUNK])
    return found, not (odd or rewriter.lost)


def _part(head: bytes) -> Part | None:
    """Read the name from a part's headers. Only the first content-disposition names it."""
    dispositions = [match[1] for match in _DISPOSITION.finditer(b"\n" + head)]
    names = [[_decoded(match) for match in _NAME.finditer(b" " + text)] for text in dispositions]
    if not dispositions or not any(names):
        return None
    different = {name for each in names for name in each}
    return Part(names[0][0] if names[0] else "", len(different) > 1 or len(dispositions) > 1)


def _decoded(match: re.Match[bytes]) -> str:
    text = re.sub(rb"\\(.)", rb"\1", match[2]) if match[2] is not None else match[3]
    return (unquote_to_bytes(_LANGUAGE.sub(b"", text, count=1)) if match[1] else text).decode("utf-8", "replace")


class Rewriter:
    """Rewrites one form. `choose` returns the edit for a part, or None to leave the part unchanged."""

    def __init__(self, boundary: bytes, choose: Callable[[Part], Edit | None], *, strict: bool = False) -> None:
        self._strict = strict
        self.lost = False
        """Whether the form was not read to its end."""
        self._delimiter = b"\r\n--" + boundary
        self._choose = choose
        self._held = b"\r\n"  # the first delimiter may have no line end before it
        self._at = 0  # where the next step begins in `_held`; consumed bytes are deleted once per feed, not once per step
        self._drop = 2
        self._edit: Edit | None = None  # of the current part
        self._step: Callable[[], bytes | None] = self._content
        self.steps = 0
        """Number of steps so far. Together with the number of feeds it is bounded for any form."""
        self._left = MAX_PARTS

    def feed(self, data: bytes) -> bytes:
        self._held, self._at = self._held[self._at :] + data, 0
        pieces = []
        while (piece := self._step()) is not None:  # each step may set the next one
            self.steps += 1
            pieces.append(piece)
        out = b"".join(pieces)
        drop = min(self._drop, len(out))
        self._drop -= drop
        return out[drop:]

    def end(self) -> bytes:
        """End the body, in any state."""
        return (self._pass(self._cut(len(self._held))) + self._edit_end())[self._drop :]

    # States. Each returns bytes to send, or None if it needs more input.

    def _content(self) -> bytes | None:
        """Before the first part, or in the content of one."""
        at = self._held.find(self._delimiter, self._at)
        if at < 0:
            at = self._held.rfind(b"\r", max(self._at, len(self._held) - len(self._delimiter) + 1))
            perhaps = at >= 0 and self._delimiter.startswith(self._held[at:])
            return self._pass(self._cut(at if perhaps else len(self._held))) or None
        end = at + len(self._delimiter)
        after = _AFTER_DELIMITER.match(self._held, end)
        if not after and _INCOMPLETE_AFTER_DELIMITER.fullmatch(self._held, end):
            return self._pass(self._cut(at)) or None
        self._left -= 1
        if self._left < 0:
            self.lost, self._step = True, self._rest
            return self._pass(self._cut(at)) + self._edit_end()
        if not after:
            return self._pass(self._cut(end))
        content = self._pass(self._cut(at)) + self._edit_end()
        self._step = self._rest if after[0] == b"--" else self._head
        return content + self._cut(after.end())

    def _head(self) -> bytes | None:
        longest = self._at + MAX_HEAD + 4
        end = self._held.find(b"\r\n\r\n", self._at, longest)
        if end < 0:
            if len(self._held) >= longest:
                self.lost, self._step = True, self._rest
                return b""
            return None
        head = self._cut(end + 4)
        part = _part(head)
        self._edit = self._choose(part) if part is not None else None
        self._step = self._content
        return head

    def _rest(self) -> bytes | None:
        """After the last part, or after a part that cannot be read."""
        rest = self._cut(len(self._held))
        return (BLANK * len(rest) if self._strict and self.lost else rest) or None

    def _pass(self, content: bytes) -> bytes:
        return self._edit.feed(content) if self._edit and content else content

    def _edit_end(self) -> bytes:
        edit, self._edit = self._edit, None
        return edit.end() if edit else b""

    def _cut(self, end: int) -> bytes:
        start, self._at = self._at, end
        return self._held[start:end]
