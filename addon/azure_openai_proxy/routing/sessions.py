"""Session affinity: which backend served the last request of a session, so that Azure finds the prompt's beginning in its cache.

Azure's prompt cache belongs to one deployment. A binding only reorders what routing offers: a backend that failed, cools down, has a
higher priority number or too much load is not used for a session. It is written when a backend serves, so it moves to the backend that a
request fails over to, and ends when its backend fails or after a time without requests. The backends before it are remembered for the case
that it has too much load: they still have an older beginning of the prompt.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Sessions", "key"]


def key(client: bytes, model: str | None, identity: bytes) -> bytes:
    """Return the key of a session. The same id is another session for another client or model."""
    return hashlib.blake2b(b"\0".join((client, (model or "").encode(), identity)), digest_size=16).digest()


MOST_BACKENDS = 3
"""Backends that are remembered for a session."""


class _Binding(NamedTuple):
    backends: tuple[str, ...]  # the last one first
    used: float


class Sessions:
    """LRU map from the key of a session to the names of its backends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bindings: OrderedDict[bytes, _Binding] = OrderedDict()

    def backends(self, key: bytes, timeout: float) -> tuple[str, ...]:
        """Return the backends of a session, the last one first; none if it had no request for `timeout` seconds."""
        found = self._bindings.get(key)
        if found is None:
            return ()
        if self._clock() - found.used > timeout:
            del self._bindings[key]
            return ()
        return found.backends

    def served(self, key: bytes, backend: str, most: int) -> None:
        """Bind a session to the backend that serves it. At most so many bindings are kept."""
        found = self._bindings.get(key)
        if found is None:
            names: tuple[str, ...] = (backend,)
        elif (names := found.backends)[0] != backend:
            names = (backend, *(name for name in names if name != backend))[:MOST_BACKENDS]
        self._bindings[key] = _Binding(names, self._clock())
        self._bindings.move_to_end(key)
        while len(self._bindings) > most:
            self._bindings.popitem(last=False)

    def failed(self, key: bytes, backend: str) -> None:
        """End the binding of a session to a backend that failed."""
        if (found := self._bindings.get(key)) and backend in found.backends:
            if names := tuple(name for name in found.backends if name != backend):
                self._bindings[key] = found._replace(backends=names)
            else:
                del self._bindings[key]

    def __len__(self) -> int:
        return len(self._bindings)
