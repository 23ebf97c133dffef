"""Connections to Azure, with real sockets: shared by all clients, and their failures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived

from azure_simulator import tls as certificates
from support.processes import MITMDUMP, PATIENCE, RECORDER, SCRIPT, Mitmdump, only_http2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "fine"}}],
    }
).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"fine"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Backend:
    """A server in threads, on loopback: `serve` gets each connection, and how many there were before it."""

    def __init__(self, serve: Callable[[socket.socket, int], None], tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.serve, self.tls = serve, tls
        self.requests: list[bytes] = []
        self.resumed: list[bool | None] = []
        self.protocols: list[str | None] = []
        self.accepted = 0
        self.reached = threading.Event()
        """A connection was accepted, and its TLS handshake is over."""
        self._open: list[socket.socket] = []
        self._listening = socket.create_server((host, 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listening, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(sock)
            before = self.accepted
            self.accepted += 1  # before the thread: a test may read it as soon as it has the response
            threading.Thread(target=self._serve, args=(sock, before), daemon=True).start()

    def _serve(self, sock: socket.socket, before: int) -> None:
        with suppress(OSError, ValueError):
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                self._open.append(sock)
                try:
                    try:
                        sock.do_handshake()
                    finally:
                        self.reached.set()
                    self.resumed.append(sock.session_reused)
                    self.protocols.append(sock.selected_alpn_protocol())
                    self.serve(sock, before)
                except ssl.SSLError:  # an alert needs time to arrive
                    socket.socket.shutdown(sock, socket.SHUT_WR)
                    while socket.socket.recv(sock, 65536):
                        pass
            else:
                self.reached.set()
                self.serve(sock, before)
        sock.close()

    def read(self, sock: socket.socket) -> bytes:
        """The next request, whole; ValueError: there is none."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more(sock)
        head, _, body = data.partition(b"\r\n\r\n")
        if length := re.search(rb"(?i)\r\ncontent-length: (\d+)", head):
            while len(body) < int(length[1]):
                body += self._more(sock)
        self.requests.append(head)
        return head

    @staticmethod
    def _more(sock: socket.socket) -> bytes:
        data = sock.recv(1 << 16)
        if not data:
            raise ValueError
        return data


def answering(*answers: bytes, tls: ssl.SSLContext | None = None) -> Backend:
    """Every request on a connection gets the next of these answers, the last one for ever."""

    def serve(sock: socket.socket, before: int) -> None:
        left = list(answers)
        while True:
            backend.read(sock)
            sock.sendall(left.pop(0) if len(left) > 1 else left[0])

    backend = Backend(serve, tls)
    return backend


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    return certificates.make(tmp_path, ["127.0.0.1", "localhost"])


@pytest.fixture
def proxying(tmp_path: Path, confdir: Path) -> Iterator[Callable[..., Mitmdump]]:
    """A mitmdump in front of these backends, by priority; each may be a URL, or an entry of the configuration.

    It has opened its connection in advance to each `Backend`, so that the first request does not open another meanwhile.
    """
    with ExitStack() as stack:

        def start(*backends: Backend | str | dict[str, Any], hosts: dict[str, list[str] | None] | None = None, **more: Any) -> Mitmdump:
            entries = []
            for number, backend in enumerate(backends):
                given = backend if isinstance(backend, dict) else {"endpoint": backend.url() if isinstance(backend, Backend) else backend}
                entries.append({"name": "abc"[number], "token": "key", "priority": number} | given)
            home = tmp_path / "home"
            home.mkdir()
            (home / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))  # JSON is YAML
            scripts = (SCRIPT, RECORDER / "hosts.py") if hosts is not None else (SCRIPT,)
            env = {"HOSTS": json.dumps(hosts)} if hosts is not None else {}
            given = {"scripts": scripts, "env": env | more.pop("env", {}), "command": more.pop("command", (MITMDUMP,))}
            started = stack.enter_context(Mitmdump(home, confdir, options=more, **given))
            for backend in backends:
                assert not isinstance(backend, Backend) or backend.reached.wait(PATIENCE)
            return started

        yield start


@contextmanager
def client(proxy: Mitmdump, *, h2: bool = False) -> Iterator[httpx.Client]:
    with httpx.Client(timeout=PATIENCE, trust_env=False, headers={"authorization": "Bearer mine"}, **how(proxy, h2=h2)) as opened:
        yield opened


def how(proxy: Mitmdump, *, h2: bool) -> dict[str, Any]:
    if h2:
        return {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True}
    return {"base_url": proxy.url}


def ask(http: httpx.Client, **more: object) -> httpx.Response:
    return http.post("/v1/chat/completions", json=CHAT | more)


both = pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])


# Shared connections


@both
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_clients_share_connections(h2: bool, secure: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]) -> None:
    """Thirty new client connections, one after the other, take one connection upstream, of HTTP/1.1."""
    ca, context = tls
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.num_tickets = 0  # tickets that arrive with the first request look like a connection that was closed while idle
    with answering(OK, tls=context if secure else None) as backend:
        proxy = proxying(backend, ssl_verify_upstream_trusted_ca=ca)
        for _ in range(30):
            with client(proxy, h2=h2) as http:
                assert 200 == ask(http).status_code
        assert (30, 1) == (len(backend.requests), backend.accepted)
        assert ["http/1.1"] * secure == backend.protocols


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "plain path"])
def test_many_new_clients_at_once(fast: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]) -> None:
    """400 client connections of one request each, 16 at a time, take few more upstream than requests at a time."""
    ca, context = tls
    with answering(OK, tls=context) as backend:
        proxy = proxying(backend, ssl_verify_upstream_trusted_ca=ca, azure_openai_fast_path=fast)

        def one(_: int) -> int:
            with client(proxy) as http:
                return ask(http).status_code

        with ThreadPoolExecutor(16) as threads:
            assert [200] * 400 == list(threads.map(one, range(400)))
        assert 400 == len(backend.requests)
        assert backend.accepted <= 20


@both
def test_tls_sessions_are_resumed(h2: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]) -> None:
    """An upstream that closes after each response gets a whole handshake once.

    A second one if a ticket arrives in the moment of the first request: that looks like the end of the connection, which is then not used.
    """
    ca, context = tls
    with answering(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n", 1), tls=context) as backend:
        proxy = proxying(backend, ssl_verify_upstream_trusted_ca=ca)
        with client(proxy, h2=h2) as http:
            for _ in range(5):
                assert 200 == ask(http).status_code
        unused = len(backend.resumed) - 5
        assert unused in (0, 1)
        assert [False] * (1 + unused) + [True] * 4 == backend.resumed


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel's timers are shown on Linux only")
def test_idle_connections_are_kept_alive(proxying: Callable[..., Mitmdump]) -> None:
    """TCP asks whether an idle connection upstream is still there: Azure's balancer drops silent ones."""
    with answering(OK) as backend:
        with client(proxying(backend)) as http:
            assert 200 == ask(http).status_code
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        (timer,) = {row[5][:2] for row in rows if row[2].endswith(f":{backend.port:04X}") and row[3] == "01"}
        assert "02" == timer


@both
@pytest.mark.parametrize("closes", [False, True], ids=["kept", "closed each time"])
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read on Linux only")
def test_a_long_client_connection(h2: bool, closes: bool, proxying: Callable[..., Mitmdump]) -> None:
    """Its memory does not grow with the requests that it has carried, 100 kB each, whether upstream keeps its connections or not."""

    def memory() -> int:
        return int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with answering(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n", 1) if closes else OK) as backend:
        proxy = proxying(backend)
        body = {"messages": [{"role": "user", "content": "x" * 100_000}]}
        with client(proxy, h2=h2) as http:
            for number in range(600):
                if number == 200:
                    before = memory()
                assert 200 == ask(http, **body).status_code
            assert memory() - before < 4 << 20  # kept bodies would be 40 MB
        assert (600 if closes else 1) == backend.accepted


# Addresses


@contextmanager
def black_hole(port: int) -> Iterator[str]:
    """An address whose listener takes no connection: its backlog is full, so that the kernel drops every SYN."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.2", port))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.2", port))
        yield "127.0.0.2"


@both
@pytest.mark.parametrize("first", ["silent", "refused"])
def test_the_first_address_is_dead(h2: bool, first: str, proxying: Callable[..., Mitmdump]) -> None:
    """A backend's other address is tried beside it; the request is served."""
    with answering(OK) as backend, black_hole(backend.port) as hole:
        dead = hole if first == "silent" else "127.0.0.3"
        proxy = proxying(backend.url("azure.example"), hosts={"azure.example": [dead, "127.0.0.1"]})
        with client(proxy, h2=h2) as http:
            assert 200 == ask(http).status_code
        # The connection opened in advance tries both too, at the same time if the first address is silent.
        assert [f"{dead}:{backend.port}", f"127.0.0.1:{backend.port}"] == list(dict.fromkeys(proxy.connections))


class Streams:
    """Many requests on one HTTP/2 connection; httpx waits with some until others are answered."""

    def __init__(self, proxy: Mitmdump) -> None:
        self.port, self.context = proxy.port, ssl.create_default_context(cafile=proxy.ca)
        self.context.set_alpn_protocols(["h2"])
        self.http = H2Connection(H2Configuration(client_side=True))
        self.statuses: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("localhost", self.port, ssl=self.context)
        self.http.initiate_connection()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    def ask(self, body: dict[str, Any]) -> int:
        stream, content = self.http.get_next_available_stream_id(), json.dumps(body).encode()
        head = {":method": "POST", ":scheme": "https", ":authority": "localhost", ":path": "/v1/chat/completions"}
        self.http.send_headers(stream, [*head.items(), ("content-type", "application/json"), ("authorization", "Bearer mine")])
        self.http.send_data(stream, content, end_stream=True)
        self.writer.write(self.http.data_to_send())
        return stream

    async def until(self, there: Callable[[], bool]) -> None:
        while not there():
            for event in self.http.receive_data(await self.reader.read(65535)):
                if isinstance(event, ResponseReceived):
                    self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
            self.writer.write(self.http.data_to_send())


async def test_the_name_of_one_backend_holds_up_no_other(proxying: Callable[..., Mitmdump]) -> None:
    """Forty requests wait for a look-up that never ends; one to a backend whose name is known is answered, on their connection too."""
    with answering(OK) as backend:
        slow = {"endpoint": "http://slow.example", "models": ["slow"]}
        proxy = proxying(
            slow,
            {"endpoint": backend.url("azure.example"), "models": ["gpt-4o"]},
            hosts={"slow.example": None, "azure.example": ["127.0.0.1"]},
            azure_openai_connect_timeout=PATIENCE,
        )
        async with asyncio.timeout(PATIENCE), Streams(proxy) as streams:
            for _ in range(40):
                streams.ask(CHAT | {"model": "slow"})
            while "looks up slow.example" not in proxy.records:
                await asyncio.sleep(0.01)
            stream = streams.ask(CHAT)
            await streams.until(lambda: bool(streams.statuses))
            with client(proxy) as http:
                assert 200 == (await asyncio.to_thread(ask, http)).status_code
        assert {stream: 200} == streams.statuses


# HTTP/1.1 upstream


@both
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_informational_responses(
    status: str, secure: bool, h2: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]
) -> None:
    """They are dropped, before an answer and before a stream; nothing of a body is logged."""
    informational = b"HTTP/1.1 %b\r\nLink: </a>\r\n\r\n" % status.encode()
    tls[1].num_tickets = 0  # tickets that arrive with the first request look like a connection that was closed while idle
    stream = STREAM + chunk(EVENT) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    with answering(informational + OK, informational * 2 + stream, tls=tls[1] if secure else None) as backend:
        proxy = proxying(backend, ssl_verify_upstream_trusted_ca=tls[0])
        with client(proxy, h2=h2) as http:
            assert "fine" == ask(http).json()["choices"][0]["message"]["content"]
            assert "fine" in ask(http, stream=True).text
        assert 1 == backend.accepted
        assert not [line for line in proxy.records if "fine" in line]


@both
def test_trailers(h2: bool, proxying: Callable[..., Mitmdump]) -> None:
    """A response with trailers ends, and its connection carries the next one."""
    trailers = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunk(ANSWER)
        + b"0\r\nX-Check: 1\r\n\r\n"
    )
    stream = STREAM + chunk(EVENT) + chunk(b"data: [DONE]\n\n") + b"0\r\nX-Check: 1\r\n\r\n"
    with answering(trailers, stream, OK) as backend, client(proxying(backend), h2=h2) as http:
        assert 200 == ask(http).status_code
        assert "[DONE]" in ask(http, stream=True).text
        assert 200 == ask(http).status_code
        assert 1 == backend.accepted


# TLS upstream


@both
@pytest.mark.parametrize("others", [False, True], ids=["alone", "of two"])
def test_a_client_certificate_is_wanted(
    h2: bool, others: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]
) -> None:
    """A TLS 1.3 server says so after the handshake: the client gets 502 with the alert's name, or another backend's answer."""
    ca, context = tls
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with answering(OK, tls=context) as wants, answering(OK) as other:
        proxy = proxying(wants, *([other] if others else []), ssl_verify_upstream_trusted_ca=ca)
        with client(proxy, h2=h2) as http:
            answer = ask(http)
        if others:
            assert (200, 1) == (answer.status_code, len(other.requests))
        else:
            assert (502, "upstream_unreachable") == (answer.status_code, answer.json()["error"]["code"])
            assert "alert certificate required" in answer.json()["error"]["message"]
        assert [] == wants.requests


def speaking_tls(context: ssl.SSLContext, then: Callable[[Callable[[bytes], None], Callable[[], None]], None]) -> Backend:
    """A server that can send a real fatal alert at any time. `then` gets two functions after each request: send data, send the alert."""

    def serve(sock: socket.socket, before: int) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)

        def until[T](step: Callable[[], T]) -> T:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(Backend._more(sock))
                finally:
                    sock.sendall(outgoing.read())

        def send(data: bytes) -> None:
            tls.write(data)
            sock.sendall(outgoing.read())

        def alert() -> None:
            incoming.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record with a wrong signature
            with suppress(ssl.SSLError):
                tls.read(1)
            sock.sendall(outgoing.read())

        until(tls.do_handshake)
        while True:
            data = b""
            while not data.endswith(b"}"):
                data += until(lambda: tls.read(1 << 16))
            backend.requests.append(data)
            then(send, alert)

    backend = Backend(serve)
    return backend


@both
@pytest.mark.parametrize("others", [False, True], ids=["alone", "of two"])
@pytest.mark.parametrize("reused", [False, True], ids=["new", "reused"])
def test_a_fatal_alert_before_the_response(
    reused: bool, others: bool, h2: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]
) -> None:
    """The client gets 502 with the alert's name, or another backend's answer; a reused connection may have been closed before."""
    ca, context = tls

    def then(send: Callable[[bytes], None], alert: Callable[[], None]) -> None:
        if reused and len(alerting.requests) == 1:
            send(OK)
        else:
            alert()

    alerting = speaking_tls(context, then)
    with alerting, answering(OK) as other:
        first = {"endpoint": f"https://127.0.0.1:{alerting.port}"}
        proxy = proxying(first, *([other] if others else []), ssl_verify_upstream_trusted_ca=ca)
        with client(proxy, h2=h2) as http:
            if reused:
                assert 200 == ask(http).status_code
            answer = ask(http)
        if others:
            assert (200, 1) == (answer.status_code, len(other.requests))
        else:
            assert (502, "upstream_error") == (answer.status_code, answer.json()["error"]["code"])
            assert "alert bad record mac" in answer.json()["error"]["message"]
        assert (3 if reused else 1) == len(alerting.requests)  # a stale connection is replaced once


@both
def test_a_fatal_alert_in_a_stream(h2: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]) -> None:
    """The last event has the alert's name; nothing is sent again."""
    ca, context = tls

    def then(send: Callable[[bytes], None], alert: Callable[[], None]) -> None:
        send(STREAM + chunk(EVENT))
        arrived.wait(PATIENCE)
        alert()

    arrived = threading.Event()
    alerting = speaking_tls(context, then)
    with alerting, answering(OK) as other:
        proxy = proxying({"endpoint": f"https://127.0.0.1:{alerting.port}"}, other, ssl_verify_upstream_trusted_ca=ca)
        body = b""
        with (
            client(proxy, h2=h2) as http,
            http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response,
            suppress(httpx.RemoteProtocolError),
        ):
            for piece in response.iter_raw():
                body += piece
                if EVENT in body:
                    arrived.set()
        assert body.startswith(EVENT)
        assert b"alert bad record mac" in body
        assert (1, []) == (len(alerting.requests), other.requests)


# Health, and sending again


UPGRADE = (
    b"GET /v1/realtime?model=gpt-4o HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer mine\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
UPGRADED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"  # the example of RFC 6455
)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("end", ["close frame", "no close frame", "reset"])
def test_the_end_of_a_websocket_blames_no_backend(
    end: str, secure: bool, tls: tuple[Path, ssl.SSLContext], proxying: Callable[..., Mitmdump]
) -> None:
    """However Azure ends its connection: the next request goes to the same backend, and the proxy stays ready."""

    def serve(sock: socket.socket, before: int) -> None:
        while b"GET" != first.read(sock)[:3]:
            sock.sendall(OK)
        sock.sendall(UPGRADED + (b"\x88\x02\x03\xe8" if end == "close frame" else b"\x81\x02{}"))
        upgraded.wait(PATIENCE)
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    upgraded = threading.Event()
    first = Backend(serve, tls[1] if secure else None)
    with first, answering(OK) as second:
        proxy = proxying(first, second, ssl_verify_upstream_trusted_ca=tls[0])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as websocket:
                websocket.sendall(UPGRADE)
                assert websocket.recv(12) == b"HTTP/1.1 101"
                upgraded.set()
                received = b"".join(iter(lambda: websocket.recv(1 << 16), b""))
                assert (b"\x88\x02\x03\xe8" if end == "close frame" else b"\x03\xf3") in received  # code 1000 or 1011
        with client(proxy) as http:
            assert 200 == ask(http).status_code
            assert 200 == http.get("/readyz").status_code
        assert [] == second.requests


@both
def test_a_stale_connection_blames_no_backend(h2: bool, proxying: Callable[..., Mitmdump]) -> None:
    """A kept connection that Azure closes in the moment of the next request: the same backend answers, then and later."""

    def serve(sock: socket.socket, before: int) -> None:
        first.read(sock)
        sock.sendall(OK)
        if before == 0:
            first.read(sock)
            return
        while True:
            first.read(sock)
            sock.sendall(OK)

    first = Backend(serve)
    with first, answering(OK) as second:
        with client(proxying(first, second, azure_openai_debug_headers=True), h2=h2) as http:
            answers = [ask(http) for _ in range(4)]
        assert [(200, "a", "1")] * 4 == [
            (answer.status_code, answer.headers["x-azure-openai-proxy-backend"], answer.headers["x-azure-openai-proxy-attempts"])
            for answer in answers
        ]
        assert (2, []) == (first.accepted, second.requests)


def test_a_slow_client_blames_no_backend(proxying: Callable[..., Mitmdump]) -> None:
    """A stream whose client does not read outlives the time-out between chunks, ends well, and the same backend gets the next request."""
    stalled, silent_asked = threading.Event(), threading.Event()

    def serve(sock: socket.socket, before: int) -> None:
        first.read(sock)
        left = memoryview(STREAM + chunk(EVENT * 300_000) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        sock.settimeout(1)
        while left:
            try:
                left = left[sock.send(left) :]
            except TimeoutError:
                stalled.set()
        sock.settimeout(PATIENCE)
        while True:
            first.read(sock)
            sock.sendall(OK)

    def say_nothing(sock: socket.socket, before: int) -> None:
        silent.read(sock)
        sock.sendall(STREAM + chunk(EVENT))
        silent_asked.wait(PATIENCE)

    first, silent = Backend(serve), Backend(say_nothing)
    with first, silent, answering(OK) as other, socket.socket() as slow:
        entries = [{"endpoint": backend.url(), "models": models} for backend, models in ((first, ["gpt-4o"]), (silent, ["silent"]))]
        proxy = proxying(*entries, {"endpoint": other.url(), "models": ["gpt-4o"]}, azure_openai_chunk_timeout=4)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(PATIENCE)
        slow.connect(("127.0.0.1", proxy.port))
        body = json.dumps(CHAT | {"stream": True}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        slow.sendall(head % len(body) + body)
        assert stalled.wait(PATIENCE)
        with client(proxy) as http:
            with (
                suppress(httpx.RemoteProtocolError),
                http.stream("POST", "/v1/chat/completions", json=CHAT | {"model": "silent", "stream": True}) as late,
            ):
                assert "upstream_timeout" in "".join(late.iter_text())  # its time began after the slow client stopped reading
            silent_asked.set()
            tail = b""
            while not tail.endswith(b"0\r\n\r\n"):
                tail = (tail + slow.recv(1 << 20))[-1000:]
            assert b"[DONE]" in tail
            assert b"upstream" not in tail
            assert 200 == ask(http).status_code
        assert (2, []) == (len(first.requests), other.requests)


@both
@pytest.mark.parametrize("backends", [1, 2, 3])
def test_azure_dies_of_a_request(backends: int, h2: bool, proxying: Callable[..., Mitmdump]) -> None:
    """A new connection that ends after the request was read: sent to one other backend if there is one, and to no third."""

    def serve(sock: socket.socket, before: int) -> None:
        Backend.read(next(each for each in dying if sock.getsockname()[1] == each.port), sock)

    dying = [Backend(serve) for _ in range(min(backends, 2) if backends != 2 else 1)]
    with ExitStack() as stack:
        for each in dying:
            stack.enter_context(each)
        well = [stack.enter_context(answering(OK))] if backends > 1 else []
        with client(proxying(*dying, *well), h2=h2) as http:
            answer = ask(http)
            background = http.post("/v1/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"}) if backends == 2 else None
        if backends == 2:
            assert 200 == answer.status_code
            assert background is not None
            assert 502 == background.status_code
            assert (2, 1) == (len(dying[0].requests), len(well[0].requests))
        else:
            assert (502, "upstream_error") == (answer.status_code, answer.json()["error"]["code"])
            assert [1] * len(dying) == [len(each.requests) for each in dying]
            assert all(each.requests == [] for each in well)


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="a limit is set by a shell")
async def test_a_shortage_of_descriptors(proxying: Callable[..., Mitmdump]) -> None:
    """What the proxy lacks blames no backend, is no traceback, and ends with it: open streams end well, and new requests are served."""
    release = threading.Event()

    def serve(sock: socket.socket, before: int) -> None:
        while True:
            backend.read(sock)
            sock.sendall(STREAM + chunk(EVENT))
            release.wait()
            sock.sendall(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    backend, other = Backend(serve), answering(OK)
    command = ("/bin/sh", "-c", 'ulimit -n 100; exec "$0" "$@"', MITMDUMP)
    with backend, other:
        proxy = proxying(backend, other, command=command)
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient(timeout=PATIENCE, trust_env=False, **how(proxy, h2=True)) as http:
            opened: list[httpx.Response] = []
            refused: httpx.Response | None = None
            while refused is None:
                response = await http.send(http.build_request("POST", "/v1/chat/completions", json=CHAT | {"stream": True}), stream=True)
                if response.status_code == 200:
                    opened.append(response)
                    assert len(opened) < 100
                else:
                    refused = response
            assert (503, "proxy_shortage") == (refused.status_code, json.loads(await refused.aread())["error"]["code"])
            release.set()
            for response in opened:
                assert b"[DONE]" in await response.aread()
            assert 200 == (await http.get("/readyz")).status_code
            text = (await http.post("/v1/chat/completions", json=CHAT | {"stream": True})).text
            assert "[DONE]" in text
        assert [] == other.requests
        assert 1 == sum("Raise the limit of the process" in line for line in proxy.output)


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="a limit is set by a shell")
def test_more_clients_than_descriptors(proxying: Callable[..., Mitmdump]) -> None:
    """Clients wait to be accepted, one line is logged, and those that come later are served when the first ones have left."""
    with answering(OK) as backend, answering(OK) as other:
        command = ("/bin/sh", "-c", 'ulimit -n 100; exec "$0" "$@"', MITMDUMP)
        proxy = proxying(backend, other, command=command)
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), PATIENCE))
            proxy.wait_for_log("Raise the limit of the process")
        for _ in range(10):
            with client(proxy) as http:
                assert 200 == ask(http).status_code
                assert 200 == http.get("/readyz").status_code
        assert [] == other.requests
        assert 1 == sum("Raise the limit of the process" in line for line in proxy.output)


# Uploads


async def test_an_upload_that_stalls(proxying: Callable[..., Mitmdump]) -> None:
    """Of one HTTP/2 connection only the stream whose body upstream does not read waits; the others are served."""
    stalled, go_on = threading.Event(), threading.Event()

    def serve(sock: socket.socket, before: int) -> None:
        sock.recv(1)
        stalled.set()
        go_on.wait()
        reading.read(sock)
        sock.sendall(OK)

    reading = Backend(serve)
    with reading, answering(OK) as well:
        proxy = proxying(
            {"endpoint": reading.url(), "models": ["stalls"]},
            {"endpoint": well.url(), "models": ["gpt-4o"]},
        )
        assert await asyncio.to_thread(reading.reached.wait, PATIENCE)
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient(timeout=PATIENCE, trust_env=False, **how(proxy, h2=True)) as http:
            body = CHAT | {"model": "stalls", "messages": [{"role": "user", "content": "x" * (8 << 20)}]}
            upload = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await asyncio.to_thread(stalled.wait)
            for _ in range(5):
                assert 200 == (await http.post("/v1/chat/completions", json=CHAT)).status_code
            assert not upload.done()
            go_on.set()
            assert 200 == (await upload).status_code
        assert 1 == reading.accepted


# What the environment says


def test_a_proxy_in_the_environment_is_ignored(proxying: Callable[..., Mitmdump]) -> None:
    """It is said at the start, with the way to go through it."""
    with answering(OK) as backend:
        proxy = proxying(backend, env={"HTTPS_PROXY": "http://127.0.0.1:9"})
        with client(proxy) as http:
            assert 200 == ask(http).status_code
        proxy.wait_for_start_line("HTTPS_PROXY is set and is ignored: .*--mode upstream:")
