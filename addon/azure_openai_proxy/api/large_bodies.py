"""A JSON body that is too large to be parsed at once: what was found in it, and changes to the rest of it.

Most of a large body is long strings: images, documents, audio. To change anything else they are replaced by short placeholders, the short
document is parsed, changed and written, and the strings are put back. Where that is not enough, members of the root are replaced whole.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from azure_openai_proxy.formats import json_edit, json_scan
from azure_openai_proxy.formats.json_edit import BOM, Span
from azure_openai_proxy.formats.json_scan import LARGE, InvalidError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from azure_openai_proxy.formats.json_scan import Outline, Turns

__all__ = ["LargeBody", "ShortBody", "is_large", "read", "renamed_in_line"]

LONG = 128
"""Bytes of a string from which on it is replaced."""
LONG_MEMBER = 4096
"""Bytes of a member of the root from which on it is replaced whole."""
SHORT = 2 * LARGE
"""Bytes of a short document."""
MOST_STRINGS = 20_000
"""Strings that are looked at: 10 to 20 milliseconds."""
MOST_ESCAPED = 8 << 20
"""Bytes of strings with escapes, whose end is found by a regular expression: the same."""

_QUOTE, _LIST, _OBJECT = b'"[{'
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*+:")

type Place = tuple[int, int]
"""Start and end in a body."""


def is_large(content: bytes, content_type: str = "") -> bool:
    """Whether `content` is to be read in slices, should it be JSON. A form is read as one."""
    return len(content) > LARGE and (not content_type.lower().startswith("multipart/") or json_edit.is_object(content))


@dataclass(slots=True)
class LargeBody:
    """A body and what was found in it."""

    content: bytes
    outline: Outline | None  # None: it is not JSON
    error: str = ""  # why not
    places: tuple[str, ...] = ()  # that were looked for
    short: ShortBody | None = None  # with placeholders, once it was needed

    def value(self, name: str) -> Any:
        """A member of the root, parsed; None where there is none. Of a large one an empty value of its type."""
        member = self.outline.get(name) if self.outline else None
        if member is None:
            return None
        if member.end - member.value > LONG_MEMBER:
            return {_QUOTE: "", _LIST: [], _OBJECT: {}}.get(self.content[member.value], 0)
        return json.loads(self.content[member.value : member.end])

    def strings(self, *places: str) -> list[Span]:
        """As `bodies.json_strings` has them, but for those that are too long to be a name."""
        content = self.content
        return [
            Span(one.value, one.end, json.loads(content[one.value : one.end]))
            for one in (self.outline.at(*places) if self.outline else ())
            if content[one.value] == _QUOTE and one.end - one.value <= LONG_MEMBER
        ]

    def parse(self) -> dict[str, Any]:
        """The body with placeholders; empty where it is no object, or remains large without its long strings."""
        if self.short is None:
            self.short = _shortened(self)
        return self.short.parse() if self.short and self.outline and self.outline.is_object else {}

    def changed(self, text: bytes) -> LargeBody:
        """The body that `text` is the short form of. It was parsed before."""
        assert self.short
        return self.short.restored(text, self.places)


async def read(turns: Turns, content: bytes, *places: str) -> LargeBody:
    """What is at `places` in `content`, and each member of its root."""
    try:
        return LargeBody(content, await turns.outline(content, places, every=True), places=places)
    except InvalidError as error:
        return LargeBody(content, None, str(error), places)


class ShortBody(NamedTuple):
    """The document with placeholders."""

    text: bytes
    source: bytes  # where what they stand for is
    kept: tuple[Place, ...]
    mark: str  # how they begin; nobody can guess it

    def parse(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.text)
        return value

    def joined(self, text: bytes) -> tuple[bytes, Callable[[int], int]]:
        """`text`, which was made from this one's, with the strings in place of their placeholders; and where a position in it is then."""
        source, whole = memoryview(self.source), memoryview(text)
        pieces: list[bytes | memoryview] = []
        done = grown = 0
        behind, shifts = [0], [0]  # from where on positions are by so much greater
        for match in re.finditer(rb'"%b([0-9]+)"' % self.mark.encode(), text):
            start, end = self.kept[int(match[1])]
            pieces += whole[done : match.start()], source[start:end]
            done = match.end()
            grown += end - start - len(match[0])
            behind.append(done)
            shifts.append(grown)

        def moved(at: int) -> int:
            return at + shifts[bisect.bisect_right(behind, at) - 1]

        return b"".join([*pieces, whole[done:]]), moved

    def restored(self, text: bytes, places: tuple[str, ...]) -> LargeBody:
        """The same, and what is at `places` in it."""
        content, moved = self.joined(text)
        found = json_scan.outline(text, places, every=True)
        members = {
            (moved(start), name): dataclasses.replace(one, start=moved(one.start), value=moved(one.value), end=moved(one.end))
            for (start, name), one in found.members.items()
        }
        outline = found._replace(members=members, root=moved(found.root))
        return LargeBody(content, outline, places=places, short=self._replace(text=text))


def renamed_in_line(line: bytes, place: str, new: Callable[[str], str]) -> bytes:
    """A large line of JSON with the string at `place` renamed; as it is where it stays large without its long strings.

    What is in the long strings is not looked at: a line that is not JSON because of them is renamed too.
    """
    strings = _long_strings(line)
    if strings is None or len(line) - sum(end - start for start, end in strings) > SHORT:
        return line
    short = _with_placeholders(line, strings)
    try:
        if not isinstance(json.loads(short.text), dict):
            return line
    except (ValueError, RecursionError):
        return line
    renamed = json_edit.rename(short.text, (place,), new)
    return line if renamed is short.text else short.joined(renamed)[0]


def _shortened(body: LargeBody) -> ShortBody | None:
    """`body` with placeholders; None where it is no JSON, has too many members, or stays large."""
    if not body.outline or body.outline.partial:
        return None
    for places in (_long_strings(body.content), _long_members(body.outline)):
        if places is not None and len(body.content) - sum(end - start for start, end in places) <= SHORT:
            return _with_placeholders(body.content, places)
    return None


def _with_placeholders(content: bytes, places: Iterable[Place]) -> ShortBody:
    mark = secrets.token_hex(8) + ":"
    pieces: list[bytes] = []
    kept = tuple(places)
    done = 0
    for number, (start, end) in enumerate(kept):
        pieces += content[done:start], f'"{mark}{number}"'.encode()
        done = end
    return ShortBody(b"".join([*pieces, content[done:]]).removeprefix(BOM), content, kept, mark)


def _long_members(outline: Outline) -> list[Place]:
    return sorted((one.value, one.end) for _, one in outline.top() if one.end - one.value > LONG_MEMBER)


def _long_strings(content: bytes) -> list[Place] | None:
    """Those that are values, with their quotes; None where it takes too long to tell, or one does not end."""
    found: list[Place] = []
    escaped = 0
    start = content.find(b'"')
    for _ in range(MOST_STRINGS):
        if start < 0:
            return found
        end = content.find(b'"', start + 1) + 1
        if not end:
            return None
        if content.find(b"\\", start, end) >= 0:
            match = _STRING.match(content, start, start + MOST_ESCAPED)
            if match is None or (escaped := escaped + len(match[0])) > MOST_ESCAPED:
                return None
            end = match.end()
        if end - start >= LONG and not _COLON.match(content, end):
            found.append((start, end))
        start = content.find(b'"', end)
    return None
