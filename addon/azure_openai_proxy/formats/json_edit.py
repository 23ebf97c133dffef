"""Find and replace strings in a JSON body, such as the model's name. No tree is built and all other bytes stay as they are."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["BOM", "Span", "edited", "is_object", "json_strings", "rename", "renamed", "replace"]

BOM = b"\xef\xbb\xbf"
"""A UTF-8 byte order mark. RFC 8259 lets a parser ignore one before a document; some editors and .NET clients write it."""


class Span(NamedTuple):
    """A string in a body: its start and end in bytes, and its decoded text."""

    start: int
    end: int
    text: str


def is_object(content: bytes) -> bool:
    """Return whether `content` begins like a JSON object. A client's content type is not reliable: `curl -d` sends JSON as a form."""
    return content[:1] == b"{" or content.removeprefix(BOM)[:256].lstrip()[:1] == b"{"


def replace(content: bytes, spans: Iterable[Span], new: Callable[[str], bytes]) -> bytes:
    """Return `content` with each span replaced and all other bytes unchanged."""
    pieces: list[bytes] = []
    done = 0
    for span in sorted(spans):
        pieces += content[done : span.start], new(span.text)
        done = span.end
    return b"".join([*pieces, content[done:]])


# The strings and brackets of a JSON document; they suffice to follow the nesting.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


def json_strings(content: bytes, places: Iterable[str]) -> list[Span]:
    """Return the strings at `places` of a valid JSON document, with their quotes.

    A place is a path of member names separated by dots, with `*` for any item of a list: `model`, `session.model`,
    `testing_criteria.*.model`. If an object repeats a name, the last member is used, as in JSON parsers.
    """
    wanted = frozenset(tuple(place.split(".")) for place in places)
    deepest = max(map(len, wanted), default=0)
    found: dict[tuple[int, str], Span | None] = {}
    path: list[str] = []  # the member that each open bracket is the value of; "*" in a list
    opened: list[int] = []
    key = ""  # the member whose value is read next
    lists: list[bool] = []
    position = 0
    while token := _TOKEN.search(content, position):
        text, position = token.group(), token.end()
        if text in b"{[":
            if opened:
                path.append("*" if lists[-1] else key)
            opened.append(token.start())
            lists.append(text == b"[")
        elif text in b"}]":
            opened.pop()
            lists.pop()
            if opened:
                path.pop()
        elif opened and len(opened) <= deepest and not lists[-1] and (colon := _COLON.match(content, position)):
            key = _text(text)
            if (*path, key) in wanted:
                value = _TOKEN.match(content, colon.end())
                is_string = value is not None and value.group() not in b"{["
                found[opened[-1], key] = Span(*value.span(), _text(value.group())) if value and is_string else None
                position = value.end() if value and is_string else colon.end()
    return [span for span in found.values() if span]


def _text(token: bytes) -> str:
    return token[1:-1].decode("utf-8", "replace") if b"\\" not in token else str(json.loads(token))


def rename(content: bytes, places: Iterable[str], new: Callable[[str], str]) -> bytes:
    """Return `content`, a valid JSON document, with the strings at `places` renamed; `content` itself if no string changes."""
    return renamed(content, json_strings(content, places), new)


def renamed(content: bytes, found: Iterable[Span], new: Callable[[str], str], more: Iterable[Span] = ()) -> bytes:
    """The same for strings that are already located. `more` are other edits; the text of each is JSON."""
    spans = [span._replace(text=json.dumps(name)) for span in found if (name := new(span.text)) != span.text]
    return edited(content, [*spans, *more])


def edited(content: bytes, spans: Sequence[Span]) -> bytes:
    """Return `content` with each span replaced by its text; `content` itself without spans."""
    return replace(content, spans, str.encode) if spans else content
