"""Requests and answers that cost less; a room of `http_layer`.

mitmproxy folds and compares every name of a message at each question for one, and a request is asked some sixty. Here one pass over
the fields answers all questions until a field changes. The fields are a tuple, which nobody can change but by another tuple.

And it checks the type of every member of a message that it makes, which `python -O` would spare it. A message comes of mitmproxy's
own parser or of its typed interface. This one is for the whole process: there is no other place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mitmproxy import http

if TYPE_CHECKING:
    from mitmproxy.proxy.layers.http import HttpEvent

__all__ = ["Headers", "quicken", "trust"]


class Headers(http.Headers):
    _of: tuple[tuple[bytes, bytes], ...] | None = None  # the fields that the index is of
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
    """Give the message whose head has come these headers."""
    message = getattr(event, "request", None) or getattr(event, "response", None)
    if message is not None and type(message.headers) is http.Headers:
        message.headers.__class__ = Headers


_CHECK = "__post_init__"
_check = vars(http.MessageData).get(_CHECK)  # None under -O


def trust(*, on: bool) -> None:
    """Leave out mitmproxy's checks of types, or have them again."""
    if _check:
        setattr(http.MessageData, _CHECK, _trust if on else _check)


def _trust(_: http.MessageData) -> None:
    pass
