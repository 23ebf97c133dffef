"""One upstream request with its retries: get a connection, send the request, read the head, decide on a retry, stream the response.

Each request is one task. The response is processed in the same iteration of the event loop in which it is read, by a state machine:

    WAITING   no response bytes have been received
    HOLDING   the response is buffered: it is a failure, or it may be truncated, and a retry may succeed
    PROBING   the beginning of a stream is buffered until it is clear whether it is an error
    PASSING   everything is forwarded to the client; retries are no longer possible
    OVER      the attempt has an outcome

Meanwhile the task awaits the outcome of the attempt: None (the response was delivered), a `Failure`, or a failed response.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from mitmproxy import http

from azure_openai_proxy.api.stream_probe import error_response
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.routing.attempts import Respond, Retry

from .connection import ConnectionFailed
from .http1 import END

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from mitmproxy.connection import Server

    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.config.settings import Timeouts
    from azure_openai_proxy.routing.attempts import Decision

    from .connect import Destination
    from .connection import Connection
    from .http1 import Item
    from .pool import Pools

__all__ = ["Body", "ClientSide", "Hold", "Policy", "UpstreamRequest"]

logger = logging.getLogger(__name__)

HOLD_AT_MOST = 1 << 20
"""Maximum bytes of a failed response to buffer; a longer one is forwarded to the client without a retry."""
SLICE = 1 << 18
"""Bytes of a large body to write at once, before the write buffer must have drained."""
STALE_WITHIN = 0.5
"""Seconds. If a reused connection closes this soon after the request and without a response, it was already closed before the request."""
LOOK = 5.0
"""Maximum seconds between checks of the deadlines."""


class Policy(Protocol):
    """Chooses the request of each attempt, and whether to retry after a failure."""

    timeouts: Timeouts
    hold_stream: float
    """Maximum seconds for which the beginning of a stream is buffered."""

    def upstream_request(self) -> tuple[Destination, http.Request] | Failure:
        """The destination and the request of this attempt, with the credentials that the flow does not contain.

        Returns a `Failure` if the request must not be sent.
        """

    def hold(self, response: http.Response) -> Hold | Peek:
        """How much of this response to buffer before the client receives it."""

    def next_attempt(self, failed: Failure | http.Response) -> Decision:
        """Decide after an attempt that failed before the client received anything.

        After `Retry`, `upstream_request` returns the request of the next attempt.
        """

    def broke_off(self, failure: Failure) -> None:
        """The response failed after the client had received a part of it."""


class ClientSide(Protocol):
    """The consumer of the response, and the client's flow control."""

    def connected(self, server: Server) -> None:
        """The server of the current attempt. Also called before a new connection is established."""

    def deliver(self, items: Sequence[Any]) -> None:
        """The next items of the response: an `http.Response`, bytes, trailers as `http.Headers`, or the end as anything else."""

    def failed(self, failure: Failure) -> None:
        """The request failed, before or during the response."""

    def full(self) -> bool:
        """Whether the client reads more slowly than the upstream sends, so that reading must pause."""

    async def room(self) -> None:
        """Wait until the client has read enough for more to be delivered."""

    def straight(self, between_chunks: Callable[[], bool]) -> Callable[[bytes], bool] | None:
        """A function that forwards raw bytes of a chunked body directly to the client, or None if that is impossible now.

        The function returns False if it did not take the bytes. `between_chunks` returns whether the next byte starts a chunk.
        """

    def body_taken(self) -> None:
        """A part of the request body was sent upstream."""


class Hold(enum.Enum):
    """How much of a response to buffer. For a stream, a `Peek` buffers the beginning until it has a verdict."""

    NOTHING = "pass"
    FAILURE = "failure"
    """The complete response, which is then passed to `Policy.next_attempt`."""
    WHOLE = "whole"
    """The complete response, which is then delivered. If it is truncated, another attempt is possible."""


class _State(enum.Enum):
    WAITING = enum.auto()
    HOLDING = enum.auto()
    PROBING = enum.auto()
    PASSING = enum.auto()
    OVER = enum.auto()


class _Refused(Exception):
    """The request must not be sent."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Stale:
    """The outcome of an attempt on a pooled connection that was already closed."""


class Body:
    """A request body: complete from the beginning, or streamed while the client sends it."""

    def __init__(self, *, streamed: bool = False) -> None:
        self.streamed = streamed
        self.complete = False
        self.pieces: deque[bytes] = deque()
        self.size = 0
        """Total bytes of `pieces`."""
        self._changed: asyncio.Future[None] | None = None

    def add(self, data: bytes) -> None:
        if not self.complete:
            self.pieces.append(data)
            self.size += len(data)
            self._wake()

    def take(self) -> bytes:
        piece = self.pieces.popleft()
        self.size -= len(piece)
        return piece

    def end(self) -> None:
        self.complete = True
        self._wake()

    def discard(self) -> None:
        """Drop the remaining pieces, since the request is over."""
        self.pieces.clear()
        self.size = 0
        self.end()

    def _wake(self) -> None:
        if self._changed and not self._changed.done():
            self._changed.set_result(None)

    async def more(self) -> None:
        """Wait for the next piece or the end of the body."""
        while not self.pieces and not self.complete:
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed


class _Deadlines:
    """One timer for all requests of the process, since one timer per request costs as much as the request's translation."""

    def __init__(self) -> None:
        self._watched: set[UpstreamRequest] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def watch(self, request: UpstreamRequest, soonest: float) -> None:
        self._watched.add(request)
        loop = asyncio.get_running_loop()
        due = loop.time() + min(LOOK, soonest / 2)
        if self._timer and not self._timer.cancelled() and self._due <= due:
            return
        if self._timer:
            self._timer.cancel()
        self._due, self._timer = due, loop.call_at(due, self._look)

    def forget(self, request: UpstreamRequest) -> None:
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
        soonest = min(min(request.policy.timeouts) for request in self._watched)
        self.watch(next(iter(self._watched)), soonest)


DEADLINES = _Deadlines()


class UpstreamRequest:
    """Sends one client's request upstream until it is answered. `policy` decides on attempts, and `client` receives the response."""

    def __init__(self, policy: Policy, client: ClientSide, pools: Pools, body: Body) -> None:
        self.policy, self.client, self.pools, self.body = policy, client, pools, body
        self.straight: Callable[[bytes], bool] | None = None
        self.deadline: float | None = None
        self.upgraded = False
        self.began = False
        """The client has received a part of the response: no retry is possible."""
        self._why_late = ""
        self._state = _State.OVER
        self._connection: Connection | None = None
        self._reused = False
        self._sent: float | None = None  # when the request was written completely (loop time)
        self._chunked = False
        self._how = Hold.NOTHING
        self._held: list[Item] = []
        self._held_size = 0
        self._probe: Peek | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._outcome: asyncio.Future[Failure | http.Response | _Stale | None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.Task(self._run(), loop=asyncio.get_running_loop(), eager_start=True)

    def cancel(self) -> None:
        """Stop: the client has disconnected or cancelled the request."""
        if self._task and not self._task.done():
            self._task.cancel()
        self._release(whole=False)

    # Streamed request bodies

    @property
    def backlog(self) -> int:
        """Buffered bytes of the body, including unsent bytes of the socket's write buffer."""
        connection = self._connection
        return self.body.size + (connection.transport.get_write_buffer_size() if connection and connection.full else 0)

    def add(self, data: bytes) -> None:
        self.body.add(data)

    def complete(self) -> None:
        self.body.end()

    # The attempts

    async def _run(self) -> None:
        try:
            DEADLINES.watch(self, min(self.policy.timeouts))
            while True:
                failed = await self._attempt()
                if failed is None or self._decide(failed):
                    return
        except asyncio.CancelledError:
            pass  # the task is never awaited, and a cancelled task would refer to its own frames, a reference cycle
        except _Refused as refused:
            await asyncio.sleep(0)  # let `start` return first: its caller must have the request before `failed` is called
            self.client.failed(refused.failure)
        except Exception:
            logger.exception("A request upstream failed in the proxy")
            await asyncio.sleep(0)
            self.client.failed(Failure(502, "upstream_error", "The proxy failed to send this request: its log says why."))
        finally:
            self._release(whole=False)
            DEADLINES.forget(self)
            self._release_references()

    def _release_references(self) -> None:
        """Break reference cycles with the client side, so that bodies are freed without the garbage collector."""
        self.body.discard()
        self._held = []
        self._probe = self._outcome = self._task = None
        self._state = _State.OVER
        del self.policy, self.client

    def _decide(self, failed: Failure | http.Response) -> bool:
        """Handle a failed attempt. Return False to try again, True if the client has its answer."""
        self._release(whole=False)
        if self.began:
            assert isinstance(failed, Failure)
            self.policy.broke_off(failed)
            self.client.failed(failed)
            return True
        decision = self.policy.next_attempt(failed)
        if isinstance(decision, Retry):
            return False
        outcome = decision.response if isinstance(decision, Respond) else failed
        if isinstance(outcome, http.Response):
            self._give(outcome)
        else:
            self.client.failed(outcome)
        return True

    async def _attempt(self) -> Failure | http.Response | None:
        planned = self.policy.upstream_request()
        if isinstance(planned, Failure):
            raise _Refused(planned)
        destination, request = planned
        head = self._head(request, destination)
        pool = self.pools.of(destination)
        # A streamed body cannot be sent again if the pooled connection proves to be closed.
        connection = None if self.body.streamed else pool.take()
        self._reused = connection is not None and connection.requests > 0  # one opened in advance has sent nothing yet
        while True:
            if connection is None:
                self._reused = False
                try:
                    async with asyncio.timeout(self.policy.timeouts.connect):
                        connection = await pool.connect(self.client.connected)
                except ConnectionFailed as error:
                    return self._not_connected(error)
                except TimeoutError:
                    seconds = self.policy.timeouts.connect
                    message = f"Could not connect upstream in time: there was no connection for {seconds:g} seconds."
                    return Failure(504, "upstream_connect_timeout", message)
            outcome = await self._exchange(connection, head, request)
            if not isinstance(outcome, _Stale):
                return outcome
            connection = None  # try once more, on a new connection

    def _not_connected(self, error: ConnectionFailed) -> Failure:
        if error.local:
            return Failure(503, "proxy_shortage", f"The proxy could not open a connection: {error}")
        return Failure(502, "upstream_unreachable", f"Could not connect upstream: {error}")

    async def _exchange(self, connection: Connection, head: bytes, request: http.Request) -> Failure | http.Response | _Stale | None:
        loop = asyncio.get_running_loop()
        self._connection, self._outcome, self._sent = connection, loop.create_future(), None
        self._state, self._held, self._held_size, self._probe = _State.WAITING, [], 0, None
        self.client.connected(connection.server)
        upgrade = b"upgrade" in (name.lower() for name, _ in request.headers.fields) if request.data.method == b"GET" else False
        connection.begin(self, request.data.method, upgrade=upgrade)
        self._wait(self.policy.timeouts.first_byte, "Azure did not answer")
        content = b"" if self.body.streamed else request.raw_content or b""
        if self.body.streamed or len(content) > SLICE:
            connection.write(head)
            await self._upload(connection, content)
        else:
            connection.write(head + content if content else head)
            self._sent = loop.time()
        return await self._outcome

    def _head(self, request: http.Request, destination: Destination) -> bytes:
        """The bytes of the request line and headers. Their values were validated when the request was built."""
        data = request.data
        target = data.path
        proxy = destination.proxy
        lines: list[bytes] = []
        host: bytes | None = None
        cookies: list[bytes] = []
        self._chunked = False
        whole = False
        for name, value in data.headers.fields:
            folded = name.lower()
            if folded == b"host":
                host = value
                continue
            if folded == b"cookie":
                cookies.append(value)
                continue
            if folded == b"transfer-encoding":
                if not self.body.streamed:
                    whole = True
                    continue
                self._chunked = True
            lines.append(b"%b: %b\r\n" % (name, value))
        if whole:  # the client sent chunks, and the body was buffered
            lines = [line for line in lines if not line.lower().startswith(b"content-length:")]
            lines.append(b"content-length: %d\r\n" % len(request.raw_content or b""))
        if host is None:
            host = data.authority or destination.netloc.encode()
        if cookies:
            lines.append(b"cookie: %b\r\n" % b"; ".join(cookies))
        if proxy and not destination.tls:
            target = b"http://%b%b" % (destination.netloc.encode(), target)
            if proxy.authorization:
                lines.append(b"proxy-authorization: %b\r\n" % proxy.authorization)
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (data.method, target, host, b"".join(lines))

    # The request body

    async def _upload(self, connection: Connection, content: bytes) -> None:
        """Write a large or streamed body at the speed of the upstream. Returns early when the attempt is over."""
        view = memoryview(content)
        for at in range(0, len(view), SLICE):
            if not await self._write(connection, bytes(view[at : at + SLICE])):
                return
        while self.body.streamed and not (self.body.complete and not self.body.pieces):
            if not self.body.pieces:
                self.deadline = None  # the request waits for the client
                if not await self._either(self.body.more()):
                    return
                continue
            piece = self.body.take()
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece
            written = await self._write(connection, framed)
            self.client.body_taken()
            if not written:
                return
        if self._chunked:
            connection.write(b"0\r\n\r\n")
        if self._state is _State.WAITING:
            self._wait(self.policy.timeouts.first_byte, "Azure did not answer")
        self._sent = asyncio.get_running_loop().time()

    async def _write(self, connection: Connection, data: bytes) -> bool:
        """Return False if the attempt is over."""
        if connection.why is not None:
            return False
        connection.write(data)
        if self._state is _State.WAITING:
            self._wait(self.policy.timeouts.first_byte, "Azure did not answer")
        if connection.full:
            return await self._either(connection.room())
        return True

    async def _either(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for the coroutine or the outcome of the attempt. Return False if the attempt is over."""
        assert self._outcome
        task = asyncio.create_task(waiting)
        try:
            both: set[asyncio.Future[Any]] = {task, self._outcome}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
        return not self._outcome.done()

    def send_upgraded(self, data: bytes) -> None:
        """Send bytes of the upgraded protocol (WebSocket)."""
        if self._connection and self._connection.why is None:
            self._connection.write(data)

    # The response

    def received(self, items: list[Item]) -> None:
        try:
            if self._state is _State.PASSING:
                self._pass(items)
            elif self._state is _State.WAITING:
                self._first(items)
            elif self._state is _State.HOLDING:
                self._collect(items)
            elif self._state is _State.PROBING:
                self._look(items)
        except Exception as error:  # noqa: BLE001 - `_run` logs it
            self._crash(error)

    def _crash(self, error: Exception) -> None:
        """Fail the request after an exception in a callback of the event loop."""
        self._release(whole=False)
        self._state = _State.OVER
        if self._outcome and not self._outcome.done():
            self._outcome.set_exception(error)

    def _first(self, items: list[Item]) -> None:
        response = items[0]
        assert isinstance(response, http.Response)
        self.progress()
        whole = not self.body.streamed or (self.body.complete and not self.body.pieces)
        how = self.policy.hold(response) if whole and response.status_code != 101 else Hold.NOTHING
        if how is Hold.NOTHING:
            self._pass_from_here(items)
        elif isinstance(how, Hold):
            self._state, self._how = _State.HOLDING, how
            self._collect(items)
        else:
            self._state, self._probe = _State.PROBING, how
            self._look(items)

    def _collect(self, items: list[Item]) -> None:
        """State HOLDING: buffer the response until it is complete."""
        self._hold(items)
        self.progress()
        if items[-1] is not END:
            if self._how is Hold.FAILURE and self._held_size > HOLD_AT_MOST:
                self._let_go()
            return
        response = self._held[0]
        assert isinstance(response, http.Response)
        content = b"".join(item for item in self._held if isinstance(item, bytes))
        trailers = [item for item in self._held if isinstance(item, http.Headers)]
        self._held = []
        if self._how is Hold.FAILURE:
            response.data.content = content
            self._release(whole=self._sent is not None)
            self._over(response)
        else:
            self._pass_from_here([response, *([content] if content else []), *trailers, END])

    def _look(self, items: list[Item]) -> None:
        """State PROBING: buffer a stream until its first event shows whether it is an error."""
        assert self._probe
        self._hold(items)
        self.progress()
        for item in items:
            if isinstance(item, bytes) and (verdict := self._probe.feed(item)):
                if verdict.error is None:
                    self._let_go()
                else:
                    self._refused(verdict.error)
                return
        if items[-1] is END:
            self._let_go()
        elif self._probe_timer is None:
            self._probe_timer = asyncio.get_running_loop().call_later(self.policy.hold_stream, self._held_long_enough)

    def _refused(self, error: dict[str, object]) -> None:
        """Convert a stream whose first event is an error into the HTTP error response of the same meaning."""
        head = self._held[0]
        assert isinstance(head, http.Response)
        status, content = error_response(error)
        response = head.copy()
        for name in ("content-length", "content-encoding", "transfer-encoding"):
            response.headers.pop(name, None)
        response.status_code, response.data.content = status, content
        response.headers.update({"content-type": "application/json", "content-length": str(len(content))})
        self._release(whole=False)
        self._over(response)

    def _hold(self, items: list[Item]) -> None:
        self._held += items
        self._held_size += sum(len(item) for item in items if isinstance(item, bytes))

    def _let_go(self) -> None:
        """Forward the buffered items to the client."""
        held, self._held = self._held, []
        self._pass_from_here(held)

    def _held_long_enough(self) -> None:
        try:
            self._let_go()
        except Exception as error:  # noqa: BLE001 - as in `received`
            self._crash(error)

    def _pass_from_here(self, items: list[Item]) -> None:
        self._stop_probing()
        self._state, self.began = _State.PASSING, True
        response = items[0]
        assert isinstance(response, http.Response)
        if response.status_code == 101:
            self.upgraded = True
            self.deadline = None
        self._pass(items)

    def _pass(self, items: list[Item]) -> None:
        if items[-1] is END:
            self.deadline = None
            self.straight = None
            self._release(whole=self._sent is not None and not self.upgraded)
            self.client.deliver(items)
            self._over(None)
            return
        if not self.upgraded:
            self.progress()
        self.client.deliver(items)
        connection = self._connection
        if connection is None or self._state is not _State.PASSING:
            return
        if self.straight is None and connection.reader.between_chunks:
            self.straight = self._watched(self.client.straight(lambda: connection.reader.between_chunks))
        if self.client.full():
            self.pause()

    def _watched(self, take: Callable[[bytes], bool] | None) -> Callable[[bytes], bool] | None:
        """Wrap `take` so that it extends the deadline and applies back-pressure."""
        if take is None:
            return None

        def watched(data: bytes) -> bool:
            if not take(data):
                return False
            self.progress()
            if self.client.full():
                self.pause()
            return True

        return watched

    def _give(self, response: http.Response) -> None:
        """Deliver a complete response to the client."""
        content = response.raw_content or b""
        response.data.content = None
        self.client.deliver([response, content, END] if content else [response, END])

    # Back-pressure

    def pause(self) -> None:
        """Stop reading the response until the client has caught up."""
        if self._connection and self._resuming is None:
            self._connection.pause_reading()
            self.deadline = None  # the request waits for the client
            self._resuming = asyncio.create_task(self._resume())

    async def _resume(self) -> None:
        try:
            await self.client.room()
        finally:
            self._resuming = None
        if self._connection and self._state is _State.PASSING:
            if not self.upgraded:
                self.progress()
            self._connection.resume_reading()

    # Deadlines

    def _wait(self, seconds: float, why: str) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds
        self._why_late = f"{why} for {seconds:g} seconds"

    def progress(self) -> None:
        """Extend the deadline after response bytes."""
        self._wait(self.policy.timeouts.chunk, "Azure sent nothing more")

    def too_late(self) -> None:
        """Fail the attempt, since its deadline has passed."""
        self.deadline = None
        self._release(whole=False)
        self._over(Failure(504, "upstream_timeout", f"The response did not arrive in time: {self._why_late}."))

    # The end of an attempt

    def lost(self, why: str) -> None:
        connection, self._connection = self._connection, None
        self._stop_probing()
        if self._outcome is None or self._outcome.done():
            return
        now = asyncio.get_running_loop().time()
        whole = not self.body.streamed
        fresh = self._state is _State.WAITING and not (connection and connection.answered)
        if fresh and self._reused and whole and (self._sent is None or now - self._sent < STALE_WITHIN):
            self._over(_Stale())
        elif connection and connection.refused:
            self._over(Failure(502, "upstream_unreachable", f"Could not connect upstream: {why}"))
        else:
            self._over(Failure(502, "upstream_error", f"The connection upstream failed: {why}"))

    def _over(self, outcome: Failure | http.Response | _Stale | None) -> None:
        self._state = _State.OVER
        self._held = []
        self.straight = None
        if self._outcome and not self._outcome.done():
            self._outcome.set_result(outcome)

    def _release(self, *, whole: bool) -> None:
        self._stop_probing()
        self.straight = None
        if self._resuming:
            self._resuming.cancel()
            self._resuming = None
        connection, self._connection = self._connection, None
        if connection and connection.finish(whole=whole):
            self.pools.give(connection)

    def _stop_probing(self) -> None:
        if self._probe_timer:
            self._probe_timer.cancel()
            self._probe_timer = None
