"""The values of a few headers in one pass. `Headers.get` of mitmproxy converts the names of all headers at each call.

Clients and upstreams send the same names in the same order again and again, so the places of the wanted headers are remembered.
"""

from __future__ import annotations

__all__ = ["Fields", "Wanted", "header_values"]

type Fields = tuple[tuple[bytes, bytes], ...]

MOST_LISTS, LONGEST_LIST = 256, 2048
"""Lists of names whose places are remembered, and the bytes of the longest one."""


class Wanted:
    """Names of headers in lower case, and a prefix of further ones."""

    def __init__(self, *names: str, prefix: str | None = None) -> None:
        self._names = {name.encode(): name for name in names}
        self._prefix = prefix and prefix.encode()
        self.places: dict[tuple[bytes, ...], list[tuple[int, str]]] = {}
        """By the names of a head: the indexes of the wanted headers."""

    def find(self, fields: tuple[bytes, ...]) -> list[tuple[int, str]]:
        """Return the places of the wanted headers in the names of a head, and remember them."""
        found = [(index, name) for index, field in enumerate(fields) if (name := self._wanted(field.lower()))]
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
    names = tuple([name for name, _ in fields])
    places = wanted.places.get(names)
    if places is None:
        places = wanted.find(names)
    found: dict[str, str] = {}
    for index, name in places:
        value = fields[index][1].decode("utf-8", "surrogateescape")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found
