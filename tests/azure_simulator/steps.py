"""Steps between two parts of an answer. Each is a fault too: called with an answer, it inserts itself into it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .answers import Answer, Part, Wire, insert

if TYPE_CHECKING:
    from .calls import Call

__all__ = ["Cut", "Delay", "Gate"]


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait before the answer, or before one chunk, or (`chunk="each"`) before every chunk but the first."""

    seconds: float
    chunk: int | Literal["each"] | None = None

    async def run(self, wire: Wire) -> None:
        await asyncio.sleep(self.seconds)

    def __call__(self, answer: Answer, call: Call) -> Answer:
        if self.chunk != "each":
            return insert(answer, self, self.chunk)
        spaced: list[Part] = []
        for part in answer.parts:
            spaced += [self, part] if spaced and isinstance(part, bytes) else [part]
        return replace(answer, parts=tuple(spaced))


@dataclass(frozen=True, slots=True)
class Cut:
    """Break the connection off: after that many chunks, at a byte of the body, or (neither given) before the status line.

    The peer sees an orderly close in the wrong place, as from a server that died; with `reset` a TCP reset.
    """

    after: int | None = None
    byte: int | None = None
    reset: bool = False

    async def run(self, wire: Wire) -> None:
        wire.abort(reset=self.reset)

    def __call__(self, answer: Answer, call: Call) -> Answer:
        if self.byte is None:
            return insert(answer, self, self.after)
        body = answer.body
        return replace(answer, parts=(body[: self.byte], self, body[self.byte :]))


class Gate:
    """Hold one chunk back (None: the whole answer) until `release()`; `reached` is set when all that comes before it was written."""

    def __init__(self, before: int | None = 1) -> None:
        self.before = before
        self.reached = threading.Event()
        self._opened: Future[None] = Future()
        self._opened.set_running_or_notify_cancel()  # a waiting request that goes away must not cancel it for the others

    def release(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    async def run(self, wire: Wire) -> None:
        self.reached.set()
        await asyncio.wrap_future(self._opened)

    def __call__(self, answer: Answer, call: Call) -> Answer:
        return insert(answer, self, self.before)
