"""The deadlines of all upstream requests, watched by one timer."""

from __future__ import annotations

import asyncio
from typing import Protocol

__all__ = ["DEADLINES", "Deadlines", "Watched"]

LOOK = 5.0
"""Maximum seconds between checks of the deadlines."""


class Watched(Protocol):
    """A request with a deadline."""

    deadline: float | None
    """Time of the event loop; None while the request waits for its client."""

    @property
    def shortest_timeout(self) -> float:
        """Seconds of the shortest timeout that the request may have."""

    def too_late(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """One timer for all requests of the process, since one timer per request costs as much as the request's translation."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def watch(self, request: Watched) -> None:
        """Call `request.too_late` after its deadline. The delay is at most half of the shortest timeout of the watched requests."""
        self._watched.add(request)
        self._look_within(request.shortest_timeout / 2)

    def _look_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + min(LOOK, seconds)
        if self._timer and not self._timer.cancelled() and self._due <= due:
            return
        if self._timer:
            self._timer.cancel()
        self._due, self._timer = due, loop.call_at(due, self._look)

    def forget(self, request: Watched) -> None:
        self._watched.discard(request)
        if not self._watched and self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for request in list(self._watched):
            if request.deadline is not None and now >= request.deadline:
                request.too_late()
        self._look_within(min(request.shortest_timeout for request in self._watched) / 2)


DEADLINES = Deadlines()
