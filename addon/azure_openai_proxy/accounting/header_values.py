"""The values of a few headers in one pass. `Headers.get` of mitmproxy converts the names of all headers at each call.

Clients and upstreams send the same names in the same order again and again, so the places of the wanted headers are remembered.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

__all__ = ["Fields", "Wanted", "header_values"]

type Fields = tuple[tuple[bytes, bytes], ...]

MOST_LISTS, LONGEST_LIST = 256, 2048
"""Lists of names whose places are remembered, and the bytes of the longest one."""


class Places(NamedTuple):
    """The indexes of the wanted headers in a head, with their names in lower case."""

    found: list[tuple[int, str]]
    repeated: bool  # a name occurs several times


class Wanted:
    """Names of headers in lower case, and a prefix of further ones."""

    def __init__(self, *names: str, prefix: str | None = None) -> None:
        self._names = {name.encode(): name for name in names}
        self._prefix = prefix and prefix.encode()
        self.places: dict[tuple[bytes, ...], Places] = {}
        """By the names of a head."""

    def find(self, fields: tuple[bytes, ...]) -> Places:
        """Return the places of the wanted headers in the names of a head, and remember them."""
        wanted = [(index, name) for index, field in enumerate(fields) if (name := self._wanted(field.lower()))]
        found = Places(wanted, max(Counter(name for _, name in wanted).values(), default=1) > 1)
        if sum(map(len, fields)) <= LONGEST_LIST:
            if len(self.places) >= MOST_LISTS:
                self.places.clear()
            self.places[fields] = found
        return found

    def _wanted(self, field: bytes) -> str | None:
        name = self._names.get(field)
        return field.decode("utf-8", "surrogateescape") if name is None and self._prefix and field.startswith(self._prefix) else name


def header_values(fields: Fields, wanted: Wanted) -> dict[str, str]:
    """The values by name in lower case, as `Headers.get` returns them."""
    if not fields:
        return {}
    names, values = zip(*fields, strict=True)
    places, repeated = wanted.places.get(names) or wanted.find(names)
    if not repeated:
        return {name: values[index].decode("utf-8", "surrogateescape") for index, name in places}
    found: dict[str, str] = {}
    for index, name in places:
        value = values[index].decode("utf-8", "surrogateescape")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
