"""A scanner for large JSON documents. It reads in slices, validates the document and locates the requested members.

`json.loads` and a regular expression hold the interpreter's lock until they finish, even in a thread: 18 MB block all clients for a second.
A `Scanner` reads at most `SLICE` bytes at a time and builds no objects for other members. One regular expression reads runs of items and
members that are not requested. Each of its quantifiers is possessive and it follows three levels of nesting at most, so it reads each byte
of a slice a few times at most. Deeper values are read token by token.

The scanner agrees with `json.loads`, within limits: the text is UTF-8, with or without a byte order mark; containers nest at most `DEEPEST`
deep; a number has at most 4300 digits.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from .json_edit import BOM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

__all__ = ["DEEPEST", "LARGE", "MOST", "SLICE", "STEPS", "InvalidError", "Member", "Outline", "Scanner", "Turns", "outline"]

LARGE = 256 * 1024
"""Size in bytes from which a document is read in slices: `json.loads` takes a few milliseconds for a smaller one."""
SLICE = 64 * 1024
"""Bytes that are read at a time."""
STEPS = 2000
"""Maximum number of single tokens that are read at a time: 1 to 3 milliseconds."""
DEEPEST = 1000
"""Maximum number of nesting levels."""
MOST = 10_000
"""Maximum number of recorded members. Members of the root that are requested by name are recorded in any case."""
LONGEST_NAME = 1024
"""Maximum size in bytes of a member's name that is compared."""
LONGEST_NUMBER = 16 * 1024

_SPACE = rb"[ \t\n\r]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
_DIGITS = rb"[0-9]{1,4300}+"
_ATOM = rb"(?:-?(?:0|[1-9][0-9]{0,4299}+)(?:\.%b)?+(?:[eE][-+]?%b)?+|true|false|null|NaN|-?Infinity)" % (_DIGITS, _DIGITS)


def _items(value: bytes) -> bytes:
    return rb"\[%b(?:%b%b(?:,%b(?!\])|(?=\])))*+\]" % (_SPACE, value, _SPACE, _SPACE)


def _members(value: bytes) -> bytes:
    return rb"\{%b(?:%b%b:%b%b%b(?:,%b(?!\})|(?=\})))*+\}" % (_SPACE, _STRING, _SPACE, _SPACE, value, _SPACE, _SPACE)


class _Patterns(NamedTuple):
    """Each pattern matches a run of complete items or members, each with its comma. The run may be empty."""

    items: re.Pattern[bytes]
    items_but_objects: re.Pattern[bytes]
    members: re.Pattern[bytes]


@cache
def _patterns() -> _Patterns:
    """Compile the patterns when the first large document arrives: this takes some milliseconds."""
    plain = rb"(?:%b|%b)" % (_STRING, _ATOM)
    value = plain
    for _ in range(3):
        value = rb"(?:%b|%b|%b)" % (plain, _items(value), _members(value))
    run = rb"(?:%b%%b%b,)*+" % (_SPACE, _SPACE)
    return _Patterns(
        re.compile(run % value),
        re.compile(run % (rb"(?:%b|%b)" % (plain, _items(value)))),
        re.compile(run % (rb"%b%b:%b%b" % (_STRING, _SPACE, _SPACE, value))),
    )


_WHITE = re.compile(_SPACE)
_TEXT = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
_PLAIN = re.compile(_ATOM)
_WORD = re.compile(rb"[-+.0-9A-Za-z]*+")
_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_LIST, _LIST_END, _OBJECT, _OBJECT_END = b"[]{}"
_ESCAPE = 6
"""Size in bytes of the longest escape."""


class InvalidError(ValueError):
    """The part of the document that was read is not valid JSON."""


class _Awaits(Enum):
    """The next expected token."""

    VALUE = auto()
    FIRST_ITEM = auto()
    ITEM = auto()
    FIRST_NAME = auto()
    NAME = auto()
    COLON = auto()
    NAME_TEXT = auto()
    VALUE_TEXT = auto()
    COMMA = auto()


class _Place:
    """A node in the tree of requested places: whether the value itself is requested, and the requested places below it."""

    __slots__ = ("below", "every", "wanted")

    def __init__(self) -> None:
        self.below: dict[str, _Place] = {}
        self.wanted = False
        self.every = False  # each of its members, by any name

    def add(self, place: str) -> None:
        node = self
        for name in place.split("."):
            node = node.below.setdefault(name, _Place())
        node.wanted = True


_UNNAMED = _Place()
_UNNAMED.wanted = True


@dataclass(slots=True)
class Member:
    """The position of a member of an object in the document, or of an item of a list (its name is `*`)."""

    path: str
    start: int  # offset of its name
    value: int
    end: int = 0
    before: int = 0  # end of the previous member; 0 if it is the first
    next: int = 0  # offset of the next member's name; 0 if it is the last

    def kind(self, content: bytes | bytearray) -> int:
        """Return the first byte of the value."""
        return content[self.value]


@dataclass(slots=True)
class _Open:
    """The state of an open object or list that has requested members."""

    start: int
    place: _Place
    path: str
    name: str = ""  # of the current member
    at: int = 0  # offset of its name
    before: int = 0
    reading: tuple[_Place, Member] | None = None
    last: Member | None = None


class Outline(NamedTuple):
    """The result of a scan: the recorded members of a valid document."""

    kind: int = 0  # first byte of the root
    members: dict[tuple[int, str], Member] = {}  # noqa: RUF012 - never changed; key: start of the object, name; a repeated name has its last member
    root: int = 0  # offset of the root
    partial: bool = False  # some members were not recorded

    @property
    def is_object(self) -> bool:
        return self.kind == _OBJECT

    def get(self, name: str) -> Member | None:
        """Return a member of the root."""
        return self.members.get((self.root, name))

    def top(self) -> Iterator[tuple[str, Member]]:
        """Return the recorded members of the root."""
        return ((name, member) for (start, name), member in self.members.items() if start == self.root)

    def at(self, *places: str) -> list[Member]:
        """Return the members at `places`."""
        return [member for member in self.members.values() if member.path in places]


@dataclass(slots=True)
class Scanner:
    """Scans a document, which may still grow. `places` are those of `json_edit.json_strings`; `every` requests each member of the root."""

    places: Iterable[str] = ()
    every: bool = False
    position: int = 0  # bytes before it are read
    steps: int = 0
    done: bool = False
    _awaits: _Awaits = _Awaits.VALUE
    _stack: list[bool] = field(default_factory=list)  # True for a list, False for an object
    _open: list[_Open | None] = field(default_factory=list)
    _found: dict[tuple[int, str], Member] = field(default_factory=dict)
    _tree: _Place = field(default_factory=_Place)
    _kind: int = 0
    _root: int = 0
    _text: int = 0  # offset of the current string
    _partial: bool = False
    _decoded: int = 0
    _decoder: Any = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def __post_init__(self) -> None:
        for place in self.places:
            self._tree.add(place)
        self._tree.every = self.every

    def scan(self, content: bytes | bytearray, end: int, *, final: bool) -> None:
        """Continue until `end` or for at most `STEPS` tokens. With `final` the document ends at `end`.

        Raises:
            InvalidError: the document is not valid JSON.
        """
        if end > self._decoded:
            try:
                self._decoder.decode(content[self._decoded : end], final)
            except UnicodeDecodeError as error:
                raise InvalidError(f"not UTF-8 at byte {self._decoded + error.start}") from error
            self._decoded = end
        for _ in range(STEPS):
            self.steps += 1
            if not self._step(content, end, final=final):
                break
        if final and self.position == end:
            if self._stack or self._awaits is not _Awaits.COMMA:
                raise InvalidError(f"it ends too early, at byte {end}")
            self.done = True

    @property
    def outline(self) -> Outline:
        return Outline(self._kind, self._found, self._root, self._partial)

    def _step(self, content: bytes | bytearray, end: int, *, final: bool) -> bool:
        """Read a run or a token. Return False if it is incomplete."""
        awaits = self._awaits
        if awaits is _Awaits.NAME_TEXT or awaits is _Awaits.VALUE_TEXT:
            return self._string(content, end, final=final)
        if self._stack and (run := self._run()) and (match := run.match(content, self.position, end)) and match.end() > self.position:
            self.position = match.end()
            self._awaits = _Awaits.ITEM if self._stack[-1] else _Awaits.NAME
            return True
        match = _WHITE.match(content, self.position, end)
        self.position = match.end()  # type: ignore[union-attr] # an empty match at least
        if self.position == end:
            return False
        first = content[self.position]
        if awaits is _Awaits.COMMA:
            self._after_value(first)
        elif awaits is _Awaits.COLON:
            self._expect(first == _COLON, "':'")
            self.position += 1
            self._awaits = _Awaits.VALUE
        elif awaits is _Awaits.NAME or awaits is _Awaits.FIRST_NAME:
            if first == _OBJECT_END and awaits is _Awaits.FIRST_NAME:
                self._close()
            else:
                self._expect(first == _QUOTE, "a name in double quotes")
                self._quote(_Awaits.NAME_TEXT)
        elif first == _LIST_END and awaits is _Awaits.FIRST_ITEM:
            self._close()
        else:
            return self._value(content, first, end, final=final)
        return True

    def _run(self) -> re.Pattern[bytes] | None:
        """Return the pattern for a run of items or members; None if each is to be read singly, or if none is expected."""
        open_ = self._open[-1]
        awaits = self._awaits
        if awaits is _Awaits.ITEM or awaits is _Awaits.FIRST_ITEM:
            item = open_.place.below.get("*") if open_ else None
            if item is None:
                return _patterns().items
            return None if item.wanted or "*" in item.below else _patterns().items_but_objects
        if (awaits is _Awaits.NAME or awaits is _Awaits.FIRST_NAME) and open_ is None:
            return _patterns().members
        return None

    def _value(self, content: bytes | bytearray, first: int, end: int, *, final: bool) -> bool:
        open_ = self._open[-1] if self._open else None
        place = self._begin_value(open_) if self._stack else self._tree
        if not self._stack:
            self._kind, self._root = first, self.position
        if first == _QUOTE:
            self._quote(_Awaits.VALUE_TEXT)
        elif first in (_LIST, _OBJECT):
            if len(self._stack) >= DEEPEST:
                raise InvalidError(f"it nests deeper than {DEEPEST} levels, at byte {self.position}")
            is_list = first == _LIST
            wanted = place is not None and ("*" in place.below if is_list else bool(place.below) or place.every)
            path = (open_.reading[1].path if open_ and open_.reading else "") if wanted else ""
            self._open.append(_Open(self.position, place, path) if place and wanted else None)
            self._stack.append(is_list)
            self.position += 1
            self._awaits = _Awaits.FIRST_ITEM if is_list else _Awaits.FIRST_NAME
        else:
            word = _WORD.match(content, self.position, end).end()  # type: ignore[union-attr] # an empty match at least
            if word == end and not final and end - self.position < LONGEST_NUMBER:
                return False
            self._expect(_PLAIN.fullmatch(content, self.position, word) is not None, "a value")
            self.position = word
            self._end_value()
        return True

    def _begin_value(self, open_: _Open | None) -> _Place | None:
        """Begin a value inside `open_`. Return its node in the tree of requested places; None if it is not requested."""
        if open_ is None:
            return None
        if self._stack[-1]:
            open_.name, open_.at = "*", self.position
        place = open_.place.below.get(open_.name)
        if place is None and open_.place.every:
            place = _UNNAMED
        if place is not None:
            path = f"{open_.path}.{open_.name}" if open_.path else open_.name
            open_.reading = place, Member(path, open_.at, self.position, before=open_.before)
        return place

    def _end_value(self) -> None:
        """Record the value that ends here."""
        self._awaits = _Awaits.COMMA
        open_ = self._open[-1] if self._open else None
        if open_ is None:
            return
        open_.before = self.position
        if open_.reading is None:
            return
        place, member = open_.reading
        open_.reading = None
        member.end = self.position
        open_.last = member
        if not (place.wanted or open_.place.every):
            return
        key = (open_.start, open_.name) if not self._stack[-1] else (member.start, "*")
        if len(self._found) < MOST or (len(self._stack) == 1 and place is not _UNNAMED and not self._stack[-1]) or key in self._found:
            self._found[key] = member
        else:
            self._partial = True

    def _string(self, content: bytes | bytearray, end: int, *, final: bool) -> bool:
        position = _TEXT.match(content, self.position, end).end()  # type: ignore[union-attr] # an empty match at least
        self.position = position
        if position == end:
            return False
        first = content[position]
        if first == _BACKSLASH and not final and end - position < _ESCAPE:
            return False
        self._expect(first == _QUOTE, "a valid character of a string")
        self.position += 1
        if self._awaits is _Awaits.VALUE_TEXT:
            self._end_value()
            return True
        self._awaits = _Awaits.COLON
        if open_ := self._open[-1]:
            if open_.last is not None:
                open_.last.next, open_.last = self._text, None
            short = self.position - self._text <= LONGEST_NAME
            open_.name, open_.at = _name(content[self._text : self.position]) if short else "", self._text
            self._partial |= not short and open_.place.every
        return True

    def _quote(self, awaits: _Awaits) -> None:
        self._text = self.position
        self.position += 1
        self._awaits = awaits

    def _after_value(self, first: int) -> None:
        """Read the token after a value."""
        if not self._stack:
            raise InvalidError(f"data follows its end, at byte {self.position}")
        is_list = self._stack[-1]
        if first == (_LIST_END if is_list else _OBJECT_END):
            self._close()
            return
        self._expect(first == _COMMA, f"',' or '{']' if is_list else '}'}'")
        self.position += 1
        self._awaits = _Awaits.ITEM if is_list else _Awaits.NAME

    def _close(self) -> None:
        self._stack.pop()
        self._open.pop()
        self.position += 1
        self._end_value()

    def _expect(self, right: bool, what: str) -> None:  # noqa: FBT001 - the condition comes first, as in an assertion
        if not right:
            raise InvalidError(f"expected {what} at byte {self.position}")


def _name(token: bytes | bytearray) -> str:
    return token[1:-1].decode("utf-8", "replace") if b"\\" not in token else str(json.loads(token))


def outline(content: bytes, places: Iterable[str] = (), *, every: bool = False) -> Outline:
    """Scan a complete document of any size without yielding to the event loop.

    Raises:
        InvalidError: the document is not valid JSON.
    """
    scanner = Scanner(places, every)
    while not scanner.done:
        _turn(scanner, content)
    return scanner.outline


def _turn(scanner: Scanner, content: bytes) -> None:
    if not scanner.position and content.startswith(BOM):
        scanner.position = len(BOM)
    end = min(len(content), scanner.position + SLICE)
    scanner.scan(content, end, final=end == len(content))


class Turns:
    """Shares the event loop between concurrent scans: after one slice of one document, other tasks run."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def share[Piece](self, work: Iterable[Piece]) -> AsyncIterator[Piece]:
        """Yield the items of `work`. Other tasks run between two of them."""
        for piece in work:
            async with self._lock:
                await asyncio.sleep(0)
            yield piece

    async def outline(self, content: bytes, places: Iterable[str] = (), *, every: bool = False) -> Outline:
        """Scan a complete document.

        Raises:
            InvalidError: the document is not valid JSON.
        """
        await asyncio.to_thread(_patterns)  # takes some milliseconds, once
        scanner = Scanner(places, every)
        while not scanner.done:
            async with self._lock:
                _turn(scanner, content)
                await asyncio.sleep(0)
        return scanner.outline
