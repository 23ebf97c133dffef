"""The connection to Redis or Valkey.

Commands of one moment are sent together, on one connection, by one task: a client's request costs a part of a round trip. A batch without
a reply within five seconds, or an error, ends the connection. The link is then down: commands fail at once, and the task connects again
every second or sooner.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from azure_openai_proxy.formats import quoting

from .deadlines import Deadlines
from .redis_connection import RedisConnection
from .scripts import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .redis_connection import Command
    from .scripts import Script

__all__ = ["PREFIX", "Down", "Link", "Listener"]

logger = logging.getLogger(__name__)

PREFIX = "{azure-openai-proxy}:"
"""Begins every key. The braces keep all keys in one slot of a cluster."""
REPLY_TIMEOUT = 5.0
"""Seconds for the reply to a batch. A request waits for a part of it only."""
CONNECT_TIMEOUT = 2.0
"""Seconds for a connection and its first commands."""
RECONNECT_DELAYS = (0.1, 0.5, 1.0)
"""Seconds until the next attempt to connect: after the first failure, the second, and all others."""
TICK_INTERVAL = 0.3
"""Seconds between two calls of `Listener.tick`."""
MOST_IN_BATCH = 500
"""The most commands of a batch."""


class Down(Exception):
    """The server cannot be reached now."""


type Late = Callable[[Any], None]
"""Called with a reply for which its future did not wait: it was late, or the future was cancelled."""


class _PendingCommand:
    """A command that waits to be sent, or for its reply."""

    __slots__ = ("command", "future", "late")

    def __init__(self, command: Command, future: asyncio.Future[Any] | None = None, late: Late | None = None) -> None:
        self.command = command
        self.future = future  # None: its reply does not matter
        self.late = late

    def answered(self, reply: Any) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(reply)
        elif self.late:
            self.late(reply)

    def failed(self, error: Down) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)
            _retrieve(self.future)


class Listener(Protocol):
    def joined(self, *, lost: bool) -> None:
        """Send what the server has to know, before any other command. `lost`: it has no data of an earlier connection."""

    async def tick(self) -> None:
        """Called several times a second while the link is up. It may raise `Down`."""


class Link:
    """One connection to the server of `url`, and the task that keeps it."""

    def __init__(self, url: str, failure: str = "") -> None:
        self.process = secrets.token_hex(8)
        self.up = False
        self.listeners: list[Listener] = []
        self.reason = "it was not reached yet"
        self._url = url
        self._failure = failure  # the consequence for requests, for the log
        self._queue: list[_PendingCommand] = []
        self._sent: float | None = None  # when the batch was sent whose replies are not complete
        self._deadlines = Deadlines()
        self._queued = asyncio.Event()
        self._epoch: bytes | None = None
        self._task: asyncio.Task[None] | None = None
        self._logged = False
        self._tried = asyncio.Event()

    def __str__(self) -> str:
        parts = urlsplit(self._url)
        host = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else ""
        return quoting.line(f"{parts.scheme}://{host}{parts.path}")

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command. The future has its reply, or `Down`, or the error that the server answered."""
        return self._ask(command)

    def ask_soon(self, *command: Any, late: Late | None = None) -> asyncio.Future[Any]:
        """Send a command for a request that waits: the future has `TimeoutError` if the reply is not there within 50 ms."""
        future = self._ask(command, late)
        self._deadlines.add(future)
        return future

    def send(self, *command: Any) -> None:
        """Send a command whose reply does not matter. Without effect while the link is down."""
        if self.up:
            self._put(_PendingCommand(command))

    def run(self, script: Script, keys: Sequence[str], *arguments: Any) -> asyncio.Future[Any]:
        return self._ask(_call(script, keys, arguments))

    def run_soon(self, script: Script, keys: Sequence[str], *arguments: Any, late: Late | None = None) -> asyncio.Future[Any]:
        """As `ask_soon`."""
        return self.ask_soon(*_call(script, keys, arguments), late=late)

    def send_run(self, script: Script, keys: Sequence[str], *arguments: Any) -> None:
        if self.up:
            self._put(_PendingCommand(_call(script, keys, arguments)))

    async def start(self, patience: float = CONNECT_TIMEOUT) -> None:
        """Start the task, and wait a moment for its first attempt to connect."""
        self._task = asyncio.create_task(self._run())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._tried.wait(), patience)

    async def close(self) -> None:
        """Send the queued commands, and disconnect."""
        if self.up and self._queue:
            with suppress(Down, asyncio.CancelledError):
                await self.ask("PING")
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # The task

    def _ask(self, command: Command, late: Late | None = None) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        if self.up:
            self._put(_PendingCommand(command, future, late))
        else:
            future.set_exception(Down(self.reason))
        return future

    def _put(self, pending: _PendingCommand) -> None:
        self._queue.append(pending)
        self._queued.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            connection = RedisConnection(self._url, CONNECT_TIMEOUT)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await connection.connect()
                    lost = await self._load_scripts(connection)
                failures = 0
                self._went_up(lost=lost)
                ticking = asyncio.create_task(self._tick())
                try:
                    await self._serve(connection)
                finally:
                    ticking.cancel()
            except asyncio.CancelledError:
                self._fail(Down("it is closed"))
                raise
            except Exception as error:  # noqa: BLE001 - the next connection may work
                self._went_down(error)
            finally:
                with suppress(Exception):
                    await connection.close()
            self._tried.set()
            await asyncio.sleep(RECONNECT_DELAYS[min(failures, len(RECONNECT_DELAYS) - 1)])
            failures += 1

    async def _load_scripts(self, connection: RedisConnection) -> bool:
        """Load the scripts. Return whether the server has lost its data since the last connection."""
        loads = [("SCRIPT", "LOAD", script.text) for script in ALL]
        epoch_key = f"{PREFIX}epoch"
        replies = await connection.exchange([*loads, ("SET", epoch_key, secrets.token_hex(8), "NX"), ("GET", epoch_key)])
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        epoch: bytes = replies[-1]
        lost, self._epoch = epoch != self._epoch, epoch
        return lost

    def _went_up(self, *, lost: bool) -> None:
        self.up = True
        for listener in self.listeners:
            listener.joined(lost=lost)
        if self._logged:
            self._logged = False
            logger.info("The shared state is used again: %s", self)
        self._tried.set()

    async def _tick(self) -> None:
        with suppress(Down):  # the next connection has its own task
            while True:
                await self.ask("PING")  # notices a lost connection
                for listener in self.listeners:
                    await listener.tick()
                await asyncio.sleep(TICK_INTERVAL)

    async def _serve(self, connection: RedisConnection) -> None:
        async with asyncio.timeout(None) as limit:
            watch = asyncio.create_task(self._watch(limit))
            try:
                while True:
                    await self._queued.wait()
                    batch, self._queue = self._queue[:MOST_IN_BATCH], self._queue[MOST_IN_BATCH:]
                    if not self._queue:
                        self._queued.clear()
                    await self._send(connection, batch)
            finally:
                watch.cancel()

    async def _send(self, connection: RedisConnection, batch: Sequence[_PendingCommand]) -> None:
        """Send a batch, and wait for its replies."""
        self._sent = asyncio.get_running_loop().time()
        try:
            replies = await connection.exchange([pending.command for pending in batch])
        except BaseException:
            self._queue = [*batch, *self._queue]
            raise
        finally:
            self._sent = None
        unready: Exception | None = None
        for pending, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Exception):
                unready = reply
                pending.failed(Down(self._describe(reply)))
            else:
                pending.answered(reply)
        if unready:  # its scripts are gone, it loads its data, it became a replica
            raise unready

    async def _watch(self, limit: asyncio.Timeout) -> None:
        """End the connection when a batch has no reply in time. One timer for all batches, which are many."""
        loop = asyncio.get_running_loop()
        while True:
            sent = self._sent
            due = (loop.time() if sent is None else sent) + REPLY_TIMEOUT
            await asyncio.sleep(max(0.0, due - loop.time()))
            if sent is not None and sent == self._sent:
                limit.reschedule(loop.time())
                return

    def _fail(self, error: Down) -> None:
        self.up = False
        queue, self._queue = self._queue, []
        self._queued.clear()
        for pending in queue:
            pending.failed(error)

    def _went_down(self, error: BaseException) -> None:
        self.reason = self._describe(error)
        self._fail(Down(self.reason))
        if not self._logged:
            self._logged = True
            logger.warning(
                "The shared state cannot be reached, and is tried again every second: %s: %s. %s", self, self.reason, self._failure
            )

    def _describe(self, error: BaseException) -> str:
        return quoting.cause(error, urlsplit(self._url).password)


def _call(script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Command:
    return ("EVALSHA", script.sha, len(keys), *[PREFIX + key for key in keys], *arguments)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark a future's error as seen: asyncio would log it otherwise."""
    if not future.cancelled():
        future.exception()
