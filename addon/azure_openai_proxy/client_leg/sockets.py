"""Sockets: detection of clients that have disconnected while nothing is read from them, unsent bytes, listen backlogs."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOOK", "Hangup", "has_unsent", "is_gone", "lengthen_backlog", "watch"]

LOOK = 0.025
"""Seconds between checks whether a client has disconnected."""
PROBE_AFTER, PROBE_FACTOR = 0.05, 4
"""Seconds without progress until a client is probed, and the factor by which the seconds grow after each probe."""

_watching: set[asyncio.Task[None]] = set()
_RDHUP = getattr(select, "POLLRDHUP", 0)  # Linux only


def _poll(transport: asyncio.BaseTransport, mask: int) -> int:
    """The events of the transport's socket. 0 if the system has no poll (Windows): the next write fails."""
    if not hasattr(select, "poll"):
        return 0  # pragma: no cover - Windows
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), mask)
    return next((event for _, event in poll.poll(0)), 0)


def is_gone(transport: asyncio.BaseTransport) -> bool:
    """Whether the connection was closed in both directions or reset."""
    sock = transport.get_extra_info("socket")
    return transport.is_closing() or sock is None or sock.fileno() < 0 or bool(_poll(transport, 0))


def lengthen_backlog(sock: socket.socket) -> None:
    """Set the listen backlog of a port to the system's maximum."""
    with socket.fromfd(sock.fileno(), sock.family, sock.type) as same:
        same.listen(socket.SOMAXCONN)


def has_unsent(writer: object) -> bool:
    """Whether bytes are in the write buffer. A writer of UDP has none."""
    transport = getattr(writer, "transport", None)
    return transport is not None and transport.get_write_buffer_size() > 0


def watch(
    transport: asyncio.BaseTransport, is_connected: Callable[[], bool], left: Callable[[], None], reading: asyncio.Future[Any]
) -> None:
    """Call `left` when the client has disconnected completely, and cancel the task that has read from it.

    Ends when the client is no longer connected, as when the proxy closes the connection.
    """

    async def look() -> None:
        while is_connected():
            if is_gone(transport):
                left()
                reading.cancel("the client is gone")
                return
            await asyncio.sleep(LOOK)

    _watching.add(task := asyncio.create_task(look()))
    task.add_done_callback(_watching.discard)


class Hangup:
    """Looks whether a client has disconnected during its upload, of which nothing is read while upstream takes nothing.

    Its FIN may be behind bytes that are not received, or mean that it has half-closed the connection. So bytes are sent while upstream
    takes nothing: a closed connection responds with a reset.
    """

    def __init__(self) -> None:
        self._ended = False  # the client's system has sent a FIN
        self._probe_at, self._probe_after = 0.0, PROBE_AFTER
        self._waiting = 0  # bytes of the upload that upstream had not taken at the last look

    def has_left(self, transport: asyncio.BaseTransport | None, waiting: int, probe: Callable[[], bool]) -> bool:
        """`waiting`: bytes of the upload that upstream has not taken. `probe` sends a byte; it returns False if none is left to send."""
        sock = None if transport is None else transport.get_extra_info("socket")
        if transport is None or sock is None:
            return False
        if sock.fileno() < 0:  # asyncio has closed it, because the client's system has answered a probe with a reset
            return True
        event = _poll(transport, _RDHUP)
        if event & ~_RDHUP:
            return True
        now = asyncio.get_running_loop().time()
        if self._waiting != waiting:  # a FIN behind an upload that goes on is read soon
            self._waiting, self._probe_at = waiting, now + PROBE_AFTER
        ended, self._ended = bool(event) and not self._ended, bool(event)
        if not ended and now < self._probe_at:
            return False
        self._probe_after *= PROBE_FACTOR
        self._probe_at = now + self._probe_after
        return not probe() and ended
