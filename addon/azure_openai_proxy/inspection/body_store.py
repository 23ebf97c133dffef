"""Bounded storage of streamed bodies for inspection. Each stream is copied while it is forwarded; the total size has a limit."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

__all__ = ["Shelf", "Tap"]


BLOCK = 64 << 10
"""Bytes that a stream reserves at a time."""


class Shelf:
    """A store of at most `limit` bytes, which include running streams. It evicts the oldest bodies; `forget` removes one from its flow."""

    def __init__(self, limit: int, forget: Callable[[http.HTTPFlow], None]) -> None:
        self.limit = limit
        self.used = 0
        self._forget = forget
        self._sizes: OrderedDict[weakref.ref[http.HTTPFlow], int] = OrderedDict()

    def room(self, size: int) -> bool:
        """Reserve `size` bytes, evicting older bodies if necessary. Return False and reserve nothing if that is not enough."""
        while self.used + size > self.limit and self._sizes:
            oldest, freed = self._sizes.popitem(last=False)
            self.used -= freed
            if (flow := oldest()) is not None:
                self._forget(flow)
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        self.used -= size

    def keep(self, flow: http.HTTPFlow, size: int) -> None:
        """Assign `size` reserved bytes to `flow`. They are released when the flow is garbage-collected or evicted."""
        key = weakref.ref(flow, self._gone)
        self._sizes[key] = self._sizes.get(key, 0) + size

    def _gone(self, flow: weakref.ref[http.HTTPFlow]) -> None:
        self.used -= self._sizes.pop(flow, 0)


class Tap:
    """Wraps the function that rewrites a stream (`inner`, or None): records time and size of each chunk, and copies the body.

    If the stream is rewritten, both Azure's body and the client's are copied. One body takes a quarter of the store at most. A larger
    body is discarded completely, because a part of it would look like a complete response.
    """

    def __init__(
        self, inner: Callable[[bytes], list[bytes]] | None, shelf: Shelf | None, began: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.chunks: list[float] = []  # seconds, bytes, seconds, bytes: a list of pairs would cost garbage collection
        self.counted = b""  # the last bytes sent to the client, which contain the usage
        self.last = b""  # chunk
        self.taken = 0  # bytes reserved in the store
        self._left = 0  # reserved bytes that are unused
        self.inner = inner
        self._shelf = shelf
        self._began = began
        self._clock = clock
        self._azures: list[bytes] = []
        self._clients: list[bytes] = []

    def __call__(self, data: bytes) -> list[bytes]:
        out = self.inner(data) if self.inner else [data] if data else []
        for piece in out:
            if b"tokens" in piece or self.counted:
                self.counted = self.counted[-4096:] + piece
        if out:
            self.last = out[-1]
        if self._shelf:
            self._keep(data, out)
        elif out and not self.chunks:
            self.chunks += (self._clock() - self._began, len(out[0]))
        return out

    @property
    def complete(self) -> bool:
        """Whether the client has received the whole response. OpenAI's clients disconnect at the [DONE], before the stream ends."""
        return self.last.rstrip().endswith(b"data: [DONE]")

    def _keep(self, data: bytes, out: list[bytes]) -> None:
        size = len(out[0]) if len(out) == 1 else sum(map(len, out))
        if size:
            self.chunks += (self._clock() - self._began, size)
        self._left -= size + len(data) if self.inner else size
        if self._left < 0 and not self._more(-self._left):
            self.give_up()
            return
        self._clients += out
        if self.inner:
            self._azures.append(data)

    def _more(self, needed: int) -> bool:
        """Reserve more than the next chunk needs, because chunks are small."""
        assert self._shelf
        needed += min(BLOCK, self._shelf.limit // 16)
        if self.taken + needed > self._shelf.limit // 4 or not self._shelf.room(needed):
            return False
        self.taken += needed
        self._left += needed
        return True

    def give_up(self) -> None:
        if self._shelf:
            self._shelf.give_back(self.taken)
        self.taken, self._shelf = 0, None
        self._azures.clear()
        self._clients.clear()

    def bodies(self) -> tuple[bytes, bytes] | None:
        """The body from Azure and the body sent to the client; None if they were not stored."""
        if not self._shelf:
            return None
        clients = b"".join(self._clients)
        return (b"".join(self._azures) if self.inner else clients), clients
