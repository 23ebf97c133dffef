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
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy.api.stream_failures import error_response
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.routing.decisions import Respond, Retry

from .connection import ConnectionFailed
from .deadlines import DEADLINES
from .http1 import END
from .interface import Hold
from .request_head import request_head
from .shortage import SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from azure_openai_proxy.api.stream_probe import Peek

    from .connection import Connection
    from .http1 import Item
    from .interface import ClientSide, Policy
    from .pool import Pools
    from .request_body import Body

__all__ = ["UpstreamRequest"]

logger = logging.getLogger(__name__)

HOLD_AT_MOST = 1 << 20
"""Maximum bytes of a failed response to buffer; a longer one is forwarded to the client without a retry."""
SLICE = 1 << 18
"""Bytes of a large body to write at once, before the write buffer must have drained."""
STALE_WITHIN = 0.5
"""Seconds. If a reused connection closes this soon after the request and without a response, it was already closed before the request."""


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


class UpstreamRequest:
    """Sends one client's request upstream until it is answered. `policy` decides on attempts, and `client` receives the response."""

    def __init__(self, policy: Policy, client: ClientSide, pools: Pools, body: Body) -> None:
        self.policy, self.client, self.pools, self.body = policy, client, pools, body
        self.direct_write: Callable[[bytes], bool] | None = None
        self.deadline: float | None = None
        self.silence = 0.0
        """Seconds for which the upstream may send nothing within a response."""
        self.upgraded = False
        self.began = False
        """The client has received a part of the response: no retry is possible."""
        self._why_late = ("", 0.0)
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
            DEADLINES.watch(self)
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
        head, self._chunked = request_head(request, destination, streamed=self.body.streamed)
        pool = self.pools.of(destination)
        # A streamed body cannot be sent again if the pooled connection proves to be closed.
        connection = None if self.body.streamed else pool.take()
        while True:
            if connection is None:
                try:
                    async with asyncio.timeout(self.policy.timeouts.connect):
                        if pool.opening and not self.body.streamed:
                            connection = await pool.wait_for_opening()
                        connection = connection or await pool.connect(self.client.connected)
                except ConnectionFailed as error:
                    return self._not_connected(error)
                except TimeoutError:
                    seconds = self.policy.timeouts.connect
                    message = f"Could not connect upstream in time: there was no connection for {seconds:g} seconds."
                    return Failure(504, "upstream_connect_timeout", message)
            self._reused = connection.requests > 0  # one opened in advance has sent nothing yet
            outcome = await self._exchange(connection, head, request)
            if not isinstance(outcome, _Stale):
                return outcome
            connection = None  # try once more, on a new connection

    def _not_connected(self, error: ConnectionFailed) -> Failure:
        if error.local:
            SHORTAGES.report(error)
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

    # The request body

    async def _upload(self, connection: Connection, content: bytes) -> None:
        """Write a large or streamed body at the speed of the upstream. Returns early when the attempt is over."""
        connection.uploads = True
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
            return await self._either(connection.drain())
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
        if items[-1] is not END:
            self.progress()
            if self._how is Hold.FAILURE and self._held_size > HOLD_AT_MOST:
                self._let_go()
            return
        response = self._held[0]
        assert isinstance(response, http.Response)
        content = b"".join(item for item in self._held if isinstance(item, bytes))
        trailers = [item for item in self._held if type(item) is http.Headers]
        self._held = []
        if self._how is Hold.FAILURE:
            response.data.content = content
            self._release(whole=self._sent is not None)
            self._over(response)
        else:
            self._pass_from_here([response, *([content] if content else []), *trailers, END])

    def _look(self, items: list[Item]) -> None:
        """State PROBING: buffer a stream until its first events show whether it is an error."""
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
            verdict = self._probe.end()
            if verdict and verdict.error is not None:
                self._refused(verdict.error)
            else:
                self._let_go()
        elif self._probe_timer is None:
            self._probe_timer = asyncio.get_running_loop().call_later(self._probe.seconds, self._held_long_enough)

    def _refused(self, error: dict[str, object]) -> None:
        """Convert a stream that begins with an error into the HTTP error response of the same meaning."""
        head = self._held[0]
        assert isinstance(head, http.Response)
        response = error_response(head, error)
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
        self._probe = None
        self._state, self.began = _State.PASSING, True
        self.silence = self.policy.timeouts.chunk
        self.progress()
        response = items[0]
        assert isinstance(response, http.Response)
        if response.status_code == 101:
            self.upgraded = True
            self.deadline = None
        self._pass(items)

    def _pass(self, items: list[Item]) -> None:
        if items[-1] is END:
            self.deadline = None
            self.direct_write = None
            self._release(whole=self._sent is not None and not self.upgraded)
            self.client.deliver(items)
            self._over(None)
            return
        if not self.upgraded:
            self.deadline = asyncio.get_running_loop().time() + self.silence
        direct_write, item = self.direct_write, items[0]
        if direct_write is None or type(item) is not bytes or not direct_write(item):
            self.client.deliver(items)
            if self._connection is None or self._state is not _State.PASSING:
                return
            if direct_write is None:
                self.direct_write = self.client.direct_writer()
        if self.client.full():
            self.pause()

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
            await self.client.writable()
        finally:
            self._resuming = None
        if self._connection and self._state is _State.PASSING:
            if not self.upgraded:
                self.progress()
            self._connection.resume_reading()

    # Deadlines

    def _wait(self, seconds: float, why: str) -> None:
        self.deadline = asyncio.get_running_loop().time() + seconds
        self._why_late = (why, seconds)

    def progress(self) -> None:
        """Extend the deadline after response bytes."""
        self._wait(self.policy.timeouts.chunk, "Azure sent nothing more")

    @property
    def shortest_timeout(self) -> float:
        return min(self.policy.timeouts)

    def too_late(self) -> None:
        """Fail the attempt, since its deadline has passed."""
        self.deadline = None
        self._release(whole=False)
        why, seconds = self._why_late
        self._over(Failure(504, "upstream_timeout", f"The response did not arrive in time: {why} for {seconds:g} seconds."))

    # The end of an attempt

    def lost(self, why: str) -> None:
        connection, self._connection = self._connection, None
        self._stop_probing()
        if self._outcome is None or self._outcome.done():
            return
        now = asyncio.get_running_loop().time()
        whole = not self.body.streamed
        fresh = self._state is _State.WAITING and not (connection and connection.response_started)
        if fresh and self._reused and whole and (self._sent is None or now - self._sent < STALE_WITHIN):
            self._over(_Stale())
        elif connection and connection.refused:
            self._over(Failure(502, "upstream_unreachable", f"Could not connect upstream: {why}"))
        else:
            self._over(Failure(502, "upstream_error", f"The connection upstream failed: {why}"))

    def _over(self, outcome: Failure | http.Response | _Stale | None) -> None:
        self._state = _State.OVER
        self._held = []
        self.direct_write = None
        if self._outcome and not self._outcome.done():
            self._outcome.set_result(outcome)

    def _release(self, *, whole: bool) -> None:
        self._stop_probing()
        self.direct_write = None
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
