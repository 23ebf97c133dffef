"""Reading and formatting of bodies for display, with limits on every length, so that any input yields a short text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["LARGE", "Section", "clean", "compact", "dicts", "encoded", "indented", "is_heavy", "load", "page", "parameters", "size", "text"]

LONGEST_TEXT = 20_000  # characters of one section
LONGEST_PAGE = 400_000  # characters of all sections
LONGEST_STRING = 200  # characters of a string in JSON
DEEPEST = 12  # levels of JSON
LONGEST_PREFIX = 300  # characters of a data URL before its data
LONGEST_HEADING = 300
MOST_PARAMETERS = 200
LARGE = 1 << 20  # bytes of JSON that are parsed whatever they contain
LARGEST = 32 << 20  # bytes of JSON that are parsed at all
MOST_VALUES = 300_000  # strings, lists, objects and numbers of a large body

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]{0,100}?;base64,")

type Section = tuple[str, str]
"""A heading (`user`, `tool call get_weather`) and the text below it."""


def page(sections: Iterable[Section]) -> str:
    """All sections as one text."""
    return clean("\n".join(_lines(sections)).lstrip("\n"))


def _lines(sections: Iterable[Section]) -> Iterator[str]:
    length = 0
    for heading, body in sections:
        if length > LONGEST_PAGE:
            yield "\n… and more, which is not shown"
            return
        if heading:
            yield f"\n── {heading[:LONGEST_HEADING]}"
        if body:
            yield body
        length += len(heading) + len(body)


def clean(text: str) -> str:
    """Make a text safe to print: replace lone surrogates, and escape control characters, which a terminal would interpret."""
    return quoting.terminal(text.encode("utf-8", "replace").decode().replace("\r\n", "\n"))


def is_heavy(body: bytes) -> bool:
    """Whether parsing the body would block the event loop for long. A few long strings, such as images, are no matter."""
    if len(body) <= LARGE:
        return False
    return len(body) > LARGEST or sum(map(body.count, (b'"', b",", b"[", b"{"))) > MOST_VALUES


def load(body: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: `body` is not JSON, is too large or dense, nests too deeply or has a number with too many digits.
    """
    if is_heavy(body):
        raise ValueError(f"it is not parsed: {size(len(body))}, and more than {MOST_VALUES:,} values or {size(LARGEST)}")
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def text(value: object) -> str:
    """A string unchanged, another value as JSON, both truncated to `LONGEST_TEXT`."""
    written = value if isinstance(value, str) else compact(value)
    rest = len(written) - LONGEST_TEXT
    return written if rest <= 0 else f"{written[:LONGEST_TEXT]}\n… {rest:,} more characters"


def compact(value: object) -> str:
    """JSON in one line, with long strings truncated."""
    return json.dumps(_short(value), ensure_ascii=False)


def indented(value: object) -> str:
    """JSON over several lines, with long strings truncated."""
    return json.dumps(_short(value), ensure_ascii=False, indent=2)


def _short(value: object, depth: int = 0) -> object:
    match value:
        case str() if data := encoded(value):
            return f"[{data}]"
        case str() if len(value) > LONGEST_STRING:
            return f"{value[:LONGEST_STRING]}… ({len(value):,} characters)"
        case list() | dict() if depth > DEEPEST:
            return "…"
        case list():
            more = [f"… {len(value) - 50:,} more"] if len(value) > 50 else []
            return [*(_short(item, depth + 1) for item in value[:50]), *more]
        case dict():
            return {name: _short(item, depth + 1) for name, item in list(value.items())[:200]}
    return value


def dicts(value: object) -> list[dict[str, Any]]:
    """The objects in a list; empty if `value` is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def size(count: int) -> str:
    """A number of bytes with a unit."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def encoded(value: str, kind: str = "") -> str:
    """`image/png, 12.3 kB` for a data URL, or for base64 of a known `kind`; "" for other strings."""
    if match := _DATA_URL.match(value, 0, LONGEST_PREFIX):
        kind, start = match[1] or kind or "data", match.end()
    elif kind:
        start = 0
    else:
        return ""
    return f"{kind}, {size((len(value) - start) * 3 // 4)}"


def parameters(members: Mapping[str, object]) -> str:
    """`temperature 0.2, stream, top_p 1`, without members that are false or null."""
    given = [(name, value) for name, value in members.items() if value not in (None, False)]
    more = [f"… {len(given) - MOST_PARAMETERS:,} more"] if len(given) > MOST_PARAMETERS else []
    shown = (
        name[:LONGEST_STRING] if value is True else f"{name[:LONGEST_STRING]} {_plain(value)}" for name, value in given[:MOST_PARAMETERS]
    )
    return ", ".join([*shown, *more])


def _plain(value: object) -> str:
    if isinstance(value, str) and "\n" not in value:
        return encoded(value) or (value if len(value) <= LONGEST_STRING else value[:LONGEST_STRING] + "…")
    return compact(value)
