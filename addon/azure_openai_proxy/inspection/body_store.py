"""Streamed bodies, kept to be looked at: a copy on the side while the stream goes on, and never more of them than was allowed."""

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
"""Bytes of room that a stream takes at once."""


class Shelf:
    """Room for so many bytes, streams under way included. The oldest bodies give way to new ones."""

    def __init__(self, limit: int, forget: Callable[[http.HTTPFlow], None]) -> None:
        self.limit = limit
        self.used = 0
        self._forget = forget
        self._sizes: OrderedDict[weakref.ref[http.HTTPFlow], int] = OrderedDict()

    def room(self, size: int) -> bool:
        """Take `size` bytes more, at the cost of older bodies if need be. False: not even then, and nothing is taken."""
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
        """`flow` holds `size` bytes more, for which there was `room`. When it goes, they are free again."""
        key = weakref.ref(flow, self._gone)
        self._sizes[key] = self._sizes.get(key, 0) + size

    def _gone(self, flow: weakref.ref[http.HTTPFlow]) -> None:
        self.used -= self._sizes.pop(flow, 0)


class Tap:
    """Between mitmproxy and what rewrites a stream (`inner`; None: nothing does): notes when which piece went out, and keeps a copy.

    Of a stream that is rewritten Azure's side is kept as well. One body takes a quarter of the shelf at most: what there is no room
    for is not kept at all, for the beginning of a stream would pass for the whole.
    """

    def __init__(
        self, inner: Callable[[bytes], list[bytes]] | None, shelf: Shelf | None, began: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.chunks: list[float] = []  # seconds, bytes, seconds, bytes: a list for each would keep Python's collector busy
        self.counted = b""  # the end of what the client got, in which the tokens are told
        self.last = b""  # piece
        self.taken = 0  # bytes of the shelf's room
        self._left = 0  # of them
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
        """The client has all it waits for, whether or not it waited for the end: OpenAI's own clients leave at the [DONE]."""
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
        """Take room for more than the next piece: it comes in small ones."""
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
        """What Azure sent and what the client got; None if they are not kept."""
        if not self._shelf:
            return None
        clients = b"".join(self._clients)
        return (b"".join(self._azures) if self.inner else clients), clients
