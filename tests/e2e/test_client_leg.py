"""What a client does with its connection: pipelining, leaving, half-closing, reading slowly, and protocols older or newer than HTTP/1.1."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h2.errors
import h2.events
import pytest

from support.processes import MITMDUMP, PATIENCE, ROOT, SCRIPT
from support.wire import HTTP2, Peer, Upstream, connect, end, post, read_head, response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Simulator
    from conftest import Proxies

CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}).encode()
STREAM = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "stream": True}).encode()
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
MAPPER: dict[str, Any] = {"azure_openai_model_mapper": "gpt-4o=gpt-4o"}
UPGRADE = (
    post(
        b"",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        path=b"/v1/realtime?model=gpt-4o",
    )
    .replace(b"POST", b"GET")
    .replace(b"Content-Type: application/json\r\nContent-Length: 0\r\n", b"")
)
SHORTCUTS = pytest.mark.parametrize("fast", [True, False], ids=["fast path", "plain path"])
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


def with_upstream(proxy: Proxies, upstream: Upstream, **options: object) -> Any:
    return proxy(**{**MAPPER, "azure_openai_endpoint": upstream.url, **options})


def numbered(number: int) -> bytes:
    return json.dumps({"model": "gpt-4o", "user": str(number), "messages": [{"role": "user", "content": "Hello"}]}).encode()


def reset(connection: socket.socket) -> None:
    """Close it so that the other side gets a RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# -- pipelining ------------------------------------------------------------------------------------------------------------------------


@TLS
@SHORTCUTS
@pytest.mark.parametrize("count", [2, 300])
def test_pipelined_requests_are_answered_in_order(count: int, fast: bool, tls: bool, azure: Simulator, proxy: Proxies) -> None:
    """Requests that come in one write are sent upstream and answered one after the other."""
    through = proxy(**MAPPER, azure_openai_fast_path=fast)
    with connect(through, tls=tls) as client:
        client.sendall(b"".join(post(numbered(number)) for number in range(count)))
        assert [200] * count == [response(client)[0] for _ in range(count)]
    assert [str(number) for number in range(count)] == [json.loads(received.body)["user"] for received in azure.requests]


@SHORTCUTS
def test_pipelined_local_responses(fast: bool, proxy: Proxies) -> None:
    """Requests that are answered here recurse nowhere either."""
    through = proxy(**MAPPER, azure_openai_fast_path=fast)
    with connect(through) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 300)
        assert [200] * 300 == [response(client, "GET")[0] for _ in range(300)]


@SHORTCUTS
def test_a_pipelined_stream_follows(fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """A request that comes while the response before it streams waits for the end of it."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    with connect(through) as client:
        client.sendall(post(STREAM))
        azure = upstream.accept()
        azure.request()
        azure.begin_stream()
        azure.chunk(EVENT)
        read_head(client)
        client.sendall(post(CHAT))
        azure.chunk(EVENT)
        azure.chunk(b"data: [DONE]\n\n")
        azure.send(b"0\r\n\r\n")
        azure.request()
        azure.answer(b'{"second": true}')
        rest = b""
        while not rest.endswith(b'{"second": true}'):
            rest += client.recv(65536)
    assert 1 == rest.count(b"HTTP/1.1 200 OK")
    assert rest.index(b"0\r\n\r\n") < rest.index(b"HTTP/1.1 200 OK")


@TLS
@SHORTCUTS
def test_pipelined_requests_are_not_collected(fast: bool, tls: bool, upstream: Upstream, proxy: Proxies) -> None:
    """While a response waits, only the beginning of what follows its request is read; all of it is sent when the response has ended."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    before = resident(through.pid)
    large = post(b'{"model":"gpt-4o","user":"' + b"a" * (MANY // 2) + b'"}')
    with connect(through, tls=tls) as client, ThreadPoolExecutor(1) as other:
        client.sendall(post(CHAT))
        azure = upstream.accept()
        azure.request()
        client.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < len(large):
                sent += client.send(large[sent : sent + 65536])
        assert sent < MANY // 4
        assert resident(through.pid) - before < MANY // 8
        client.settimeout(PATIENCE)
        azure.answer(b'{"first": true}')
        assert 200 == response(client)[0]
        arriving = other.submit(azure.request)
        client.sendall(large[sent:])
        assert MANY // 2 < len(arriving.result(PATIENCE)[1])
        azure.answer(b'{"second": true}')
        assert b'{"second": true}' == response(client)[1]


@SHORTCUTS
def test_a_client_that_is_ahead_may_leave(fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """Its request is cancelled although nothing more is read from it."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    with connect(through) as client:
        client.sendall(post(CHAT))
        azure = upstream.accept()
        azure.request()
        client.settimeout(1)
        with suppress(TimeoutError):
            client.sendall(post(b'{"model":"gpt-4o","user":"' + b"a" * MANY + b'"}'))
        reset(client)
        assert azure.ended()


# -- HTTP/1.0 --------------------------------------------------------------------------------------------------------------------------


@TLS
@SHORTCUTS
def test_an_http_1_0_client_s_stream_ends_with_the_connection(fast: bool, tls: bool, azure: Simulator, proxy: Proxies) -> None:
    """A client of HTTP/1.0 knows no chunks."""
    through = proxy(**MAPPER, azure_openai_fast_path=fast)
    with connect(through, tls=tls) as client:
        client.sendall(post(STREAM, version=b"1.0"))
        head = read_head(client).lower()
        body = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("way", ["response", "asked to keep it", "local"])
def test_an_http_1_0_client_gets_a_length(way: str, azure: Simulator, proxy: Proxies) -> None:
    """A response that is not streamed is complete, and the connection is closed unless the client asks to keep it."""
    with connect(proxy(**MAPPER)) as client:
        if way == "response":
            client.sendall(post(CHAT, version=b"1.0"))
        else:
            client.sendall(b"GET /healthz HTTP/1.0\r\n%b\r\n" % (b"Connection: keep-alive\r\n" if "keep" in way else b""))
        status, body = response(client)
        assert 200 == status
        assert body
        if "keep" in way:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert 200 == response(client)[0]
            assert end(client)
        else:
            assert end(client)


def test_a_broken_stream_of_an_http_1_0_client(upstream: Upstream, proxy: Proxies) -> None:
    """The error event is the last thing it reads."""
    with connect(with_upstream(proxy, upstream)) as client:
        client.sendall(post(STREAM, version=b"1.0"))
        azure = upstream.accept()
        azure.request()
        azure.begin_stream()
        azure.chunk(EVENT)
        read_head(client)
        azure.socket.close()
        body = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"upstream_error" in body
    assert body.endswith(b"\n\n")


# -- the end of a connection -----------------------------------------------------------------------------------------------------------


ENDING = {
    "close": b"HTTP/1.1 200 OK\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=1\r\nContent-Length: %d\r\n",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nProxy-Connection: close\r\n",
    "old without length": b"HTTP/1.0 200 OK\r\n",
}


@SHORTCUTS
def test_the_end_of_a_connection_to_azure_ends_no_client_s(fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """A client's connection carries the next request, however the response says that Azure closes its own."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    with connect(through) as client:
        for head in ENDING.values():
            for content_type, asked, body in ((b"application/json", CHAT, b"{}"), (b"text/event-stream", STREAM, EVENT)):
                client.sendall(post(asked))
                azure = upstream.accept()
                azure.request()
                azure.send((head % len(body) if b"%d" in head else head) + b"Content-Type: %b\r\n\r\n%b" % (content_type, body))
                azure.socket.shutdown(socket.SHUT_WR)
                received = read_head(client)
                assert received.startswith(b"HTTP/1.1 200 OK\r\n")
                for name in (b"connection:", b"keep-alive:", b"x-mine:"):
                    assert name not in received.lower()
                assert body in response(client, head=received)[1]
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert 200 == response(client, "GET")[0]


@TLS
@SHORTCUTS
def test_a_client_that_half_closes_is_answered(fast: bool, tls: bool, upstream: Upstream, proxy: Proxies) -> None:
    """A client may end its sending with its request and still read the answer."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    with connect(through, tls=tls) as client:
        client.sendall(post(CHAT))
        azure = upstream.accept()
        azure.request()
        if tls:
            with socket.socket(fileno=os.dup(client.fileno())) as same:
                same.shutdown(socket.SHUT_WR)
        else:
            client.shutdown(socket.SHUT_WR)
        # The proxy has seen the end of the first client's sending when it serves a second one.
        with connect(through) as second:
            second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert 200 == response(second, "GET")[0]
        azure.answer(b'{"late": true}')
        assert b"HTTP/1.1 100 Continue\r\n\r\n" == read_head(client)  # tells the proxy of a client that is gone; any client ignores it
        assert (200, b'{"late": true}') == response(client)
        assert end(client)


@SHORTCUTS
def test_a_client_that_half_closes_reads_its_stream(fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """All of the stream arrives, then the connection is closed."""
    with connect(with_upstream(proxy, upstream, azure_openai_fast_path=fast)) as client:
        client.sendall(post(STREAM))
        client.shutdown(socket.SHUT_WR)
        azure = upstream.accept()
        azure.request()
        azure.begin_stream()
        azure.chunk(EVENT)
        read_head(client)
        for _ in range(10):
            azure.chunk(EVENT)
        azure.send(b"0\r\n\r\n")
        body = b"".join(iter(lambda: client.recv(65536), b""))
    assert 11 == body.count(EVENT)
    assert body.endswith(b"0\r\n\r\n")


@TLS
@pytest.mark.parametrize("moment", ["before the head", "in the stream", "in the upload"])
@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_that_is_gone_is_cancelled_upstream(how: str, moment: str, tls: bool, upstream: Upstream, proxy: Proxies) -> None:
    """Azure's connection is closed when the client disconnects, in every state of the request."""
    client = connect(with_upstream(proxy, upstream), tls=tls)
    if moment == "in the upload":
        client.sendall(post(STREAM)[:-10])
    else:
        client.sendall(post(STREAM))
        azure = upstream.accept()
        azure.request()
        if moment == "in the stream":
            azure.begin_stream()
            azure.chunk(EVENT)
            read_head(client)
    if how == "reset":
        reset(client)
    else:
        client.close()
    if moment == "in the upload":
        with connect(with_upstream(proxy, upstream)) as second:
            second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert 200 == response(second, "GET")[0]
        assert upstream.unasked()
        return
    if how == "close" and moment == "in the stream":
        with pytest.raises(ConnectionError):  # what it writes tells that the client does not read
            azure.chunks_without_end(EVENT)
    else:
        assert azure.ended()


BOUNDARY = b"Content-Type: multipart/form-data; boundary=b"


def large(kind: str, size: int = 12_000_000) -> bytes:
    """A request with a body of 12 MB, more than the buffers of two sockets take."""
    if kind == "JSON":
        return post(json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "a" * size}]}).encode())
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(size) + b"\r\n--b--\r\n"
    return post(body, BOUNDARY, path=b"/v1/files").replace(b"Content-Type: application/json\r\n", b"")


@TLS
@pytest.mark.parametrize(
    "how, kind", [("reset", "JSON"), ("close", "JSON"), ("reset", "file"), ("close", "file"), ("close", "part"), ("close", "expected")]
)
def test_a_client_that_leaves_a_large_body_behind(how: str, kind: str, tls: bool, proxy: Proxies) -> None:
    """A body waits for an upstream that does not read; its connection is reset when the client leaves, before it reads the rest."""
    with Upstream(receive=4096) as upstream:
        client = connect(with_upstream(proxy, upstream), tls=tls)
        request = large(kind)
        if kind == "JSON":
            client.sendall(request)
            azure = upstream.accept()
        else:
            if kind == "expected":
                request = request.replace(b"Content-Length:", b"Expect: 100-continue\r\nContent-Length:")
            client.sendall(request[:1_100_000])
            if kind == "expected":
                assert b"HTTP/1.1 100 Continue\r\n\r\n" == read_head(client)
            azure = upstream.accept()
            client.settimeout(1)
            with suppress(TimeoutError):
                for at in range(1_100_000, 1_500_000 if kind == "part" else len(request), 100_000):
                    client.sendall(request[at : at + 100_000])
        if how == "reset":
            reset(client)
        else:
            client.close()
        assert azure.reset()
        assert azure.drain() < len(request)


@TLS
def test_a_client_that_half_closes_after_its_upload(tls: bool, proxy: Proxies) -> None:
    """An upload waits for upstream, its client has ended its sending, and it reads the response."""
    with Upstream(receive=4096) as upstream, connect(with_upstream(proxy, upstream), tls=tls) as client:
        request = large("file", 5_500_000)  # the buffers of two sockets take it on most systems, and those of one do not

        def send() -> None:
            client.sendall(request)
            with socket.socket(fileno=os.dup(client.fileno())) as same:
                same.shutdown(socket.SHUT_WR)

        (sending := threading.Thread(target=send)).start()
        assert select.select([client], [], [], PATIENCE)[0]  # the proxy is finding out whether the client has disconnected
        azure = upstream.accept()
        azure.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        body = azure.request()[1]
        azure.answer(b'{"late": true}')
        sending.join()
        head = read_head(client)
        if b"100 Continue" in head:
            head = read_head(client)
        assert (200, b'{"late": true}') == response(client, head=head)
        assert body == request.partition(b"\r\n\r\n")[2]


def test_a_stream_that_is_reset_with_a_large_body(proxy: Proxies) -> None:
    """The same for a stream of HTTP/2; another stream of the connection is served."""
    with Upstream(receive=4096) as upstream, HTTP2(with_upstream(proxy, upstream)) as client:
        body = large("JSON").partition(b"\r\n\r\n")[2]
        stream = client.head()
        for at in range(0, len(body), 16384):
            piece = body[at : at + 16384]
            while client.state.local_flow_control_window(stream) < len(piece):
                client.receive()
            client.state.send_data(stream, piece, end_stream=at + 16384 >= len(body))
            client.send()
        azure = upstream.accept()
        client.state.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        client.send()
        assert azure.reset()
        assert azure.drain() < len(body)
        other = client.head(end=True, method="GET", path="/healthz")
        client.send()
        assert isinstance(client.ended(other), h2.events.StreamEnded)


@pytest.mark.parametrize("moment", ["kept", "closed by the client's wish", "bad head", "HTTP/1.0"])
def test_tls_is_ended_in_order(moment: str, azure: Simulator, proxy: Proxies) -> None:
    """A TLS connection that the proxy closes ends with close_notify, so that no client takes it for truncated."""
    with connect(proxy(**MAPPER), tls=True) as client:
        if moment == "bad head":
            client.sendall(b"\x00 what\r\n\r\n")
            response(client)
        elif moment == "HTTP/1.0":
            client.sendall(post(STREAM, version=b"1.0"))
            read_head(client)
        elif moment == "kept":
            client.sendall(post(CHAT))
            response(client)
            client.sendall(post(CHAT, b"Connection: close"))
            response(client)
        else:
            client.sendall(post(CHAT, b"Connection: close"))
            response(client)
        rest = b"".join(iter(lambda: client.recv(65536), b""))  # raises if TLS was cut
        assert bool(rest) == (moment == "HTTP/1.0")


# -- requests ---------------------------------------------------------------------------------------------------------------------------


@TLS
@SHORTCUTS
@pytest.mark.parametrize("split", [False, True], ids=["one write", "split"])
def test_trailers_of_a_request_are_dropped(split: bool, fast: bool, tls: bool, azure: Simulator, proxy: Proxies) -> None:
    """A chunked request with trailers is served without them, and the connection goes on."""
    head = post(b"", b"Transfer-Encoding: chunked", b"Trailer: x-checksum").replace(b"Content-Length: 0\r\n", b"")
    rest = b"%x\r\n%b\r\n0\r\nX-Checksum: 1\r\nAuthorization: Bearer other\r\n" % (len(CHAT), CHAT)
    with connect(proxy(**MAPPER, azure_openai_fast_path=fast), tls=tls) as client:
        for _ in range(2):
            client.sendall(head + rest)
            if split:
                client.sendall(b"\r")
                client.sendall(b"\n")
            else:
                client.sendall(b"\r\n")
            assert 200 == response(client)[0]
    assert [json.loads(CHAT)["messages"]] * 2 == [json.loads(received.body)["messages"] for received in azure.requests]
    assert not any("checksum" in name.lower() or "other" in value for received in azure.requests for name, value in received.headers)


@SHORTCUTS
def test_trailers_of_an_http2_request_are_dropped(fast: bool, azure: Simulator, proxy: Proxies) -> None:
    """The request is served without them, and the connection goes on."""
    with HTTP2(proxy(**MAPPER, azure_openai_fast_path=fast)) as client:
        for _ in range(2):
            stream = client.head()
            client.state.send_data(stream, CHAT)
            client.state.send_headers(stream, [("x-checksum", "1"), ("authorization", "Bearer other")], end_stream=True)
            client.send()
            assert isinstance(client.ended(stream), h2.events.StreamEnded)
            assert b"chat.completion" in client.body(stream)
    assert 2 == len(azure.requests)
    assert not any("checksum" in name.lower() or "other" in value for received in azure.requests for name, value in received.headers)


# -- HTTP/2 ----------------------------------------------------------------------------------------------------------------------------


@SHORTCUTS
def test_a_stream_that_is_reset_with_its_request(fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """A request that is cancelled in the write that brings it is not left running upstream."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    with HTTP2(through) as client:
        for _ in range(20):
            stream = client.post(CHAT)
            client.state.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            client.send()
        last = client.post(CHAT)
        client.send()
        azure = upstream.accept()
        while b"POST" not in (azure.socket.recv(4, socket.MSG_PEEK) or b""):
            azure = upstream.accept()
        azure.request()
        azure.answer()
        assert isinstance(client.ended(last), h2.events.StreamEnded)


@SHORTCUTS
def test_quick_resets_leave_nothing(fast: bool, azure: Simulator, proxy: Proxies) -> None:
    """500 requests that are reset at once are not sent upstream, and keep no file descriptor."""
    through = proxy(**MAPPER, azure_openai_fast_path=fast)
    with HTTP2(through) as client:
        first = client.post(CHAT)
        client.send()
        client.ended(first)
        before = descriptors(through.pid)
        for _ in range(500):
            stream = client.post(CHAT)
            client.state.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        client.send()
        last = client.post(CHAT)
        client.send()
        assert isinstance(client.ended(last), h2.events.StreamEnded)
        for received in azure.requests:
            received.done.wait()
        assert len(azure.requests) < 50  # a request and its reset may be read apart
        while descriptors(through.pid) > before + len(azure.requests):
            azure.requests[-1].done.wait()


@SHORTCUTS
@pytest.mark.parametrize("moment", ["before the head", "in the stream"])
def test_a_reset_stream_is_cancelled_upstream(moment: str, fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """Only that stream's connection is closed."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    with HTTP2(through) as client:
        first, second = client.post(STREAM), client.post(CHAT)
        client.send()
        peers = {b'"stream"' in body: peer for peer in (upstream.accept(), upstream.accept()) for _, body in [peer.request()]}
        if moment == "in the stream":
            peers[True].begin_stream()
            peers[True].chunk(EVENT)
            client.until(lambda event: isinstance(event, h2.events.DataReceived))
        client.state.reset_stream(first, h2.errors.ErrorCodes.CANCEL)
        client.send()
        assert peers[True].ended()
        peers[False].answer()
        assert isinstance(client.ended(second), h2.events.StreamEnded)


@SHORTCUTS
def test_a_broken_stream_s_event_comes_before_its_reset(fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """An HTTP/2 client reads the error event, then its stream is reset."""
    with HTTP2(with_upstream(proxy, upstream, azure_openai_fast_path=fast)) as client:
        stream = client.post(STREAM)
        client.send()
        azure = upstream.accept()
        azure.request()
        azure.begin_stream()
        azure.chunk(EVENT)
        client.until(lambda event: isinstance(event, h2.events.DataReceived))
        azure.socket.close()
        assert isinstance(client.ended(stream), h2.events.StreamReset)
        assert b"upstream_error" in client.body(stream)
        kinds = [type(event) for event in client.of(stream)]
        assert h2.events.DataReceived is kinds[-2] or h2.events.WindowUpdated is kinds[-2]


def test_a_broken_stream_s_event_waits_for_the_window(upstream: Upstream, proxy: Proxies) -> None:
    """A client whose window is full gets the event when it has opened its window, then the reset; its other streams continue meanwhile."""
    with HTTP2(with_upstream(proxy, upstream), window=len(EVENT), greedy=False) as client:
        stream = client.post(STREAM)
        client.send()
        azure = upstream.accept()
        azure.request()
        azure.begin_stream()
        azure.chunk(EVENT)
        client.until(lambda event: isinstance(event, h2.events.DataReceived))
        azure.chunk(EVENT)
        azure.socket.close()
        other = client.head(end=True, method="GET", path="/healthz")
        client.send()
        client.until(lambda event: isinstance(event, h2.events.ResponseReceived) and event.stream_id == other)
        assert EVENT == client.body(stream)
        client.state.increment_flow_control_window(10_000, stream)
        client.send()
        assert isinstance(client.ended(stream), h2.events.StreamReset)
        body = client.body(stream)
        assert body.startswith(EVENT + EVENT)
        assert b"upstream_error" in body


@SHORTCUTS
@pytest.mark.parametrize("window", [100, 65535])
def test_streams_of_one_http2_connection(window: int, fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """Each gets all its events in order, whatever the size of parts and windows is, and no byte of another stream."""
    large = EVENT.replace(b"a", b"b" * 20_000)
    with HTTP2(with_upstream(proxy, upstream, azure_openai_fast_path=fast), window=window) as client:
        streams = [client.post(STREAM) for _ in range(3)]
        client.send()
        peers = [upstream.accept() for _ in streams]
        for peer in peers:
            peer.request()
            peer.begin_stream()
        sent = dict.fromkeys(range(len(peers)), b"")
        for turn in range(20):
            for number, peer in enumerate(peers):
                event = large if turn % 10 == 5 else EVENT.replace(b'"a"', b'"%d in %d"' % (turn, number))
                peer.chunk(event)
                sent[number] += event
            if turn % 2:
                client.until(lambda event: isinstance(event, h2.events.DataReceived) and event.data)
        for peer in peers:
            peer.chunk(b"")
        assert all(isinstance(client.ended(stream), h2.events.StreamEnded) for stream in streams)
        assert set(sent.values()) == {client.body(stream) for stream in streams}


# -- back-pressure ---------------------------------------------------------------------------------------------------------------------

MANY = 100_000_000
"""Bytes that a reader who is slow does not take."""


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def written(peer: Peer, piece: bytes, most: int) -> int:
    """How much of an endless stream the proxy takes before it stops reading."""
    total = 0
    peer.socket.settimeout(1)
    try:
        while total < most:
            peer.chunk(piece)
            total += len(piece)
    except TimeoutError:
        pass
    return total


@SHORTCUTS
@pytest.mark.parametrize("way", ["HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2"])
def test_a_client_that_does_not_read_stops_upstream(way: str, fast: bool, upstream: Upstream, proxy: Proxies) -> None:
    """No more of a stream is read from Azure than a bounded amount."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    before = resident(through.pid)
    with HTTP2(through, greedy=False) if way == "HTTP/2" else connect(through, tls="TLS" in way, receive=4096) as client:
        if isinstance(client, HTTP2):
            client.post(STREAM)
            client.send()
        else:
            client.sendall(post(STREAM))
        azure = upstream.accept()
        azure.request()
        azure.begin_stream()
        assert written(azure, EVENT * 1000, MANY) < MANY // 4
        assert resident(through.pid) - before < MANY // 4


@SHORTCUTS
@pytest.mark.parametrize("way", ["HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2"])
def test_a_slow_client_is_no_silent_upstream(way: str, fast: bool, proxy: Proxies) -> None:
    """The time-out between chunks ends a stream of which Azure sends nothing more, and none that waits for its client."""
    with Upstream() as upstream:
        through = with_upstream(proxy, upstream, azure_openai_fast_path=fast, azure_openai_chunk_timeout=4)
        with HTTP2(through, greedy=False) if way == "HTTP/2" else connect(through, tls="TLS" in way, receive=4096) as client:
            if isinstance(client, HTTP2):
                stream = client.post(STREAM)
                client.send()
            else:
                client.sendall(post(STREAM))
            slow = upstream.accept()
            slow.request()
            slow.begin_stream()
            sent = written(slow, EVENT * 1000, MANY)
            with connect(through) as other:  # its time begins after the first client stopped reading, and ends
                other.sendall(post(STREAM))
                silent = upstream.accept()
                silent.request()
                silent.begin_stream()
                silent.chunk(EVENT)
                assert b"upstream_timeout" in b"".join(iter(lambda: other.recv(1 << 16), b""))
            # The chunk whose sending was interrupted cannot be completed, so the stream ends as broken off: everything arrives before.
            slow.socket.close()
            if isinstance(client, HTTP2):
                client.greedy = True
                client.state.increment_flow_control_window(1 << 28)
                client.state.increment_flow_control_window(1 << 28, stream)
                client.send()
                client.ended(stream)
                body = client.body(stream)
            else:
                body = b"".join(iter(lambda: client.recv(1 << 20), b""))
            assert sent > 0
            assert b"upstream_timeout" not in body
            assert b"upstream_error" in body


def test_an_upload_that_upstream_does_not_take_stops_only_its_stream(proxy: Proxies) -> None:
    """The client may send no more of it than its window, and the other streams of the connection are served."""
    with Upstream(receive=4096) as upstream, HTTP2(with_upstream(proxy, upstream)) as client:
        stream = client.head(path="/v1/files", content_type="multipart/form-data; boundary=b")
        client.state.send_data(stream, b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n')
        client.send()
        sent = 0
        while sent < MANY:
            if size := min(client.state.local_flow_control_window(stream), client.state.max_outbound_frame_size):
                client.state.send_data(stream, bytes(size))
                sent += size
                client.send()
            else:
                probe = client.head(end=True, method="GET", path="/healthz")
                client.send()
                client.ended(probe)
                if not client.state.local_flow_control_window(stream):
                    break
        assert sent < MANY // 4
        azure = upstream.accept()
        client.state.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        client.send()
        azure.drain()  # to the end: it is closed with the upload


# -- TCP -------------------------------------------------------------------------------------------------------------------------------


@TLS
def test_connections_of_clients_are_kept_alive(tls: bool, proxy: Proxies) -> None:
    """TCP keep-alive is enabled, so that routers in between keep the connection while Azure computes."""
    through = proxy(**MAPPER)
    with connect(through, tls=tls) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response(client, "GET")
        port = client.getsockname()[1]
        row = re.compile(rf"\s*\d+: 0100007F:{through.port:04X} 0100007F:{port:04X}")
        timer = ""
        while timer in ("", "01"):  # 01: the response is not acknowledged yet
            timer = next(line.split()[5][:2] for line in Path("/proc/net/tcp").read_text().splitlines() if row.match(line))
    assert "02" == timer  # the keep-alive timer


def test_many_connections_at_once(proxy: Proxies) -> None:
    """600 clients that come in the same moment are all taken in by the system, while the proxy is busy."""
    through = proxy(**MAPPER)
    listening = subprocess_ss(through.port)
    assert listening >= min(socket.SOMAXCONN, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def subprocess_ss(port: int) -> int:
    """The backlog of a listening port."""
    import subprocess

    done = subprocess.run(["ss", "-ltnH", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[2])


@TLS
@SHORTCUTS
@pytest.mark.parametrize("way", ["from the client", "from Azure"])
def test_a_websocket_s_slow_reader_stops_the_other_side(way: str, fast: bool, tls: bool, upstream: Upstream, proxy: Proxies) -> None:
    """Frames that one side does not read are not collected in the proxy."""
    through = with_upstream(proxy, upstream, azure_openai_fast_path=fast)
    before = resident(through.pid)
    with connect(through, tls=tls, receive=4096) as client:
        client.sendall(UPGRADE)
        azure = upstream.accept()
        head, _ = azure.request()
        key = next(line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324 - RFC 6455
        azure.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept
        )
        assert read_head(client).startswith(b"HTTP/1.1 101")
        text = b'{"type":"x","delta":"' + b"a" * 60_000 + b'"}'
        if way == "from Azure":
            sender, frame = azure.socket, b"\x81\x7e" + len(text).to_bytes(2, "big") + text
        else:
            sender, frame = client, b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text
        sender.settimeout(1)
        sent = 0
        with suppress(TimeoutError):
            while sent < MANY:
                sender.sendall(frame)
                sent += len(frame)
        assert sent < MANY // 4
        assert resident(through.pid) - before < MANY // 2


# -- requests that are not translated ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/event-stream", "application/octet-stream"])
def test_another_host_s_response_streams(kind: str, upstream: Upstream, proxy: Proxies) -> None:
    """Its first piece reaches the client before the rest is there."""
    through = proxy(**MAPPER, azure_openai_allowed_destinations="any")
    with connect(through) as client:
        client.sendall(b"GET %b/file HTTP/1.1\r\nHost: other\r\n\r\n" % upstream.url.encode())
        other = upstream.accept()
        other.request()
        other.send(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 10\r\n\r\nhello" % kind.encode())
        read_head(client)
        assert b"hello" == client.recv(5)
        other.send(b"world")
        assert b"world" == client.recv(5)


@pytest.mark.parametrize("reads", [True, False], ids=["read", "not read"])
def test_another_host_s_download_is_not_kept(reads: bool, upstream: Upstream, proxy: Proxies) -> None:
    """Of 100 MB the proxy holds a bounded part, whether the client reads them or not."""
    through = proxy(**MAPPER, azure_openai_allowed_destinations="any")
    with connect(through, receive=0 if reads else 4096) as client:
        client.sendall(b"GET %b/file HTTP/1.1\r\nHost: other\r\n\r\n" % upstream.url.encode())
        other = upstream.accept()
        other.request()
        before = resident(through.pid)
        other.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if reads:
            read_head(client)

            def read() -> None:
                with suppress(ConnectionResetError):  # data that arrives after `shutdown`
                    while client.recv(1 << 20):
                        pass

            reader = threading.Thread(target=read)
            reader.start()
            for _ in range(MANY // 1_000_000):
                other.chunk(bytes(1_000_000))
            assert resident(through.pid) - before < MANY // 4
            client.shutdown(socket.SHUT_RDWR)
            reader.join()
        else:
            assert written(other, bytes(1_000_000), MANY) < MANY // 4
            assert resident(through.pid) - before < MANY // 4


@pytest.mark.parametrize("option", [{"modify_body": "/~s/world/earth"}, {"flow_detail": 3}])
def test_another_host_s_response_is_whole_for_who_needs_it(option: dict[str, Any], upstream: Upstream, proxy: Proxies) -> None:
    """An option of mitmproxy that changes or shows bodies has them."""
    through = proxy(**MAPPER, azure_openai_allowed_destinations="any", **option)
    with connect(through) as client:
        client.sendall(b"GET %b/file HTTP/1.1\r\nHost: other\r\n\r\n" % upstream.url.encode())
        other = upstream.accept()
        other.request()
        other.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhello")
        other.send(b"world")
        assert b"helloearth" if "modify_body" in option else b"helloworld" == response(client, "GET")[1]


# -- the process -----------------------------------------------------------------------------------------------------------------------


def test_a_log_that_nobody_reads_stops_nobody(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """Requests are answered while the pipe of the log is full; then the dropped lines are counted, and the process ends."""
    ours, theirs = os.pipe()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"confdir": confdir, "listen_host": "127.0.0.1", "listen_port": port, "azure_openai_endpoint": azure.http_url} | MAPPER
    command = [MITMDUMP, "-s", str(SCRIPT), *(part for name, value in options.items() for part in ("--set", f"{name}={value}"))]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.STDOUT, cwd=tmp_path, stdin=subprocess.DEVNULL)
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as log:
            while b"azure mode" not in log.readline():
                pass
            answered = 0
            with socket.create_connection(("127.0.0.1", port), 30) as client:
                for _ in range(1500):
                    client.sendall(post(CHAT, b"X-Long: " + b"a" * 100))
                    answered += response(client)[0] == 200
            assert 1500 == answered
            process.send_signal(signal.SIGINT)
            log.read()
        assert 0 == process.wait(30)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("way", ["HOME", "confdir", "HOME of mitmdump"])
def test_a_folder_that_cannot_be_written(way: str, tmp_path: Path) -> None:
    """One line says what to set; with the script, after the line in which mitmproxy names the script."""
    (tmp_path / "file").touch()
    command = [
        sys.executable,
        "-c",
        "import sys; from azure_openai_proxy.cli.command import main; sys.exit(main())",
        *(["--set", f"confdir={tmp_path}/file/x"] if way == "confdir" else []),
    ]
    if way == "HOME of mitmdump":
        command = [MITMDUMP, "-s", str(SCRIPT), "--set", "listen_port=0"]
    env = {
        "HOME": str(tmp_path) if way == "confdir" else str(tmp_path / "file"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT / "addon"),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert 1 == done.returncode
    assert ([] if way != "HOME of mitmdump" else [f"Loading script {SCRIPT}"]) == [line[15:] for line in done.stdout.splitlines()]
    assert 1 == done.stderr.count("\n")
    assert "confdir" in done.stderr
