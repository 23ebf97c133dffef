"""One request upstream, from its first attempt to its last byte, with real sockets on loopback."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import weakref
from typing import TYPE_CHECKING, Any, cast

import pytest
from mitmproxy import http
from mitmproxy.test.tutils import treq

from azure_openai_proxy.api import stream_probe
from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.config.settings import Timeouts
from azure_openai_proxy.egress import request as module
from azure_openai_proxy.egress.connect import Destination, Proxy
from azure_openai_proxy.egress.deadlines import DEADLINES
from azure_openai_proxy.egress.http1 import END
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.egress.pool import Limits, Pools
from azure_openai_proxy.egress.request import UpstreamRequest
from azure_openai_proxy.egress.request_body import Body
from azure_openai_proxy.egress.tls import TlsOptions
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.routing.decisions import GIVE_UP, Respond, Retry
from azure_simulator import tls as certificates
from support.upstreams import OK, Peer, Received, Upstream, alerting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from mitmproxy.connection import Server

    from azure_openai_proxy.routing.decisions import Decision

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = 30.0
# Made here, since mitmproxy's type checks leave a reference cycle that keeps the caller's frame.
REQUEST = treq(method=b"POST", content=b"{}", headers=http.Headers([(b"content-length", b"2")]))


class Client:
    """Where the response goes."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.failure: Failure | None = None
        self.servers: list[Server] = []
        self.taken = 0
        self.is_full = False
        self.take: Callable[[bytes], bool] | None = None
        self.asked_for_straight = 0
        self.on_deliver: Callable[[], None] = lambda: None
        self.on_taken: Callable[[], None] = lambda: None
        self._writable = asyncio.Event()
        self._news = asyncio.Event()

    def connected(self, server: Server) -> None:
        self.servers.append(server)

    def deliver(self, items: Sequence[Any]) -> None:
        self.items += items
        self._news.set()
        self.on_deliver()

    def failed(self, failure: Failure) -> None:
        assert self.failure is None
        self.failure = failure
        self._news.set()

    def full(self) -> bool:
        return self.is_full

    async def writable(self) -> None:
        await self._writable.wait()

    def read(self) -> None:
        self.is_full = False
        self._writable.set()

    def direct_writer(self) -> Callable[[bytes], bool] | None:
        self.asked_for_straight += 1
        return self.take

    def body_taken(self) -> None:
        self.taken += 1
        self._news.set()
        self.on_taken()

    async def until(self, there: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not there():
                self._news.clear()
                await self._news.wait()

    async def over(self) -> None:
        await self.until(lambda: END in self.items or self.failure)

    @property
    def status(self) -> int | None:
        return self.items[0].status_code if self.items else None

    @property
    def body(self) -> bytes:
        return b"".join(item for item in self.items if isinstance(item, bytes))


class Policy:
    """The destinations in order, and how much of each response is held."""

    def __init__(self, *destinations: Destination | Failure, request: http.Request | None = None, **timeouts: float) -> None:
        self.timeouts = Timeouts(**({"connect": LONG, "first_byte": LONG, "chunk": LONG} | timeouts))
        self.left = list(destinations)
        self.request = request or REQUEST
        self.holds: Hold | Peek | Callable[[], Hold] = Hold.NOTHING
        self.failures: list[Failure | http.Response] = []
        self.instead: http.Response | None = None
        self.at = self.left.pop(0)

    def upstream_request(self) -> tuple[Destination, http.Request] | Failure:
        return self.at if isinstance(self.at, Failure) else (self.at, self.request)

    def hold(self, response: http.Response) -> Hold | Peek:
        return self.holds() if callable(self.holds) else self.holds

    def next_attempt(self, failed: Failure | http.Response) -> Decision:
        self.failures.append(failed)
        if self.instead:
            return Respond(self.instead)
        if self.left:
            self.at = self.left.pop(0)
            return Retry(cast("Any", None))
        return GIVE_UP

    def broke_off(self, failed: Failure) -> None:
        self.failures.append(failed)


class Asked:
    """A request that was started."""

    def __init__(self, policy: Policy, pools: Pools | None = None, *, streamed: bool = False, **client: Any) -> None:
        self.policy, self.client, self.pools = policy, Client(), pools or Pools()
        for name, value in client.items():
            setattr(self.client, name, value)
        self.request = UpstreamRequest(policy, self.client, self.pools, Body(streamed=streamed))
        self.request.start()
        self.task = self.request._task

    async def over(self) -> Client:
        await self.client.over()
        if self.task:
            await asyncio.wait([self.task])
        return self.client


@pytest.fixture(autouse=True)
def any_close_is_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine half a second passes between two lines."""
    monkeypatch.setattr(module, "STALE_WITHIN", LONG)
    monkeypatch.setattr(stream_probe, "HOLD_STREAM", LONG)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No request is watched, and no transport unclosed, when a test is over."""
    yield
    assert not DEADLINES._watched
    assert DEADLINES._timer is None
    gc.collect()


def answering(*answers: bytes, then: Callable[[Peer], Awaitable[None]] | None = None, seen: list[Received] | None = None) -> Upstream:
    """A server that reads a request and gives the next answer, on whatever connection."""
    left = list(answers)

    async def serve(peer: Peer) -> None:
        while left:
            received = await peer.request()
            if seen is not None:
                seen.append(received)
            await peer.send(left.pop(0))
            if then:
                await then(peer)
        await peer.gone()

    return Upstream(serve)


async def close(peer: Peer) -> None:
    peer.close()
    await asyncio.Event().wait()


async def reset(peer: Peer) -> None:
    peer.reset()
    await asyncio.Event().wait()


# The ordinary course


async def test_a_response_is_passed_on() -> None:
    """Head, body and end; the connection is there for the next request, which shows the same server."""
    async with Upstream() as upstream:
        pools = Pools()
        first = await Asked(Policy(upstream.destination()), pools).over()
        second = await Asked(Policy(upstream.destination()), pools).over()
        assert [(200, b"ok"), (200, b"ok")] == [(client.status, client.body) for client in (first, second)]
        assert 1 == len(upstream.peers)
        assert first.servers[-1] is second.servers[-1]
        assert first.servers[0] is first.servers[-1]
        pools.close()


async def test_a_head_and_a_body_in_pieces() -> None:
    """Each is passed on when it comes."""
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK[:-2])
        await go_on.wait()
        await peer.send(OK[-2:])
        await peer.gone()

    async with Upstream(serve) as upstream:
        asked = Asked(Policy(upstream.destination()))
        await asked.client.until(lambda: asked.client.items)
        assert (200, b"") == (asked.client.status, asked.client.body)
        go_on.set()
        assert b"ok" == (await asked.over()).body
        asked.pools.close()


async def test_trailers() -> None:
    """They come between the body and the end, also of a response that was wanted whole."""
    for hold in (Hold.NOTHING, Hold.WHOLE):
        async with answering(CHUNKED + b"2\r\nok\r\n0\r\nX-Check: 1\r\n\r\n") as upstream:
            policy = Policy(upstream.destination())
            policy.holds = hold
            asked = Asked(policy)
            items = (await asked.over()).items
            assert [b"ok", END] == [items[1], items[3]]
            assert "1" == items[2]["x-check"]
            asked.pools.close()


async def test_informational_responses() -> None:
    """The client has only the one behind them."""
    async with answering(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK) as upstream:
        asked = Asked(Policy(upstream.destination()))
        client = await asked.over()
        assert (200, b"ok", 3) == (client.status, client.body, len(client.items))
        asked.pools.close()


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ([(b"x-a", b"b"), (b"Host", b"named")], b"POST /path HTTP/1.1\r\nHost: named\r\nx-a: b\r\n\r\n"),
        ([], b"POST /path HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n"),
        ([(b"cookie", b"a=1"), (b"cookie", b"b=2")], b"POST /path HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\ncookie: a=1; b=2\r\n\r\n"),
        (
            [(b"transfer-encoding", b"chunked"), (b"content-length", b"9")],
            b"POST /path HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\ncontent-length: 0\r\n\r\n",
        ),
    ],
)
async def test_the_head_of_the_request(fields: list[tuple[bytes, bytes]], sent: bytes) -> None:
    """Host comes first, the cookies of HTTP/2 are joined again, and a body that is whole is not sent in chunks."""
    heads: list[bytes] = []

    async def serve(peer: Peer) -> None:
        heads.append(await peer.reader.readuntil(b"\r\n\r\n"))
        await peer.send(OK)
        await peer.gone()

    async with Upstream(serve) as upstream:
        request = treq(method=b"POST", content=b"", headers=http.Headers(fields), authority=b"")
        asked = Asked(Policy(upstream.destination(), request=request))
        await asked.over()
        assert [sent.replace(b"PORT", b"%d" % upstream.port)] == heads
        asked.pools.close()


async def test_an_authority_is_the_host() -> None:
    """That of an HTTP/2 request without a Host header."""
    seen: list[Received] = []
    async with answering(OK, seen=seen) as upstream:
        asked = Asked(Policy(upstream.destination(), request=treq(content=b"", headers=http.Headers(), authority=b"azure.example")))
        await asked.over()
        assert b"azure.example" == seen[0].headers[b"host"]
        asked.pools.close()


async def test_a_plain_request_through_a_proxy() -> None:
    """It names the whole URL, and has the proxy's password; without one there is none."""
    for authorization in (b"Basic secret", None):
        seen: list[Received] = []
        async with answering(OK, seen=seen) as upstream:
            destination = Destination("azure.example", 80, False, Proxy("127.0.0.1", upstream.port, authorization=authorization))
            asked = Asked(Policy(destination))
            await asked.over()
            assert b"POST http://azure.example:80/path HTTP/1.1" == seen[0].line
            assert authorization == seen[0].headers.get(b"proxy-authorization")
            asked.pools.close()


async def test_a_request_that_must_not_leave() -> None:
    """The client has the failure, and nothing is connected to."""
    refusal = Failure(400, "invalid_request", "not this one")
    asked = Asked(Policy(refusal))
    assert asked.client.failure is None  # before `start` has returned the client's side does not know the request
    assert refusal == (await asked.over()).failure
    assert [] == asked.client.servers
    assert [] == asked.policy.failures


# Failures and other attempts


@pytest.fixture
def refusing() -> Destination:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return Destination("127.0.0.1", closed.getsockname()[1], False)


async def test_no_connection(refusing: Destination) -> None:
    """The next destination is used; without another one the client gets the failure."""
    async with Upstream() as upstream:
        asked = Asked(Policy(refusing, upstream.destination()))
        assert 200 == (await asked.over()).status
        assert ["upstream_unreachable"] == [failed.code for failed in asked.policy.failures if isinstance(failed, Failure)]
        asked.pools.close()
    asked = Asked(Policy(refusing))
    failure = (await asked.over()).failure
    assert failure
    assert (502, "upstream_unreachable") == failure[:2]
    assert failure.message.startswith("Could not connect upstream: ")


async def test_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a code of its own, for it is no backend's fault."""
    import errno

    from azure_openai_proxy.egress import pool

    async def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(pool, "connect_any", none_left)
    failure = (await Asked(Policy(Destination("127.0.0.1", 80, False))).over()).failure
    assert failure
    assert (503, "proxy_shortage") == failure[:2]
    assert "Too many open files" in failure.message


async def test_connecting_takes_too_long() -> None:
    """A handshake that does not end is given up, and the socket closed; another destination may be asked."""

    async def hang(peer: Peer) -> None:
        await peer.gone()

    async with Upstream(hang) as silent, Upstream() as upstream:
        asked = Asked(Policy(silent.destination()._replace(tls=True), upstream.destination(), connect=0.05))
        assert 200 == (await asked.over()).status
        assert [
            Failure(504, "upstream_connect_timeout", "Could not connect upstream in time: there was no connection for 0.05 seconds.")
        ] == (asked.policy.failures)
        await asyncio.wait_for(silent.peers[0].served.wait(), 10)
        asked.pools.close()


async def test_the_first_byte_takes_too_long() -> None:
    """The attempt is over, its connection closed."""

    async def hang(peer: Peer) -> None:
        await peer.gone()

    async with Upstream(hang) as silent:
        asked = Asked(Policy(silent.destination(), first_byte=0.05))
        failure = Failure(504, "upstream_timeout", "The response did not arrive in time: Azure did not answer for 0.05 seconds.")
        assert failure == (await asked.over()).failure
        await asyncio.wait_for(silent.peers[0].served.wait(), 10)


@pytest.mark.parametrize("hold", [Hold.NOTHING, Hold.WHOLE])
async def test_the_next_piece_takes_too_long(hold: Hold) -> None:
    """The part of a response that the client has ends with the failure; held bytes are dropped, and another attempt is made."""
    async with answering(OK[:-1]) as slow, Upstream() as upstream:
        policy = Policy(slow.destination(), upstream.destination(), chunk=0.05)
        policy.holds = hold
        asked = Asked(policy)
        client = await asked.over()
        if hold is Hold.NOTHING:
            assert b"o" == client.body
            assert client.failure
            assert "Azure sent nothing more for 0.05 seconds" in client.failure.message
            assert [] == upstream.peers
        else:
            assert (200, b"ok", None) == (client.status, client.body, client.failure)
        assert 1 == len(policy.failures)
        asked.pools.close()


async def test_one_timer_for_all() -> None:
    """A request that is due sooner is not kept waiting for one that is due later; those that are in time go on."""

    async def hang(peer: Peer) -> None:
        await peer.gone()

    async with Upstream(hang) as silent:
        pools = Pools()
        patient = Asked(Policy(silent.destination()), pools)
        hasty = Asked(Policy(silent.destination(), first_byte=0.05), pools)
        later = Asked(Policy(silent.destination(), first_byte=0.2), pools)
        assert (await hasty.over()).failure
        assert not later.client.failure
        assert (await later.over()).failure
        assert not patient.client.failure
        patient.request.cancel()
        assert patient.task
        await asyncio.wait([patient.task])


@pytest.mark.parametrize("ends", [close, reset], ids=["closed", "reset"])
async def test_a_connection_that_is_lost(ends: Callable[[Peer], Awaitable[None]]) -> None:
    """Before a byte, in the head and in a body that is held the next attempt answers; a body that the client has breaks off."""
    for start, began in ((b"", False), (OK[:20], False), (OK[:-1], True)):
        async with answering(start, then=ends) as broken, Upstream() as upstream:
            for hold in (Hold.NOTHING, Hold.WHOLE) if began else (Hold.NOTHING,):
                broken.serve = answering(start, then=ends).serve
                policy = Policy(broken.destination(), upstream.destination())
                policy.holds = hold
                asked = Asked(policy)
                client = await asked.over()
                (failed,) = policy.failures
                assert isinstance(failed, Failure)
                assert (502, "upstream_error") == failed[:2]
                if began and hold is Hold.NOTHING:
                    assert failed == client.failure
                    assert b"o" == client.body
                else:
                    assert (200, b"ok") == (client.status, client.body)
                asked.pools.close()


async def test_a_client_certificate_is_wanted(tmp_path: Path) -> None:
    """Azure has read nothing of the request: it may be sent elsewhere in any case, and the cause contains the alert's name."""
    ca, server = certificates.make(tmp_path, ["127.0.0.1"])
    server.load_verify_locations(ca)
    server.verify_mode = ssl.CERT_REQUIRED
    async with alerting(server) as port:
        asked = Asked(Policy(Destination("127.0.0.1", port, True)), Pools(tls=TlsOptions(ca_file=str(ca))))
        failure = (await asked.over()).failure
    assert Failure(502, "upstream_unreachable", "Could not connect upstream: TLS failed: tlsv13 alert certificate required") == failure


async def test_another_response_instead() -> None:
    """Of several failures the policy may choose an earlier one."""
    async with answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n") as upstream:
        for content in (b"kept", b""):
            policy = Policy(upstream.destination())
            policy.holds = Hold.FAILURE
            policy.instead = http.Response.make(429, content)
            upstream.serve = answering(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").serve
            asked = Asked(policy)
            client = await asked.over()
            assert (429, content) == (client.status, client.body)
            assert client.items[0].raw_content is None
            asked.pools.close()


# Held responses


FAILED = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


async def test_a_failure_is_held() -> None:
    """The next destination answers instead, and the connection of the first is kept; with none left the failure is the answer."""
    for alone in (False, True):
        async with answering(FAILED) as busy, Upstream() as upstream:
            policy = Policy(busy.destination(), *(() if alone else [upstream.destination()]))
            policy.holds = lambda policy=policy, busy=busy: Hold.FAILURE if policy.at == busy.destination() else Hold.NOTHING
            asked = Asked(policy)
            client = await asked.over()
            assert ((503, b"busy") if alone else (200, b"ok")) == (client.status, client.body)
            (failed,) = policy.failures
            assert isinstance(failed, http.Response)
            assert asked.pools.of(busy.destination()).idle
            asked.pools.close()


async def test_a_failure_in_pieces() -> None:
    """It is judged when it is complete."""
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(FAILED[:-2])
        await go_on.wait()
        await peer.send(FAILED[-2:])
        await peer.gone()

    async with Upstream(serve) as upstream:
        policy = Policy(upstream.destination())
        policy.holds = Hold.FAILURE
        asked = Asked(policy)
        while asked.request._held_size < 2:
            await asyncio.sleep(0.001)
        assert [] == policy.failures
        go_on.set()
        assert b"busy" == (await asked.over()).body
        asked.pools.close()


async def test_a_failure_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed on, for it would take memory: there is no other attempt."""
    monkeypatch.setattr(module, "HOLD_AT_MOST", 100)
    async with answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 400\r\n\r\n" + b"x" * 200) as busy, Upstream() as upstream:
        policy = Policy(busy.destination(), upstream.destination())
        policy.holds = Hold.FAILURE
        asked = Asked(policy)
        await asked.client.until(lambda: asked.client.items)
        assert (503, 200) == (asked.client.status, len(asked.client.body))
        await busy.peers[0].send(b"x" * 200)
        assert 400 == len((await asked.over()).body)
        assert [] == policy.failures
        asked.pools.close()


async def test_a_response_that_is_wanted_whole() -> None:
    """It reaches the client at once, in one piece, also if it is empty."""
    for answer, items in (
        (CHUNKED + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n", [b"ab", END]),
        (OK.replace(b"2", b"0", 2)[:-2].replace(b"000", b"200"), [END]),
    ):
        async with answering(answer) as upstream:
            policy = Policy(upstream.destination())
            policy.holds = Hold.WHOLE
            asked = Asked(policy)
            assert items == (await asked.over()).items[1:]
            asked.pools.close()


def event(data: bytes) -> bytes:
    return b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data)


ERROR = b'{"error":{"code":"429","message":"busy"}}'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_stream_that_begins_with_content() -> None:
    """From its first event on it is passed on; before that nothing is."""
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        await go_on.wait()
        await peer.send(event(b'{"choices":[]}'))
        while not asked.request._held_size:
            await asyncio.sleep(0.001)
        await peer.send(event(b'{"choices":[{}]}'))
        await peer.gone()

    async with Upstream(serve) as upstream:
        policy = Policy(upstream.destination())
        policy.holds = Peek(None)
        asked = Asked(policy)
        while asked.request._probe_timer is None:
            await asyncio.sleep(0.001)
        assert [] == asked.client.items
        go_on.set()
        await asked.client.until(lambda: b"[{}]" in asked.client.body)
        assert (200, True) == (asked.client.status, asked.request.began)
        assert [None] == [asked.request._probe_timer]
        asked.request.cancel()
        assert asked.task
        await asyncio.wait([asked.task])


async def test_a_stream_that_begins_with_an_error() -> None:
    """It is the response that Azure would have given, for the next attempt to decide."""
    async with answering(STREAM + event(ERROR)) as busy, Upstream() as upstream:
        for others in ([upstream.destination()], []):
            busy.serve = answering(STREAM + event(ERROR)).serve
            policy = Policy(busy.destination(), *others)
            first = Peek(None)
            policy.holds = lambda policy=policy, busy=busy, first=first: first if policy.at == busy.destination() else Hold.NOTHING
            asked = Asked(policy)
            client = await asked.over()
            (failed,) = policy.failures
            assert isinstance(failed, http.Response)
            assert 429 == failed.status_code
            assert {"content-type": "application/json", "content-length": str(len(failed.raw_content or client.body))} == {
                name.lower(): value for name, value in failed.headers.items()
            }
            assert (200 if others else 429) == client.status
            asked.pools.close()


async def test_a_stream_that_ends_before_its_first_event() -> None:
    """It is passed on as it is."""
    async with answering(STREAM + b"0\r\n\r\n") as upstream:
        policy = Policy(upstream.destination())
        policy.holds = Peek(None)
        asked = Asked(policy)
        assert [END] == (await asked.over()).items[1:]
        asked.pools.close()


async def test_a_stream_whose_last_event_is_an_error_without_a_blank_line() -> None:
    """The end of the response completes the event."""
    async with answering(STREAM + b"%x\r\ndata: %b\r\n0\r\n\r\n" % (len(ERROR) + 6, ERROR)) as upstream:
        policy = Policy(upstream.destination())
        policy.holds = Peek(None)
        asked = Asked(policy)
        assert 429 == (await asked.over()).status
        asked.pools.close()


async def test_a_stream_is_held_only_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the client gets the buffered part."""
    async with answering(STREAM + event(b'{"choices":[]}')) as upstream:
        policy = Policy(upstream.destination())
        policy.holds = Peek(None, seconds=0.01)
        asked = Asked(policy)
        await asked.client.until(lambda: asked.client.items)
        assert b"choices" in asked.client.body
        asked.request.cancel()
        assert asked.task
        await asyncio.wait([asked.task])


# Connections that were closed while they were idle


async def test_a_stale_connection() -> None:
    """A reused one that ends at once, without a byte, is no failure: the request is sent again, on a new one."""
    seen: list[Received] = []
    async with answering(OK, b"", OK, then=None, seen=seen) as upstream:
        real = upstream.serve

        async def serve(peer: Peer) -> None:
            first = len(upstream.peers) == 1
            if first:
                await peer.request()
                await peer.send(OK)
                await peer.request()
                peer.close()
            else:
                await real(peer)

        upstream.serve = serve
        pools = Pools()
        await Asked(Policy(upstream.destination()), pools).over()
        asked = Asked(Policy(upstream.destination()), pools)
        client = await asked.over()
        assert (200, b"ok", []) == (client.status, client.body, asked.policy.failures)
        assert 2 == len(upstream.peers)
        pools.close()


async def close_second(peer: Peer) -> None:
    await peer.request()
    await peer.send(OK)
    await peer.request()
    peer.close()
    await asyncio.Event().wait()


async def test_a_request_is_sent_again_once() -> None:
    """However many idle connections there are: a request that crashes a server is not repeated a hundred times."""
    async with Upstream(close_second) as upstream:
        pools = Pools()
        three = [Asked(Policy(upstream.destination()), pools) for _ in range(3)]
        for each in three:
            await each.over()
        assert 3 == len(pools.of(upstream.destination()).idle)

        async def dies(peer: Peer) -> None:
            await peer.request()
            await close(peer)

        upstream.serve = dies
        asked = Asked(Policy(upstream.destination()), pools)
        assert (await asked.over()).failure
        assert (4, 2) == (len(upstream.peers), len(pools.of(upstream.destination()).idle))
        assert 1 == len(asked.policy.failures)
        pools.close()


async def test_a_new_connection_is_never_stale() -> None:
    """Azure may have had the request: that is for the policy to decide."""
    async with answering(b"", then=close) as upstream:
        asked = Asked(Policy(upstream.destination()))
        failure = (await asked.over()).failure
        assert failure
        assert (502, "upstream_error", "The connection upstream failed: the connection was closed") == failure
        assert 1 == len(upstream.peers)


async def test_a_connection_opened_in_advance_is_not_stale_at_its_first_request() -> None:
    """It was not reused, so the request is not sent again to the same backend, as on a new connection."""
    async with answering(b"", then=close) as upstream:
        pools = Pools()
        await pools.warm(upstream.destination(), LONG)
        failure = (await Asked(Policy(upstream.destination()), pools).over()).failure
        assert failure
        assert (502, "upstream_error") == (failure.status, failure.code)
        assert 1 == len(upstream.peers)


async def test_a_request_waits_for_the_connection_opened_in_advance() -> None:
    """It does not open another one meanwhile, unless that one fails."""
    async with answering(OK, OK) as upstream:
        for fails in (False, True):
            pools = Pools()
            pool = pools.of(upstream.destination())
            warming = asyncio.create_task(pools.warm(upstream.destination(), LONG))
            while not pool.opening:
                await asyncio.sleep(0)
            if fails:
                warming.cancel()
            assert 200 == (await Asked(Policy(upstream.destination()), pools).over()).status
            assert 1 == pool.opened
            pools.close()


async def test_what_ends_later_was_not_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a second Azure may have begun to work."""
    monkeypatch.setattr(module, "STALE_WITHIN", 0.0)
    async with Upstream(close_second) as upstream:
        pools = Pools()
        await Asked(Policy(upstream.destination()), pools).over()
        assert (await Asked(Policy(upstream.destination()), pools).over()).failure
        assert 1 == len(upstream.peers)


async def test_a_large_body_on_a_stale_connection() -> None:
    """It is sent again from its start, though it was not sent to its end."""

    async def serve(peer: Peer) -> None:
        if len(upstream.peers) == 1:
            await peer.request()
            await peer.send(OK)
            await peer.head()
            await reset(peer)
        received = await peer.request()
        sizes.append(len(received.body))
        await peer.send(OK)
        await peer.gone()

    sizes: list[int] = []
    async with Upstream(serve) as upstream:
        pools = Pools()
        await Asked(Policy(upstream.destination()), pools).over()
        asked = Asked(Policy(upstream.destination(), request=large(20 << 20)), pools)
        assert 200 == (await asked.over()).status
        assert [20 << 20] == sizes
        pools.close()


def large(size: int) -> http.Request:
    return treq(method=b"POST", content=b"x" * size, headers=http.Headers([(b"content-length", b"%d" % size)]))


async def test_a_streamed_body_has_a_new_connection() -> None:
    """It cannot be sent again, so it is not trusted to one that may have been closed."""
    async with Upstream() as upstream:
        pools = Pools()
        await Asked(Policy(upstream.destination()), pools).over()
        asked = Asked(Policy(upstream.destination(), request=large(0)), pools, streamed=True)
        asked.request.complete()
        assert 200 == (await asked.over()).status
        assert 2 == len(upstream.peers)
        assert 2 == len(pools.of(upstream.destination()).idle)
        pools.close()


# Bodies


def streamed(*fields: tuple[bytes, bytes]) -> http.Request:
    return treq(method=b"POST", content=None, headers=http.Headers(fields))


@pytest.mark.parametrize("fields", [(b"transfer-encoding", b"chunked"), (b"content-length", b"10")])
async def test_a_body_that_comes_in_pieces(fields: tuple[bytes, bytes]) -> None:
    """Each piece is forwarded when it arrives, framed according to the head; the client may then send more."""
    seen: list[Received] = []
    async with answering(OK, seen=seen) as upstream:
        asked = Asked(Policy(upstream.destination(), request=streamed(fields)), streamed=True)
        asked.request.add(b"hello")
        assert 5 == asked.request.backlog
        await asked.client.until(lambda: asked.client.taken == 1)
        assert 0 == asked.request.backlog
        asked.request.add(b"world")
        asked.request.complete()
        assert 200 == (await asked.over()).status
        assert b"helloworld" == seen[0].body
        assert asked.pools.of(upstream.destination()).idle
        asked.request.add(b"too late")
        assert 0 == asked.request.backlog
        asked.pools.close()


async def test_nothing_is_late_while_the_client_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for the first byte begins with the last one of the request."""
    async with answering(OK) as upstream:
        asked = Asked(Policy(upstream.destination(), request=streamed((b"transfer-encoding", b"chunked"))), streamed=True)
        asked.request.add(b"hello")
        await asked.client.until(lambda: asked.client.taken)
        await asyncio.sleep(0)
        assert [None] == [asked.request.deadline]
        asked.request.complete()
        while asked.request.deadline is None:
            await asyncio.sleep(0)
        assert 200 == (await asked.over()).status
        asked.pools.close()


async def test_upstream_does_not_read() -> None:
    """A body waits for it, in bounded memory, and the time for the first byte runs."""
    read = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await read.wait()
        await peer.request()
        await peer.send(OK)
        await peer.gone()

    async with Upstream(serve) as upstream:
        asked = Asked(Policy(upstream.destination(), request=streamed((b"transfer-encoding", b"chunked"))), streamed=True)
        for _ in range(100):
            asked.request.add(b"x" * (1 << 18))
        while not (asked.request._connection and asked.request._connection.full):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        taken = asked.client.taken
        assert taken < 100
        assert asked.request._connection.transport.get_write_buffer_size() < 1 << 19
        assert asked.request.backlog > asked.request.body.size
        assert asked.request.deadline is not None
        read.set()
        asked.request.complete()
        assert 200 == (await asked.over()).status
        assert 100 == asked.client.taken
        asked.pools.close()


@pytest.mark.parametrize("size", [20 << 20, None], ids=["whole", "streamed"])
async def test_upstream_never_reads(size: int | None) -> None:
    """An upload that stalls ends with a time-out."""

    async def hang(peer: Peer) -> None:
        await asyncio.Event().wait()

    async with Upstream(hang) as upstream:
        request = large(size) if size else streamed((b"transfer-encoding", b"chunked"))
        asked = Asked(Policy(upstream.destination(), request=request, first_byte=0.05), streamed=size is None)
        if size is None:
            for _ in range(100):
                asked.request.add(b"x" * (1 << 18))
        failure = (await asked.over()).failure
        assert failure
        assert (504, "upstream_timeout") == failure[:2]


@pytest.mark.parametrize("hold", [Hold.NOTHING, Hold.FAILURE])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
async def test_an_early_response(is_streamed: bool, hold: Hold) -> None:
    """It ends the upload; the connection, on which the rest of the body is missing, is never used again."""
    done = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\nno")
        await done.wait()

    async with Upstream(serve) as upstream:
        request = streamed((b"transfer-encoding", b"chunked")) if is_streamed else large(50 << 20)
        policy = Policy(upstream.destination(), request=request)
        policy.holds = hold
        asked = Asked(policy, streamed=is_streamed)
        if is_streamed:
            asked.request.add(b"x" * (1 << 20))
        client = await asked.over()
        assert (413, b"no") == (client.status, client.body)
        assert not asked.pools.of(upstream.destination()).idle
        done.set()


async def test_an_early_response_during_a_piece() -> None:
    """The upload stops also while it waits for the client's next bytes."""

    async def serve(peer: Peer) -> None:
        await peer.head()
        await peer.reader.readexactly(10)
        await peer.send(b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with Upstream(serve) as upstream:
        asked = Asked(Policy(upstream.destination(), request=streamed((b"transfer-encoding", b"chunked"))), streamed=True)
        asked.request.add(b"hello")
        client = await asked.over()
        assert (400, b"no") == (client.status, client.body)
        await asyncio.wait_for(upstream.peers[0].served.wait(), 10)


async def test_a_response_during_an_upload() -> None:
    """Both go on beside each other; the client's pieces do not end the time for the response's."""
    async with Upstream() as upstream:
        asked = Asked(Policy(upstream.destination(), request=streamed((b"transfer-encoding", b"chunked"))), streamed=True)

        async def serve(peer: Peer) -> None:
            await peer.head()
            await peer.send(OK[:-1])
            await peer.reader.readuntil(b"0\r\n\r\n")
            await peer.send(OK[-1:])
            await peer.gone()

        upstream.serve = serve
        asked.request.add(b"hello")
        await asked.client.until(lambda: b"o" in asked.client.items)
        asked.request.add(b"world")
        await asked.client.until(lambda: asked.client.taken == 2)
        asked.request.complete()
        client = await asked.over()
        assert (200, b"ok") == (client.status, client.body)
        assert asked.pools.of(upstream.destination()).idle
        asked.pools.close()


# Back-pressure of the client


async def test_a_slow_client() -> None:
    """Nothing more is read from upstream until it has read, and nothing is late meanwhile."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await peer.send(b"x" * (1 << 16))
        await peer.gone()

    size = 20 << 20
    async with Upstream(serve) as upstream:
        asked = Asked(Policy(upstream.destination()), is_full=True)
        await asked.client.until(lambda: asked.client.items)
        await asyncio.sleep(0.02)
        assert len(asked.client.body) < size // 2
        assert asked.request.deadline is None
        asked.request.pause()
        asked.client.read()
        await asked.over()
        assert size == len(asked.client.body)
        asked.pools.close()


async def test_a_slow_client_leaves() -> None:
    """Who waits for it waits no more."""
    async with answering(OK[:-1]) as upstream:
        asked = Asked(Policy(upstream.destination()), is_full=True)
        await asked.client.until(lambda: b"o" in asked.client.items)
        resuming = asked.request._resuming
        assert resuming
        asked.request.cancel()
        await asyncio.wait([resuming])
        assert asked.task
        await asyncio.wait([asked.task])
        await asyncio.wait_for(upstream.peers[0].served.wait(), 10)
        asked.request.pause()


async def test_upstream_leaves_while_the_client_is_slow() -> None:
    """The client gets the failure once it reads again."""
    async with answering(OK[:-1]) as upstream:
        asked = Asked(Policy(upstream.destination()), is_full=True)
        await asked.client.until(lambda: b"o" in asked.client.items)
        connection = asked.request._connection
        assert connection
        connection.drop("reset by peer")
        asked.client.read()
        assert (await asked.over()).failure


async def test_straight_bytes() -> None:
    """Parts of a body may take a shorter way, which counts as progress and heeds the client's pace; the end never does."""
    straight: list[bytes] = []

    def take(data: bytes) -> bool:
        straight.append(data)
        asked.client.is_full = len(straight) == 2
        asked.client._news.set()
        return data != b"c"

    async with answering(CHUNKED) as upstream:
        asked = Asked(Policy(upstream.destination()), take=take)
        await asked.client.until(lambda: asked.client.asked_for_straight)
        vars(asked.request).update(deadline=None)
        await upstream.peers[0].send(b"1\r\na\r\n")
        await asked.client.until(lambda: straight)
        assert asked.request.deadline
        await upstream.peers[0].send(b"1\r\nb\r\n")
        await asked.client.until(lambda: len(straight) == 2)
        assert asked.request._resuming
        asked.client.read()
        await upstream.peers[0].send(b"1\r\nc\r\n")
        await asked.client.until(lambda: len(asked.client.items) == 2)
        await upstream.peers[0].send(b"1\r\nd\r\n0\r\n\r\n")
        assert [b"c", b"d", END] == (await asked.over()).items[1:]
        assert [b"a", b"b", b"c"] == straight
        assert 1 == asked.client.asked_for_straight
        asked.pools.close()


# Upgrades


async def test_an_upgrade() -> None:
    """From the 101 on bytes go both ways, without a time limit, until one side leaves."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        await peer.send((await peer.reader.readexactly(4))[::-1])
        await go_on.wait()
        peer.close()

    go_on = asyncio.Event()
    request = treq(method=b"GET", content=b"", headers=http.Headers([(b"Connection", b"upgrade"), (b"Upgrade", b"websocket")]))
    async with Upstream(serve) as upstream:
        policy = Policy(upstream.destination(), request=request)
        policy.holds = Hold.WHOLE
        asked = Asked(policy)
        await asked.client.until(lambda: asked.client.items)
        assert (101, True, None) == (asked.client.status, asked.request.upgraded, asked.request.deadline)
        asked.client.is_full = True
        asked.request.send_upgraded(b"ping")
        await asked.client.until(lambda: asked.client.body == b"firstgnip")
        asked.client.read()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asked.request.deadline is None
        go_on.set()
        client = await asked.over()
        assert client.failure is None
        asked.request.send_upgraded(b"too late")
        assert not asked.pools.of(upstream.destination()).idle


# The client leaves


@pytest.mark.parametrize("moment", ["connecting", "waiting", "uploading", "holding", "probing", "passing", "upload stalls"])
async def test_the_client_leaves(moment: str) -> None:
    """At whatever moment: upstream's connection is closed at once, and the task ends."""
    reached = asyncio.Event()

    async def serve(peer: Peer) -> None:
        if moment not in ("connecting", "upload stalls", "uploading"):
            await peer.request()
        if moment in ("holding", "passing", "probing"):
            await peer.send(STREAM + b"5\r\n")
        reached.set()
        if moment == "upload stalls":
            await asyncio.Event().wait()
        await peer.gone()

    async with Upstream(serve) as upstream:
        stalls = moment == "upload stalls"
        request = large(20 << 20) if stalls else streamed((b"content-length", b"9")) if moment == "uploading" else None
        destination = upstream.destination()._replace(tls=moment == "connecting")
        policy = Policy(destination, request=request)
        holds: dict[str, Hold | Peek] = {"holding": Hold.WHOLE, "probing": Peek(None)}
        policy.holds = holds.get(moment, Hold.NOTHING)
        asked = Asked(policy, streamed=moment == "uploading")
        await reached.wait()
        if moment in ("holding", "probing"):
            while not asked.request._held:
                await asyncio.sleep(0.001)
        if moment == "passing":
            await asked.client.until(lambda: asked.client.items)
        connection = asked.request._connection
        asked.request.cancel()
        asked.request.cancel()
        if connection:
            assert connection.why
        assert asked.task
        await asyncio.wait([asked.task])
        assert asked.client.failure is None
        if not stalls:
            await asyncio.wait_for(upstream.peers[0].served.wait(), 10)
        assert asked.client.failure is None
        assert [] == policy.failures


async def test_the_client_leaves_in_the_middle_of_a_delivery() -> None:
    """Nothing more is delivered, and nothing is kept."""
    async with answering(OK[:-1]) as upstream:
        asked = Asked(Policy(upstream.destination()))
        asked.client.on_deliver = asked.request.cancel
        assert asked.task
        await asyncio.wait([asked.task])
        await asyncio.wait_for(upstream.peers[0].served.wait(), 10)
        assert not asked.pools.of(upstream.destination()).idle


async def test_the_client_leaves_when_a_piece_is_taken() -> None:
    """Nothing more is written to the connection that is closed for it."""
    async with Upstream() as upstream:
        asked = Asked(Policy(upstream.destination(), request=streamed((b"transfer-encoding", b"chunked"))), streamed=True)
        asked.client.on_taken = asked.request.cancel
        asked.request.add(b"hello")
        asked.request.add(b"world")
        assert asked.task
        await asyncio.wait([asked.task])
        assert (0, None) == (asked.request.backlog, asked.client.failure)


async def test_time_is_over_for_a_client_that_has_left() -> None:
    """Whichever comes first is the end."""
    async with answering(OK[:-1]) as upstream:
        asked = Asked(Policy(upstream.destination()))
        await asked.client.until(lambda: asked.client.items)
        asked.request.cancel()
        asked.request.too_late()
        assert asked.task
        await asyncio.wait([asked.task])
        assert asked.client.failure is None


# Errors in the proxy itself


class CrashError(Exception):
    """An unforeseen exception."""


def crash(*_: object, **__: object) -> Any:
    raise CrashError


def crashing_holds(policy: Policy, client: Client) -> None:
    policy.holds = crash


def crashing_peek(policy: Policy, client: Client) -> None:
    peek = Peek(None)
    peek.feed = crash  # type: ignore[method-assign]
    policy.holds = peek


def crashing_client(policy: Policy, client: Client) -> None:
    client.on_deliver = crash


def crashing_head(policy: Policy, client: Client) -> None:
    policy.upstream_request = crash  # type: ignore[method-assign]


def crashing_next(policy: Policy, client: Client) -> None:
    policy.holds = Hold.FAILURE
    policy.next_attempt = crash  # type: ignore[method-assign]


@pytest.mark.parametrize("where", [crashing_holds, crashing_peek, crashing_client, crashing_head, crashing_next])
async def test_a_crash(where: Callable[[Policy, Client], None], caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, the client gets a failure, and the connection is not used again."""
    async with Upstream() as upstream:
        policy, client, pools = Policy(upstream.destination()), Client(), Pools()
        where(policy, client)
        request = UpstreamRequest(policy, client, pools, Body())
        request.start()
        await client.until(lambda: client.failure)
        assert Failure(502, "upstream_error", "The proxy failed to send this request: its log says why.") == client.failure
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "A request upstream failed in the proxy" == record.getMessage()
        pools.close()


async def test_a_crash_when_a_stream_was_held_long_enough(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer's turn is as safe as any other."""
    async with answering(STREAM) as upstream:
        policy = Policy(upstream.destination())
        policy.holds = Peek(None, seconds=0.01)
        asked = Asked(policy, on_deliver=crash)
        await asked.client.until(lambda: asked.client.failure)
        assert "CrashError" in caplog.text


async def test_a_crash_after_the_end() -> None:
    """A request that is over already has its outcome."""
    async with Upstream() as upstream:
        asked = Asked(Policy(upstream.destination()))
        await asked.over()
        asked.request.cancel()
        asked.request.received([b"x"])
        asked.request._crash(CrashError())
        asked.request.lost("gone")
        assert asked.client.failure is None
        asked.pools.close()


# Memory


@pytest.mark.parametrize("how", ["answered", "failed", "cancelled", "refused"])
async def test_what_a_request_held_is_freed(how: str, refusing: Destination) -> None:
    """At once, without the garbage collector: the client's side, the policy, the request and its body."""
    gc.collect()
    gc.disable()
    try:
        async with Upstream() as upstream:
            pools = Pools(limits=Limits(size=0))
            at: Destination | Failure = upstream.destination()
            if how == "failed":
                at = refusing
            elif how == "refused":
                at = Failure(400, "no", "no")
            asked = Asked(Policy(at), pools)
            asked.client.kept = asked.request  # type: ignore[attr-defined] # as the seam does
            if how == "cancelled":
                asked.request.cancel()
                assert asked.task
                await asyncio.wait([asked.task])
            else:
                await asked.over()
            held = [weakref.ref(each) for each in (asked.client, asked.policy, asked.request, asked.request.body)]
            del asked
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert [None] * 4 == [ref() for ref in held]
    finally:
        gc.enable()
