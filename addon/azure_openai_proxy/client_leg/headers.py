"""Headers with an index.

For each header lookup, mitmproxy folds and compares all names, and a request has about 60 lookups. Here an index is built once and used
until `fields` changes. `fields` is an immutable tuple, so a change always creates a new object. Copies of the headers that share `fields`
can share the index too, as it is never modified.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mitmproxy import http
from mitmproxy.utils import strutils

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Headers", "by_name", "drop_index", "is_checked", "make_index"]

type Fields = tuple[tuple[bytes, bytes], ...]


def _raw(text: str | bytes) -> bytes:
    return strutils.always_bytes(text, "utf-8", "surrogateescape")


@lru_cache(maxsize=256)
def _folded(key: str | bytes) -> bytes:
    """The name in the index. Cached, because nearly all lookups are for names that occur in the code."""
    return _raw(key).lower()


def _make_index(fields: Fields) -> dict[bytes, bytes]:
    index = {name.lower(): value for name, value in fields}
    if len(index) < len(fields):  # names occur more than once
        index.clear()
        for name, value in fields:
            folded = name.lower()
            index[folded] = b"%b, %b" % (index[folded], value) if folded in index else value
    return index


def _replaced(fields: Fields, folded: bytes, value: bytes) -> Fields:
    """The fields with `value` in the first one of this name, and without the others."""
    at = next(at for at, (name, _) in enumerate(fields) if name.lower() == folded)
    others = [field for field in fields[at + 1 :] if field[0].lower() != folded]
    return (*fields[:at], (fields[at][0], value), *others)


class Headers(http.Headers):
    checked: Fields | None = None
    """The fields of a message that was read by a strict reader: names, values and framing are valid."""
    _of: Fields | None = None  # the fields from which the index was built
    _index: dict[bytes, bytes]

    def __init__(self, fields: Iterable[tuple[bytes, bytes]] = (), **headers: str | bytes) -> None:
        if type(fields) is tuple and not headers:  # from other headers: mitmproxy checks and copies each field
            self.fields = fields
        else:
            super().__init__(fields, **headers)

    def _current_index(self) -> dict[bytes, bytes]:
        fields = self.fields
        if self._of is not fields:
            self._index, self._of = _make_index(fields), fields
        return self._index

    def get(self, key: str | bytes, default: Any = None) -> Any:
        found = self._current_index().get(_folded(key))
        return default if found is None else found.decode("utf-8", "surrogateescape")

    def __getitem__(self, key: str | bytes) -> str:
        found = self._current_index().get(_folded(key))
        if found is None:
            raise KeyError(key)
        return found.decode("utf-8", "surrogateescape")

    def __setitem__(self, key: str | bytes, value: str | bytes) -> None:
        name, raw = _raw(key), _raw(value)
        folded, index = name.lower(), self._current_index()
        if folded not in index:
            self.fields = (*self.fields, (name, raw))
        else:
            self.fields = _replaced(self.fields, folded, raw)
        self._index, self._of = index | {folded: raw}, self.fields

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes) and _folded(key) in self._current_index()


def by_name(headers: http.Headers) -> Mapping[bytes, bytes]:
    """The values by name in lower case. Those of a name that occurs several times are joined, as `Headers.get` does."""
    return headers._current_index() if type(headers) is Headers else _make_index(headers.fields)  # noqa: SLF001 - of this module


def is_checked(message: http.Message) -> bool:
    """Whether the reader of a message has checked its headers, and they are unchanged."""
    headers = message.data.headers
    return type(headers) is Headers and headers.checked is headers.fields


def drop_index(headers: http.Headers) -> None:
    """Release the index of headers that are kept for long, e.g. as long as a stream. The next look-up makes it again."""
    if type(headers) is Headers:
        headers._of, headers._index = None, {}  # noqa: SLF001 - of this module


def make_index(message: http.Message) -> None:
    """Use an index for the headers of a message that mitmproxy has created."""
    if type(message.headers) is http.Headers:
        message.headers.__class__ = Headers
