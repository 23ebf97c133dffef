"""Faster headers and message construction.

For each header lookup, mitmproxy folds and compares all names, and a request has about 60 lookups. Here an index is built once and used
until `fields` changes. `fields` is an immutable tuple, so a change always creates a new object.

mitmproxy also checks the types of all members of each message that it constructs (except under `python -O`). These checks are skipped, as
messages are created by mitmproxy's parser or through its typed interface. This patch applies to the whole process, as it patches a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mitmproxy import http

if TYPE_CHECKING:
    from mitmproxy.proxy.layers.http import HttpEvent

__all__ = ["Headers", "quicken", "trust"]


class Headers(http.Headers):
    _of: tuple[tuple[bytes, bytes], ...] | None = None  # the fields from which the index was built
    _index: dict[bytes, bytes]

    def _look(self, key: str | bytes) -> str | None:
        if self._of is not self.fields:
            index: dict[bytes, bytes] = {}
            for name, value in self.fields:
                folded = name.lower()
                index[folded] = b"%b, %b" % (index[folded], value) if folded in index else value
            self._index, self._of = index, self.fields
        found = self._index.get((key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key).lower())
        return None if found is None else found.decode("utf-8", "surrogateescape")

    def get(self, key: str | bytes, default: Any = None) -> Any:
        found = self._look(key)
        return default if found is None else found

    def __getitem__(self, key: str | bytes) -> str:
        found = self._look(key)
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str | bytes) and self._look(key) is not None


def quicken(event: HttpEvent) -> None:
    """Use indexed headers for the message of this event."""
    message = getattr(event, "request", None) or getattr(event, "response", None)
    if message is not None and type(message.headers) is http.Headers:
        message.headers.__class__ = Headers


_CHECK = "__post_init__"
_check = vars(http.MessageData).get(_CHECK)  # None under -O


def trust(*, on: bool) -> None:
    """Skip mitmproxy's type checks, or restore them."""
    if _check:
        setattr(http.MessageData, _CHECK, _trust if on else _check)


def _trust(_: http.MessageData) -> None:
    pass
