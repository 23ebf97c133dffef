"""A graceful stop: on SIGTERM no new connection, what runs may finish within a limit, then exit 0.

mitmproxy's own SIGTERM ends everything at once. A second SIGTERM, or Ctrl-C at any time, still does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from mitmproxy import ctx

from . import connections

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mitmproxy import http

__all__ = ["Stopping"]

logger = logging.getLogger(__name__)

LOOK = 0.05
"""Seconds between two looks at what still runs: no hook tells that an answer has left."""


class Stopping:
    def __init__(self, running: Collection[http.HTTPFlow], limit: Callable[[], float]) -> None:
        self.began = False
        self._running = running
        self._limit = limit
        self._task: asyncio.Task[None] | None = None

    def arm(self) -> None:
        """Take SIGTERM over from mitmproxy, where there are signals.

        Not by the loop's own handlers: they are told of a signal by a byte in a socket, and when that is full the signal is lost. Each
        line that mitmproxy logs takes its room there, so a few hundred connections that end at once are enough.
        """
        loop = asyncio.get_running_loop()
        try:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(self.begin))
        except (NotImplementedError, ValueError):  # Windows; not in the main thread, where somebody else decides on the end
            return

    def begin(self) -> None:
        if self.began:
            ctx.master.shutdown()
            return
        self.began = True
        self._task = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        ctx.options.update(server=False)  # the ports are closed, connections stay
        limit = self._limit()
        if count := self._left():
            logger.info("Stopping: %d running, which may take %g s more", count, limit)
        until = asyncio.get_running_loop().time() + limit
        while (self._left() or connections.unsent()) and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(LOOK)
        if count := self._left():
            logger.warning("Stopping: %d cut off after %g s", count, limit)
        ctx.master.shutdown()

    def _left(self) -> int:
        return sum(flow.live for flow in list(self._running))
