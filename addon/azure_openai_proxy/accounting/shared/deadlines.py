"""The time limit of replies for which a request waits.

All replies have the same limit, so they are due in the order of their commands, and one timer is enough for all of them: a timer for each
would cost more than the reply.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["Deadlines"]

REPLY_TIMEOUT = 0.05
"""Seconds for the round trip of a request."""
LOOP_LATENESS = 0.01
"""Seconds by which the event loop itself may be late. A loop that was busy for longer does not count as a slow server."""


class Deadlines:
    """Futures that get `TimeoutError` if they are not done in time."""

    def __init__(self) -> None:
        self._due: deque[tuple[float, asyncio.Future[Any]]] = deque()  # the next first
        self._timed = False

    def add(self, future: asyncio.Future[Any]) -> None:
        loop = future.get_loop()
        due = loop.time() + REPLY_TIMEOUT
        self._due.append((due, future))
        if not self._timed:
            self._timed = True
            loop.call_at(due, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self._timed = False
        for _ in range(len(self._due)):
            due, future = self._due[0]
            if future.done():
                self._due.popleft()
            elif due > now:
                break
            elif now - due < LOOP_LATENESS:
                self._due.popleft()
                future.set_exception(TimeoutError())
            else:
                self._due.popleft()
                self._due.append((now + REPLY_TIMEOUT, future))
        if self._due:
            self._timed = True
            loop.call_at(self._due[0][0], self._check, loop)
