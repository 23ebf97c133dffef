"""How bodies are put before a person's eyes: in pieces that are never longer than anybody reads, whatever came."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Section", "clean", "compact", "dicts", "encoded", "indented", "load", "page", "parameters", "size", "text"]

LONGEST_TEXT = 20_000  # characters of one piece
LONGEST_PAGE = 400_000  # characters of all of them
LONGEST_STRING = 200  # characters in a piece of JSON
DEEPEST = 12  # levels of it
LONGEST_PREFIX = 300  # characters of a data URL before its data
LONGEST_HEADING = 300
MOST_PARAMETERS = 200

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]{0,100}?;base64,")

type Section = tuple[str, str]
"""A heading (`user`, `tool call get_weather`) and what stands below it."""


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
    """`text` as something that can be written anywhere: half an emoji cannot, and a terminal would act on control characters."""
    return quoting.terminal(text.encode("utf-8", "replace").decode().replace("\r\n", "\n"))


def load(body: bytes) -> Any:
    """The JSON in `body`.

    Raises:
        ValueError: it is none, or one that nests or counts beyond all measure.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def text(value: object) -> str:
    """A string as it stands, anything else as JSON; no longer than is read."""
    written = value if isinstance(value, str) else compact(value)
    rest = len(written) - LONGEST_TEXT
    return written if rest <= 0 else f"{written[:LONGEST_TEXT]}\n… {rest:,} more characters"


def compact(value: object) -> str:
    """JSON in one line, long strings cut."""
    return json.dumps(_short(value), ensure_ascii=False)


def indented(value: object) -> str:
    """JSON over several lines, long strings cut."""
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
    """The objects in a list; none if it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def size(count: int) -> str:
    """A number of bytes, for people."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1e3:.1f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def encoded(value: str, kind: str = "") -> str:
    """`image/png, 12.3 kB` for a data URL, or for base64 that is known to be of a `kind`; "" for any other text."""
    if match := _DATA_URL.match(value, 0, LONGEST_PREFIX):
        kind, start = match[1] or kind or "data", match.end()
    elif kind:
        start = 0
    else:
        return ""
    return f"{kind}, {size((len(value) - start) * 3 // 4)}"


def parameters(members: Mapping[str, object]) -> str:
    """`temperature 0.2, stream, top_p 1`: what is false or null is left out."""
    told = [(name, value) for name, value in members.items() if value not in (None, False)]
    more = [f"… {len(told) - MOST_PARAMETERS:,} more"] if len(told) > MOST_PARAMETERS else []
    shown = (
        name[:LONGEST_STRING] if value is True else f"{name[:LONGEST_STRING]} {_plain(value)}" for name, value in told[:MOST_PARAMETERS]
    )
    return ", ".join([*shown, *more])


def _plain(value: object) -> str:
    if isinstance(value, str) and "\n" not in value:
        return encoded(value) or (value if len(value) <= LONGEST_STRING else value[:LONGEST_STRING] + "…")
    return compact(value)
