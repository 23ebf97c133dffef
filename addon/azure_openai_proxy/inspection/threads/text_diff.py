"""The difference of two texts by word, with bounded work. Ids, dates and numbers that change with each call are marked as volatile."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from azure_openai_proxy.formats.sequences import common_prefix, common_suffix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Piece", "compare", "is_volatile"]

MOST_WORDS = 400
"""Words of the differing part of each text that are compared; a longer part is compared by line, or replaced as a whole."""
_VOLATILE = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"  # dates
    r"|\d\d:\d\d(?::\d\d(?:\.\d+)?)?"  # times
    r"|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"  # UUIDs
    r"|[A-Za-z]{2,20}[_-][A-Za-z0-9]{8,128}"  # call_abc123...
    r"|\d{10,20}|[0-9a-f]{16,128}"  # Unix times, hashes
)
_WORD = re.compile(rf"(?:{_VOLATILE.pattern}|\w+|[^\w\s])\s*|\s+")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")

type Change = Literal["equal", "delete", "insert"]


class Piece(NamedTuple):
    change: Change
    text: str
    volatile: bool = False


def is_volatile(text: str) -> bool:
    """Whether a text is an id, a date or a time."""
    return bool(_VOLATILE.fullmatch(text.strip()))


def compare(old: str, new: str) -> list[Piece]:
    """The pieces of both texts in order: those of `old` are equal or deleted, those of `new` equal or inserted."""
    if old == new:
        return [Piece("equal", old)] if old else []
    start = common_prefix(old, new)
    end = common_suffix(old, new, min(len(old), len(new)) - start)
    start, end = _at_words(old, start, end)
    middle = _pieces(old[start : len(old) - end], new[start : len(new) - end])
    pieces = [Piece("equal", old[:start]), *middle, Piece("equal", old[len(old) - end :] if end else "")]
    return [piece for piece in pieces if piece.text]


def _at_words(old: str, start: int, end: int) -> tuple[int, int]:
    """Move both limits out of a word, so that a changed date is one piece. A word of more than 200 characters is divided."""
    for _ in range(200):
        if start and not old[start - 1].isspace():
            start -= 1
    for _ in range(200):
        if end and not old[len(old) - end].isspace():
            end -= 1
    return start, end


def _pieces(old: str, new: str) -> Iterator[Piece]:
    words = _WORD.findall(old[:100_000]), _WORD.findall(new[:100_000])
    if max(len(old), len(new)) <= 100_000 and max(map(len, words)) <= MOST_WORDS:
        yield from _matched(*words)
        return
    lines = _LINE.findall(old), _LINE.findall(new)
    if max(map(len, lines)) <= MOST_WORDS:
        yield from _matched(*lines)
        return
    yield from (Piece("delete", old), Piece("insert", new))


def _matched(old: Sequence[str], new: Sequence[str]) -> Iterator[Piece]:
    for change, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        before, after = "".join(old[a:b]), "".join(new[c:d])
        if change == "equal":
            yield Piece("equal", before)
            continue
        volatile = all(is_volatile(text) for text in (before, after) if text) and bool(before or after)
        if before:
            yield Piece("delete", before, volatile)
        if after:
            yield Piece("insert", after, volatile)
