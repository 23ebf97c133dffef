"""The body of an upstream request: complete from the beginning, or streamed while the client sends it."""

from __future__ import annotations

import asyncio

__all__ = ["Body"]


class Body:
    """The pieces that are not sent yet. `streamed`: the client still sends."""

    def __init__(self, *, streamed: bool = False) -> None:
        self.streamed = streamed
        self.complete = False
        self.pieces: list[bytes] = []  # an empty deque takes 0.8 kB, for each open stream
        self.size = 0
        """Total bytes of `pieces`."""
        self._changed: asyncio.Future[None] | None = None

    def add(self, data: bytes) -> None:
        if not self.complete:
            self.pieces.append(data)
            self.size += len(data)
            self._wake()

    def take(self) -> bytes:
        piece = self.pieces.pop(0)
        self.size -= len(piece)
        return piece

    def end(self) -> None:
        self.complete = True
        self._wake()

    def discard(self) -> None:
        """Drop the remaining pieces, since the request is over."""
        self.pieces.clear()
        self.size = 0
        self.end()

    def _wake(self) -> None:
        if self._changed and not self._changed.done():
            self._changed.set_result(None)

    async def more(self) -> None:
        """Wait for the next piece or the end of the body."""
        while not self.pieces and not self.complete:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
