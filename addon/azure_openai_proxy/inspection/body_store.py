"""Bounded storage of streamed bodies for inspection. Each stream is copied while it is forwarded; the total size has a limit."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

    from azure_openai_proxy.accounting.meter import Meter

__all__ = ["Shelf", "Tap", "Withheld"]


BLOCK = 64 << 10
"""Bytes that a stream reserves at a time."""


class Shelf:
    """A store of at most `limit` bytes, which include running streams. It evicts the oldest bodies; `forget` removes one from its flow."""

    def __init__(self, limit: int, forget: Callable[[http.HTTPFlow], None]) -> None:
        self.limit = limit
        self.used = 0
        self._forget = forget
        self._sizes: OrderedDict[weakref.ref[http.HTTPFlow], int] = OrderedDict()

    def reserve(self, size: int) -> bool:
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
        self,
        inner: Callable[[bytes], list[bytes]] | None,
        shelf: Shelf | None,
        began: float,
        clock: Callable[[], float] = time.time,
        *,
        meter: Meter | None = None,
    ) -> None:
        self.chunks: list[float] = []  # seconds, bytes, seconds, bytes: a list of pairs would cost garbage collection
        self.last = b""  # chunk
        self.taken = 0  # bytes reserved in the store
        self._left = 0  # reserved bytes that are unused
        self.inner = inner
        self._shelf = shelf
        self._began = began
        self._clock = clock
        self._meter = meter
        self._azure_parts: list[bytes] = []
        self._clients: list[bytes] = []

    def __call__(self, data: bytes) -> list[bytes]:
        meter = self._meter
        if meter is None:
            out = self.inner(data) if self.inner else [data] if data else []
        else:
            translation_began = meter.meters.clock()
            out = self.inner(data) if self.inner else [data] if data else []
            meter.chunk(translation_began, out, last=not data)
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
            self._azure_parts.append(data)

    def _more(self, needed: int) -> bool:
        """Reserve more than the next chunk needs, because chunks are small."""
        assert self._shelf
        needed += min(BLOCK, self._shelf.limit // 16)
        if self.taken + needed > self._shelf.limit // 4 or not self._shelf.reserve(needed):
            return False
        self.taken += needed
        self._left += needed
        return True

    def give_up(self) -> None:
        if self._shelf:
            self._shelf.give_back(self.taken)
        self.taken, self._shelf = 0, None
        self._azure_parts.clear()
        self._clients.clear()

    def bodies(self) -> tuple[bytes, bytes] | None:
        """The body from Azure and the body sent to the client; None if they were not stored."""
        if not self._shelf:
            return None
        clients = b"".join(self._clients)
        return (b"".join(self._azure_parts) if self.inner else clients), clients


class Withheld(Tap):
    """A tap that withholds the body from the client until its end, so that it can be edited. It takes the place of `tap`.

    The HTTP layer sends the body (`release_withheld`) after the hook of the complete response. A body of more than `limit` bytes is sent
    while it arrives, as without this class; then `too_large` is called.
    """

    def __init__(self, tap: Tap, limit: int, too_large: Callable[[], None]) -> None:
        vars(self).update(vars(tap))
        self.size = 0
        self._limit, self._too_large = limit, too_large
        self._withheld: list[bytes] | None = []
        self._held = False
        self._transient = False

    def __call__(self, data: bytes) -> list[bytes]:
        out = super().__call__(data)
        if self._withheld is None:
            return out
        self._withheld += out
        self.size += sum(map(len, out))
        if self.size <= self._limit:
            return []
        passed = self._sent_on()
        self._too_large()
        return passed

    def pass_on(self) -> None:
        """Stop withholding. The bytes so far are sent with the next ones, the rest while it arrives."""
        self._limit, self._too_large = -1, lambda: None

    def hold(self, response: http.Response) -> None:
        """Store the complete body on its flow, where it can be edited."""
        self._held, self._transient = True, response.data.content is None
        response.data.content = b"".join(self._withheld or ())

    def release_withheld(self, response: http.Response) -> bytes:
        """The bytes to send to the client: the body on the flow, which may be edited, or the part before the stream broke off."""
        withheld = b"".join(self._sent_on())
        if not self._held:
            return withheld
        edited = response.data.content
        if self._transient:  # bodies are not stored
            response.data.content = None
        return withheld if edited is None else edited  # None: removed from the store meanwhile

    def _sent_on(self) -> list[bytes]:
        withheld, self._withheld = self._withheld, None
        return withheld or []
