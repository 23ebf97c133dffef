"""Graceful shutdown: on SIGTERM, close the ports, let running requests finish within a time limit, and exit with status 0.

mitmproxy's own SIGTERM handler stops immediately. A second SIGTERM, or Ctrl-C, still does.
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
"""Seconds between checks of the running requests, since mitmproxy has no hook for a response that was sent completely."""


class Shutdown:
    def __init__(self, running: Collection[http.HTTPFlow], limit: Callable[[], float]) -> None:
        self.began = False
        self._running = running
        self._limit = limit
        self._task: asyncio.Task[None] | None = None
        self._signals = self._known = 0  # signals received from the system; signals already handled

    def arm(self) -> None:
        """Replace mitmproxy's SIGTERM handler, on systems with signals.

        asyncio passes signals through a socket, and drops them while its buffer is full. Log records for mitmproxy's `add_log` hook fill
        the same buffer. So the signal is also handled with `signal.signal`.
        """
        loop = asyncio.get_running_loop()

        def taken(*_: object) -> None:
            self._signals += 1
            loop.call_soon_threadsafe(self._on_signal)

        try:
            loop.add_signal_handler(signal.SIGTERM, self._on_signal)  # for a signal already in that socket
            signal.signal(signal.SIGTERM, taken)
        except (NotImplementedError, RuntimeError):  # Windows; or not in the main thread, where the embedding program handles signals
            return

    def _on_signal(self) -> None:
        """Handle a signal, which may be reported twice."""
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
        """Wait for running requests, then end the process, even after an error."""
        try:
            await self._wait()
        except Exception:
            logger.exception("The proxy stops at once: it cannot determine which requests are running")
        finally:
            ctx.master.shutdown()

    async def _wait(self) -> None:
        ctx.options.update(server=False)  # closes the ports, keeps connections
        limit = self._limit()
        if count := self._left():
            logger.info("Stopping: running requests have at most %g s to finish: %d", limit, count)
        until = asyncio.get_running_loop().time() + limit
        while True:
            # Wait at least once: WireGuard's threads end shortly after the port is closed, and must do so before Python exits.
            await asyncio.sleep(LOOK)
            if not (self._left() or _seen(connections.unsent) or _seen(connections.closing)) or asyncio.get_running_loop().time() >= until:
                break
        if count := self._left():
            logger.warning("Stopping: requests cut off after %g s: %d", limit, count)

    def _left(self) -> int:
        return sum(flow.live for flow in list(self._running))


def _seen(look: Callable[[], bool]) -> bool:
    """The result of `look`; False on a mitmproxy with other internals, of which `compat` warns at startup."""
    try:
        return look()
    except Exception:  # noqa: BLE001 - with other internals of mitmproxy, any error is possible
        return False
