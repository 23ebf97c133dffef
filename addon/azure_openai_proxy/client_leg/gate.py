"""Writers without a socket. mitmproxy waits for the `drain` of each writer of a client's connections before it reads more from any."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from mitmproxy.connection import Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

__all__ = ["Gate", "Pause"]


class Gate:
    """`drain` waits while the gate is closed. It is a transport of the client's connections, as mitmproxy has them, and its writer."""

    def __init__(self, transports: MutableMapping[Any, Any], drain: Callable[[], Awaitable[object]], is_closed: Callable[[], bool]) -> None:
        self.drain, self.is_closed = drain, is_closed
        self._transports, self._key = transports, Server(address=("gate", 0))
        transports[self._key] = self

    @property
    def handler(self) -> asyncio.Future[None]:
        """The task that reads from it: one that has ended, because mitmproxy fails if a client has left and no transport has a task."""
        ended = asyncio.get_running_loop().create_future()
        ended.set_result(None)
        return ended

    @property
    def writer(self) -> Self:
        return self

    def remove(self) -> None:
        self._transports.pop(self._key, None)


class Pause(Gate):
    """Nothing is read until the gate is removed."""

    def __init__(self, transports: MutableMapping[Any, Any]) -> None:
        self._removed = asyncio.Event()
        super().__init__(transports, self._removed.wait, lambda: True)

    def remove(self) -> None:
        super().remove()
        self._removed.set()
