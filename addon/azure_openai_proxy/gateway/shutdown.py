"""A graceful stop: on SIGTERM no new connection, what runs may finish within a limit, then exit 0.

mitmproxy's own SIGTERM ends everything at once. A second SIGTERM, or Ctrl-C at any time, still does.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

from mitmproxy import ctx

from azure_openai_proxy.mitmproxy_patches import connections

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mitmproxy import http

__all__ = ["Shutdown"]

logger = logging.getLogger(__name__)

LOOK = 0.05
"""Seconds between two looks at what still runs: no hook tells that an answer has left."""


class Shutdown:
    def __init__(self, running: Collection[http.HTTPFlow], limit: Callable[[], float]) -> None:
        self.began = False
        self._running = running
        self._limit = limit
        self._task: asyncio.Task[None] | None = None
        self._signals = self._known = 0  # that came from the system; of those, what was acted upon

    def arm(self) -> None:
        """Take SIGTERM over from mitmproxy, where there are signals.

        The loop tells its handlers of a signal by a byte in a socket, and when that is full the signal is lost. Each line that is logged
        for mitmproxy's add_log hook takes its room there. So it is taken from the system, too.
        """
        loop = asyncio.get_running_loop()

        def taken(*_: object) -> None:
            self._signals += 1
            loop.call_soon_threadsafe(self._told)

        try:
            loop.add_signal_handler(signal.SIGTERM, self._told)  # one that came in this moment is on its way through that socket
            signal.signal(signal.SIGTERM, taken)
        except (NotImplementedError, RuntimeError):  # Windows; not in the main thread, where somebody else decides on the end
            return

    def _told(self) -> None:
        """Of a signal, and perhaps for the second time."""
        if not self.began or self._signals > self._known:
            self._known = self._signals
            self.begin()

    def begin(self) -> None:
        if self.began:
            ctx.master.shutdown()
            return
        self.began = True
        self._task = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        """Ends the process whatever fails on the way."""
        try:
            await self._wait()
        except Exception:
            logger.exception("The proxy stops at once: it cannot tell what still runs")
        finally:
            ctx.master.shutdown()

    async def _wait(self) -> None:
        ctx.options.update(server=False)  # the ports are closed, connections stay
        limit = self._limit()
        if count := self._left():
            logger.info("Stopping: %d running, which may take %g s more", count, limit)
        until = asyncio.get_running_loop().time() + limit
        while True:
            # At least once: WireGuard's threads end a moment after its port is closed, and must not find Python gone.
            await asyncio.sleep(LOOK)
            if not (self._left() or _seen(connections.unsent) or _seen(connections.closing)) or asyncio.get_running_loop().time() >= until:
                break
        if count := self._left():
            logger.warning("Stopping: %d cut off after %g s", count, limit)

    def _left(self) -> int:
        return sum(flow.live for flow in list(self._running))


def _seen(look: Callable[[], bool]) -> bool:
    """False too where mitmproxy cannot be looked into, of which `compat` warns at the start."""
    try:
        return look()
    except Exception:  # noqa: BLE001 - of a mitmproxy that differs anything can fail
        return False
