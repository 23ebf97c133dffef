"""A proxy with the patched HTTP layer in a thread, and clients that send what no client library would."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import re
import socket
import ssl
import threading
import warnings
from http.client import HTTPMessage, HTTPResponse
from typing import TYPE_CHECKING, NamedTuple, Self

import h2.config
import h2.connection
import h2.events
from mitmproxy import http
from mitmproxy.options import Options

from azure_openai_proxy.config.settings import Timeouts
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.egress.pool import Pools
from azure_openai_proxy.egress.request import UpstreamRequest
from azure_openai_proxy.egress.request_body import Body
from azure_openai_proxy.egress.tls import TlsOptions
from azure_openai_proxy.errors import Failure
from azure_openai_proxy.gateway import ingress
from azure_openai_proxy.inspection.body_store import Tap, Withheld
from azure_openai_proxy.mitmproxy_patches import install
from azure_openai_proxy.routing.decisions import GIVE_UP, Decision
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mitmproxy.proxy import layer, server_hooks

    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.egress.interface import ClientSide

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # pyparsing's, in mitmproxy's filters
    from mitmproxy.tools.dump import DumpMaster

__all__ = ["H2", "LIMIT", "MB", "SSE_HEAD", "Answer", "Client", "HttpPolicy", "Kept", "Policy", "Proxy", "Upstream", "head", "still_works"]


LIMIT = 1 << 20
MB = b"x" * LIMIT


class HttpPolicy:
    """The throw-away addon: `/up/PORT/...` goes to that port of this machine, `/echo` is answered here, `/foreign/...` is not ours."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.requests: list[http.Request] = []
        self.ready = threading.Event()
        self.fast_path = True
        self.timeouts = Timeouts()
        self.pools = Pools(tls=TlsOptions(insecure=True))

    def done(self) -> None:
        self.pools.close()

    def running(self) -> None:
        self.ready.set()

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        install.attach(nextlayer, self)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        data.server.error = None

    def request_with_keys(self, flow: http.HTTPFlow) -> http.Request | Failure:
        return Failure(400, "invalid_request", "unsendable") if "x-unsendable" in flow.request.headers else flow.request

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("requestheaders")
        flow.metadata["ours"] = not flow.request.path.startswith("/foreign")
        if to := re.match(r"(?:/foreign)?/(tls)?up/(\d+)", flow.request.path):
            flow.request.scheme = "https" if to[1] else "http"
            flow.request.host, flow.request.port = "127.0.0.1", int(to[2])
        flow.request.stream = flow.request.path.endswith("/streamed")
        if flow.request.path == "/killed":
            flow.kill()

    def request(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("request")
        self.requests.append(flow.request)
        if flow.request.path.startswith("/echo"):
            told = {
                "absolute": ingress.absolute_form(flow, records_form=install.patches_http()),
                "length": len(flow.request.content or b""),
                "host": flow.request.host_header,
                "asked": ingress.client_host(flow),
            }
            flow.response = http.Response.make(200, json.dumps(told))

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.response
        if flow.request.path == "/early/killed":
            flow.kill()
        flow.response.stream = "event-stream" in flow.response.headers.get("content-type", "")
        if flow.request.path.endswith("/withheld"):
            flow.response.stream = Withheld(Tap(None, None, 0.0), LIMIT, lambda: None)

    def response(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("response")
        if flow.response and isinstance(flow.response.stream, Withheld):
            flow.response.stream.hold(flow.response)
            flow.response.data.content = b"edited: " + (flow.response.data.content or b"")
        if flow.request.path == "/early/killed/late":
            flow.kill()

    def error(self, flow: http.HTTPFlow) -> None:
        self.hooks.append("error")
        if flow.request.path == "/killed/late":
            flow.kill()

    def max_message(self, flow: http.HTTPFlow) -> int | None:
        return self.max_body(flow)

    def early_response(self, flow: http.HTTPFlow) -> http.Response | None:
        return http.Response.make(403, b"{}") if flow.request.path.startswith("/early") else None

    def may_stream_upload(self, flow: http.HTTPFlow) -> bool:
        return "x-goes-on" in flow.request.headers

    def start_streamed_upload(self, flow: http.HTTPFlow, start: bytes) -> None:
        if flow.request.headers["x-goes-on"] == "refuse":
            flow.response = http.Response.make(401, b"{}", {"content-type": "application/json"})
        else:
            flow.request.stream = True

    def takes(self, flow: http.HTTPFlow) -> bool:
        return bool(flow.metadata.get("ours"))

    def send_upstream(self, flow: http.HTTPFlow, client: ClientSide, *, streamed: bool) -> UpstreamRequest:
        return UpstreamRequest(Policy(self, flow), client, self.pools, Body(streamed=streamed))

    def hold(self, flow: http.HTTPFlow, response: http.Response) -> Hold | Peek:
        return Hold.NOTHING

    def next_attempt(self, flow: http.HTTPFlow, failed: Failure | http.Response) -> Decision:
        return GIVE_UP

    def broke_off(self, flow: http.HTTPFlow, failure: Failure) -> None:
        """Nothing is counted here."""

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        return LIMIT if flow.metadata.get("ours") else None

    def last_event(self, failure: Failure, flow: http.HTTPFlow) -> bytes | None:
        answer = self.error_response(failure, flow)
        return b"data: %b\n\n" % answer.content if answer and answer.content else None

    def error_response(self, failure: Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        self.hooks.append("answer")
        if flow and not flow.metadata.get("ours"):
            return None
        error = {"message": failure.message, "code": failure.code}
        return http.Response.make(failure.status, json.dumps({"error": error}), {"content-type": "application/json"})


class Policy:
    """What the policy says of one request."""

    def __init__(self, policy: HttpPolicy, flow: http.HTTPFlow) -> None:
        self._policy, self._flow = policy, flow
        self.timeouts = policy.timeouts

    def upstream_request(self) -> tuple[Destination, http.Request] | Failure:
        request = self._policy.request_with_keys(self._flow)
        if isinstance(request, Failure):
            return request
        request.data.content = self._flow.request.data.content
        return Destination(request.host, request.port, request.scheme == "https"), request

    def hold(self, response: http.Response) -> Hold | Peek:
        return self._policy.hold(self._flow, response)

    def next_attempt(self, failed: Failure | http.Response) -> Decision:
        return self._policy.next_attempt(self._flow, failed)

    def broke_off(self, failure: Failure) -> None:
        self._policy.broke_off(self._flow, failure)


class Proxy:
    """A whole mitmdump in a thread."""

    def __init__(self, confdir: Path, policy: HttpPolicy, **options: object) -> None:
        self.policy = policy
        self.ca = confdir / "mitmproxy-ca-cert.pem"
        self._options = {
            "confdir": str(confdir),
            "mode": ["regular@127.0.0.1:0"],
            "connection_strategy": "lazy",
            "ssl_insecure": True,
            **options,
        }
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))

    async def _run(self) -> None:
        self._master = DumpMaster(Options(), with_termlog=False, with_dumper=False)
        self._master.options.update(**self._options)
        self._master.addons.add(self.policy)
        await self._master.run()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.policy.ready.wait(PATIENCE)
        self.port: int = self._master.addons.get("proxyserver").listen_addrs()[0][1]
        return self

    def __exit__(self, *_: object) -> None:
        closing = self._master.addons.get("proxyserver").servers.update([])
        asyncio.run_coroutine_threadsafe(closing, self._master.event_loop).result(PATIENCE)
        self._master.shutdown()
        self._thread.join()
        gc.collect()

    def dial(self, *, tls: bool = False, alpn: str | None = None) -> Client:
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        return Client(self.secure(sock, alpn) if tls else sock)

    def secure(self, sock: socket.socket, alpn: str | None = None) -> socket.socket:
        context = ssl.create_default_context(cafile=self.ca)
        if alpn:
            context.set_alpn_protocols([alpn])
        return context.wrap_socket(sock, server_hostname="localhost")


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Kept(io.BufferedReader):
    """A file that stays open when an answer has been read from it: the next one may be in its buffer."""

    def close(self) -> None:
        pass

    def makefile(self, _mode: str) -> Self:
        return self


class Client:
    """A connection to the proxy that sends the given bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(PATIENCE)
        self._raw = sock.makefile("rb", 0)
        self.file = Kept(self._raw)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()
        self.sock.close()

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.sock.sendall(part)

    def ask(self, *parts: bytes, method: str = "POST") -> Answer:
        self.send(*parts)
        return self.answer(method)

    def answer(self, method: str = "POST") -> Answer:
        response = self.begin(method)
        return Answer(response.status, response.headers, response.read())

    def begin(self, method: str = "POST") -> HTTPResponse:
        response = HTTPResponse(self.file, method=method)  # type: ignore[arg-type]
        response.begin()
        return response

    def rest(self) -> bytes:
        """Everything until the proxy closes."""
        received = b""
        with contextlib.suppress(ssl.SSLEOFError, ConnectionResetError):
            while chunk := self.file.read1():
                received += chunk
        return received

    def closed(self) -> bool:
        return self.rest() == b""


class Upstream:
    """A server that calls `serve(connection)` for every connection, after the request's head or the bytes of `until`."""

    def __init__(self, serve: Callable[[socket.socket], None], until: bytes = b"\r\n\r\n") -> None:
        self._serve = serve
        self._until = until
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.accepted = 0
        self.heads: list[bytes] = []
        self.received = threading.Semaphore(0)
        """Released once for each head."""
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                head = connection.recv(65536)
                while self._until not in head and (more := connection.recv(65536)):
                    head += more
                self.heads.append(head)
                self.received.release()
                self._serve(connection)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class H2:
    """An HTTP/2 client that checks nothing it sends."""

    def __init__(self, proxy: Proxy) -> None:
        self.client = proxy.dial(tls=True, alpn="h2")
        config = h2.config.H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False, validate_inbound_headers=False
        )
        self.conn = h2.connection.H2Connection(config)
        self.early: list[h2.events.Event] = []  # that came while a body was sent
        self.conn.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.__exit__()

    def flush(self) -> None:
        self.client.send(self.conn.data_to_send())

    def open(self, path: str, *more: tuple[str, str], scheme: str = "https", authority: str = "localhost", end: bool = True) -> int:
        stream = self.conn.get_next_available_stream_id()
        pseudo = [(":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority)]
        self.conn.send_headers(stream, [*pseudo, *more], end_stream=end)
        self.flush()
        return stream

    def body(self, stream: int, data: bytes, *, end: bool = True) -> None:
        for start in range(0, len(data), 16384):
            piece = data[start : start + 16384]
            while self.conn.local_flow_control_window(stream) < len(piece):
                self.early += self.conn.receive_data(self.client.sock.recv(65536))
            self.conn.send_data(stream, piece)
            self.flush()
        if end:
            self.conn.end_stream(stream)
            self.flush()

    def answer(self, stream: int) -> tuple[int, bytes]:
        """Status and body; -1 if the stream was reset, -2 if the connection was ended."""
        status, body = 0, b""
        while self.early or (data := self.client.sock.recv(65536)):
            came, self.early = self.early or self.conn.receive_data(data), []
            for event in came:
                if isinstance(event, h2.events.ConnectionTerminated):
                    return -2, body
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self.conn.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamReset):
                    return -1, body
                elif isinstance(event, h2.events.StreamEnded):
                    return status, body
            self.flush()
        return -2, body


def head(line: str = "POST /echo HTTP/1.1", *headers: str, host: str | None = "localhost") -> bytes:
    return "\r\n".join([line, *([f"Host: {host}"] if host else []), *headers, "", ""]).encode("latin-1")


def still_works(proxy: Proxy) -> bool:
    with proxy.dial() as client:
        return client.ask(head("GET /echo HTTP/1.1")).status == 200


# Upstream

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
