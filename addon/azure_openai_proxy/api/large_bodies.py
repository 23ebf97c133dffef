"""Editing of JSON bodies that are too large to parse at once.

Most of a large body is long strings: images, documents, audio. They are replaced by short placeholders; the short document is parsed,
changed and serialized; then the strings are put back. If the document is still too large, whole members of the root are replaced.
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

__all__ = ["LargeBody", "is_large", "read", "renamed_in_line"]

LONG = 128
"""Size in bytes from which a string is replaced."""
LONG_MEMBER = 4096
"""Size in bytes from which a member of the root is replaced."""
SHORT = 2 * LARGE
"""Maximum size in bytes of a short document."""
MOST_STRINGS = 20_000
"""Maximum number of strings that are examined: 10 to 20 milliseconds."""
MOST_ESCAPED = 8 << 20
"""Maximum total size in bytes of strings with escapes, whose end a regular expression finds: 10 to 20 milliseconds."""

_QUOTE, _LIST, _OBJECT = b'"[{'
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*+:")

type Place = tuple[int, int]
"""Start and end in a body, in bytes."""


def is_large(content: bytes, content_type: str = "") -> bool:
    """Return whether `content` is to be read in slices if it is JSON. A multipart form is not."""
    return len(content) > LARGE and (not content_type.lower().startswith("multipart/") or json_edit.is_object(content))


@dataclass(slots=True)
class LargeBody:
    """A body and the result of its scan."""

    content: bytes
    outline: Outline | None  # None: the body is not valid JSON
    error: str = ""  # the reason
    places: tuple[str, ...] = ()  # the requested places
    short: ShortBody | None = None  # the short form, once it was needed

    def value(self, name: str) -> Any:
        """Return a parsed member of the root, or None. For a large member return an empty value of its type."""
        member = self.outline.get(name) if self.outline else None
        if member is None:
            return None
        if member.end - member.value > LONG_MEMBER:
            return {_QUOTE: "", _LIST: [], _OBJECT: {}}.get(self.content[member.value], 0)
        return json.loads(self.content[member.value : member.end])

    def strings(self, *places: str) -> list[Span]:
        """Return the strings like `json_edit.json_strings`, without those that are too long for a name."""
        content = self.content
        return [
            Span(one.value, one.end, json.loads(content[one.value : one.end]))
            for one in (self.outline.at(*places) if self.outline else ())
            if content[one.value] == _QUOTE and one.end - one.value <= LONG_MEMBER
        ]

    def parse(self) -> dict[str, Any]:
        """Parse the body with placeholders. Return {} if it is not an object, or is still large without its long strings."""
        if self.short is None:
            self.short = _shortened(self)
        return self.short.parse() if self.short and self.outline and self.outline.is_object else {}

    def changed(self, text: bytes) -> LargeBody:
        """Return the body whose short form is `text`. `parse` has been called before."""
        assert self.short
        return self.short.restored(text, self.places)


async def read(turns: Turns, content: bytes, *places: str) -> LargeBody:
    """Scan `content` for `places` and for each member of its root."""
    try:
        return LargeBody(content, await turns.outline(content, places, every=True), places=places)
    except InvalidError as error:
        return LargeBody(content, None, str(error), places)


class ShortBody(NamedTuple):
    """A document with placeholders."""

    text: bytes
    source: bytes  # the body with the replaced bytes
    kept: tuple[Place, ...]
    mark: str  # prefix of the placeholders; random, so the body cannot contain it

    def parse(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.text)
        return value

    def joined(self, text: bytes) -> tuple[bytes, Callable[[int], int]]:
        """Put the strings back into `text`, an edited short form. Return the result, and a function that maps an offset in `text` to one in
        it.
        """
        source, whole = memoryview(self.source), memoryview(text)
        pieces: list[bytes | memoryview] = []
        done = grown = 0
        behind, shifts = [0], [0]  # offsets from `behind[i]` on are shifted by `shifts[i]`
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
        """Put the strings back into `text` and scan it for `places`."""
        content, moved = self.joined(text)
        found = json_scan.outline(text, places, every=True)
        members = {
            (moved(start), name): dataclasses.replace(one, start=moved(one.start), value=moved(one.value), end=moved(one.end))
            for (start, name), one in found.members.items()
        }
        outline = found._replace(members=members, root=moved(found.root))
        return LargeBody(content, outline, places=places, short=self._replace(text=text))


def renamed_in_line(line: bytes, place: str, new: Callable[[str], str]) -> bytes:
    """Rename the string at `place` in a large line of JSON. Return the line unchanged if it is still large without its long strings.

    The content of long strings is not validated: a line that is invalid only inside them is renamed too.
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
    """Return `body` with placeholders; None if it is not JSON, has too many members, or is still large."""
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
    """Return the places of long string values, with their quotes. Return None if that takes too long, or if a string has no end."""
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
