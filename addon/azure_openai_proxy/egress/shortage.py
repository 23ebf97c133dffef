"""Shortages of local resources such as file descriptors: one log line for each, however many connections fail for it.

While descriptors are used up, asyncio reports every attempt to accept a connection to the loop's exception handler, a hundred a second.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from .connect import is_shortage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    type _Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], Any]

__all__ = ["SHORTAGES", "Shortages"]

logger = logging.getLogger(__name__)

APART = 60.0
"""Seconds without an error, after which the next one is another shortage."""


class Shortages:
    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._other: _Handler | None = None

    def report(self, error: OSError) -> None:
        """Log the shortage, unless it is the one that was logged last."""
        now, last = self._now(), self._last
        self._last = now
        if last is None or now - last >= APART:
            reason = error.strerror or error
            logger.warning("The proxy cannot open connections: %s. Raise the limit of the process (ulimit -n).", reason)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Report the shortages that prevent `loop` from accepting connections."""
        self._loop, self._other = loop, loop.get_exception_handler()
        loop.set_exception_handler(self._handle)

    def unwatch(self) -> None:
        """Restore the exception handler, unless another one was set meanwhile."""
        if self._loop and self._loop.get_exception_handler() == self._handle:
            self._loop.set_exception_handler(self._other)
        self._loop = self._other = None

    def _handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and is_shortage(error) and "socket" in context:
            self.report(error)
        elif self._other:
            self._other(loop, context)
        else:
            loop.default_exception_handler(context)


SHORTAGES = Shortages()
