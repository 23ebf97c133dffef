"""Texts of clients and upstreams as records have them: on one line, bounded, and without the request's keys.

Most calls have the same names of models, deployments and programs as earlier ones, so their kinds are remembered.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from azure_openai_proxy.api import redaction
from azure_openai_proxy.formats import quoting

from .record import COMMON, CallKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    type Key = tuple[tuple[str, ...], *tuple[object, ...]]

__all__ = ["LONGEST", "Kinds", "shown", "shown_again", "shown_ids", "shown_latency"]

LONGEST = 256
"""Characters of a text."""
MOST, LARGEST = 2048, 2048
"""Kinds that are remembered, and the characters of the texts and keys of the largest one."""
_TEXTS = 1 + COMMON.index("error_code")
"""The number of members of `COMMON` that are such texts. They come first."""


def shown(text: str, secrets: tuple[str, ...], most: int = LONGEST) -> str:
    """Return a text as a record has it."""
    if secrets:
        text = redaction.mask(text, secrets)
    return quoting.line(text[:most])


def shown_ids(one: str | None, other: str | None, secrets: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Return two ids as a record has them, of which hardly any contains a key."""
    both = f"{one} {other}"
    if secrets and redaction.repeats(both, secrets):
        one, other = one and redaction.mask(one, secrets), other and redaction.mask(other, secrets)
    elif len(both) <= LONGEST and both.isascii() and both.isprintable():  # nearly always
        return one, other
    return one and quoting.line(one[:LONGEST]), other and quoting.line(other[:LONGEST])


def shown_latency(latency: Mapping[str, float] | None, secrets: tuple[str, ...]) -> Mapping[str, float] | None:
    """Return Azure's timing as a record has it: None if a name in it repeats a key."""
    return None if latency and secrets and redaction.repeats("\n".join(latency), secrets) else latency


shown_again = functools.lru_cache(maxsize=MOST)(shown)
"""The same for a text that probably repeats."""


class Kinds:
    """The kinds of recent calls, by keys from which all members of `COMMON` follow. The first part of a key are the request's keys."""

    def __init__(self) -> None:
        self._known: dict[Key, tuple[CallKind, object]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: Key) -> CallKind | None:
        found = self._known.get(key)
        return found[0] if found else None

    def add(self, key: Key, members: tuple[object, ...], named: object = None) -> CallKind:
        """Return the kind of calls with these members, in the order of `COMMON`. Its texts are as they were found.

        `named`: an object whose `id` is in the key, and is not given to another one while the kind is remembered.
        """
        secrets, texts = key[0], [value for value in members[:_TEXTS] if isinstance(value, str)]
        values = [shown(value, secrets) if isinstance(value, str) and value else value for value in members[:_TEXTS]]
        kind = CallKind(**dict(zip(COMMON, [*values, *members[_TEXTS:]], strict=True)))
        if sum(map(len, (*texts, *secrets))) <= LARGEST:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = kind, named
        return kind
