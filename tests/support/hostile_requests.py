"""Hostile requests, and an Azure that parses each received request strictly: for property tests and for `make fuzz`.

`cases` puts one hostile text into every place of a request that a client can write in. `Wire` stands in for Azure, answers every
request alike and keeps what came, byte for byte. `faults` lists the faults of a received request.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import ssl
import threading
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote, unquote_to_bytes

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from support.operations import Row

__all__ = ["KEY", "MARK", "PREFIX", "TEXTS", "UPGRADE", "Case", "Received", "Wire", "ask_http1", "ask_http2", "cases", "faults", "parse"]

KEY = "the-clients-key-31415926"
MARK = "x-evil-mark"
"""Stands in every hostile text: the name of a header that would be injected."""
PREFIX = "/apim/team-a"

_INJECTED = f"{MARK}: 1"
TEXTS: tuple[bytes, ...] = tuple(
    text.encode("latin-1")
    for text in (
        *(f"v{end}{_INJECTED}" for end in ("\r\n", "\n", "\r", "\0", "\x0b", "\x85", "\x1f", "\x7f", "\t", "\r\n ")),
        f"v HTTP/1.1\r\nHost: a\r\n{_INJECTED}\r\n\r\n",
        f"v\r\nContent-Length: 0\r\n\r\nPOST /{MARK} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        f"v HTTP/1.1 {MARK}",
        f"../../../../team-b/{MARK}",
        f"..\\..\\..\\{MARK}",
        f"%2e%2e/%2e%2e/%2e%2e/%2e%2e/{MARK}",
        f"%252e%252e%252f%252e%252e%252f{MARK}",
        f"..%2f..%2f..%2f..%2f{MARK}",
        f"..%5c..%5c..%5c..%5c{MARK}",
        f"..;/..;a=b/..;/{MARK}",
        f"%c0%ae%c0%ae/%c0%ae%c0%ae/{MARK}",
        f"%ef%bc%8e%ef%bc%8e/%e2%80%a5/{MARK}",
        f"./{MARK}",
        f"//{MARK}//",
        f"http://evil.example/{MARK}",
        f"@evil.example/{MARK}",
        f"?{MARK}&api-version=2024-10-21#{MARK}",
        f"&api-key={MARK}&model={MARK}",
        f"%0d%0a{_INJECTED}",
        f"%250d%250a{_INJECTED}",
        f"%00{MARK}",
        f"\xe9\xff {MARK}",
        f'"; name="model"\r\n\r\n{MARK}',
        f"--b\r\n{_INJECTED}\r\n\r\n",
        f"{{deployment}}{{path}}{MARK}",
        f"a, openai-insecure-api-key.{MARK}",
        f"{MARK}\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        f" {MARK} ",
    )
)


class Case(NamedTuple):
    """One request; `place` says where in it the hostile text stands."""

    place: str
    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = b""

    def http1(self) -> Case | None:
        """The same as HTTP/1.1 carries it: None if the text would end a line there, which would be the client's own doing."""
        line = (self.method, self.target)
        if any(re.search(rb"[\r\n \t\x0b\x0c]", part) for part in line) or any(
            re.search(rb"[\r\n]", name + value) or b":" in name for name, value in self.headers
        ):
            return None
        return self


def cases(row: Row, text: bytes) -> Iterator[Case]:
    """`row` with `text` in each place in turn. Text in a target comes as it is, percent-encoded, and percent-encoded twice."""
    method = (b"GET" if row.method == "WS" else row.method.encode()) if row.method else b"GET"
    bare, _, query = row.path.partition("?")
    plain = re.sub(r"\{[^}]*\}", "id-1", bare).encode()
    upgrade = UPGRADE if row.method == "WS" else ()
    key = (b"authorization", b"Bearer " + KEY.encode())
    forms = {"raw": text, "encoded": quote(text, safe="").encode(), "doubly": quote(quote(text, safe=""), safe="").encode()}
    named = text.decode("latin-1")
    body, kind = _body(row, "gpt-4o")
    common = (key, *kind, *upgrade)
    asked = b"model=gpt-4o" if row.model == "query" else query.encode()

    def target(path: bytes, query: bytes = asked) -> bytes:
        return path + (b"?" + query if query else b"")

    for how, form in forms.items():
        for index in range(bare.count("{")):
            at = [match.span() for match in re.finditer(r"\{[^}]*\}", bare)][index]
            before, after = (re.sub(r"\{[^}]*\}", "id-1", part).encode() for part in (bare[: at[0]], bare[at[1] :]))
            yield Case(f"segment {how}", method, target(before + form + after), common, body)
        yield Case(f"end of path {how}", method, target(plain + b"/" + form), common, body)
        yield Case(f"query value {how}", method, target(plain, b"after=" + form), common, body)
        yield Case(f"query name {how}", method, target(plain, form + b"=1"), common, body)
        yield Case(f"model in query {how}", method, target(plain, b"model=" + form), common, body)
        yield Case(f"key in query {how}", method, target(plain, b"api-key=" + form), (*kind, *upgrade), body)
        for prefix in (b"/openai", b"/openai/v1", b"/v1"):
            path = prefix + plain.removeprefix(b"/v1")
            yield Case(f"api-version {how}", method, target(path, b"api-version=" + form), common, body)
        native = b"/openai/deployments/%b" + plain.removeprefix(b"/v1")
        yield Case(f"deployment {how}", method, target(native % form, b"api-version=2024-10-21"), common, body)
        yield Case(f"version of a deployment {how}", method, target(native % b"d", b"api-version=" + form), common, body)
        yield Case(f"engine {how}", method, b"/v1/engines/%b/chat/completions" % form, common, body)
    yield Case("method", text, target(plain), common, body)
    yield Case("header value", method, target(plain), (*common, (b"x-mine", text)), body)
    yield Case("header name", method, target(plain), (*common, (text, b"1")), body)
    yield Case("content type", method, target(plain), (key, (b"content-type", b"multipart/form-data; boundary=" + text), *upgrade), body)
    yield Case("bearer", method, target(plain), ((b"authorization", b"Bearer " + text), *kind, *upgrade), body)
    yield Case("api-key", method, target(plain), ((b"api-key", text), *kind, *upgrade), body)
    yield Case("gateway's key", method, target(plain), (*common, (b"ocp-apim-subscription-key", text)), body)
    yield Case("account", method, target(plain), (*common, (b"openai-beta", text), (b"openai-organization", text)), body)
    yield Case("subprotocol", method, target(plain), (*kind, *UPGRADE, (b"sec-websocket-protocol", b"realtime, " + text)), body)
    yield Case("key in a subprotocol", method, target(plain), (*kind, *UPGRADE, (b"sec-websocket-protocol", _PROTOCOL + text)), body)
    yield Case("model", method, target(plain), common, _body(row, named)[0])
    if row.body == "multipart":
        yield Case("field name", method, target(plain), common, _form([(named, "1"), ("model", "gpt-4o")]))
        yield Case("file name", method, target(plain), common, _form([(f'file"; filename="{named}', "1"), ("model", "gpt-4o")]))


_PROTOCOL = b"realtime, openai-insecure-api-key."
UPGRADE = (
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
)


def _body(row: Row, model: str) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    if row.body == "multipart":
        return _form([("model", model), ("file", "x")]), ((b"content-type", b"multipart/form-data; boundary=b"),)
    if row.body == "json":
        return json.dumps({"model": model, "session": {"model": model}, "input": "x"}).encode(), ((b"content-type", b"application/json"),)
    return b"", ()


def _form(fields: Iterable[tuple[str, str]]) -> bytes:
    parts = (f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    return "".join(parts).encode("utf-8", "surrogateescape") + b"--b--\r\n"


# Received requests


@dataclass
class Received:
    """One request as it was on the wire."""

    line: bytes
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    broken: str = ""  # why it cannot be parsed

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


_OURS = frozenset({b"host", b"api-key", b"authorization", b"content-length", b"transfer-encoding", b"connection", b"upgrade"})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def faults(case: Case, received: Sequence[Received], host: bytes, *, key: str = KEY, prefix: str = PREFIX) -> list[str]:
    """The faults of the requests that arrived for `case`."""
    if len(received) > 1:
        return [f"{len(received)} requests for one: {received}"]
    return [fault for request in received for fault in _faults(case, request, host, key.encode(), prefix.encode())]


def _faults(case: Case, request: Received, host: bytes, key: bytes, prefix: bytes) -> Iterator[str]:
    if request.broken:
        yield request.broken
        return
    parts = request.line.split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1" or parts[0] not in (case.method, b"GET"):
        yield f"request line {request.line!r}"
        return
    path, _, query = parts[1].partition(b"?")
    if not path.startswith(prefix + b"/openai/") or not re.fullmatch(rb"[!-~]+", parts[1]) or b"#" in parts[1]:
        yield f"target {parts[1]!r}"
    text = path
    for _ in range(5):
        if re.search(rb"(^|[/\\])\.{1,2}([/\\;]|$)", text) or re.search(rb"[\x00-\x1f\x7f\\]", text):
            yield f"path {path!r} becomes {text!r}"
        text = unquote_to_bytes(text)
    if query.count(b"api-version=") - case.target.count(b"api-version=") > 1:
        yield f"query {query!r}"
    expected = _OURS | {name.lower() for name, _ in case.headers}
    for name, value in request.fields:
        if not _NAME.fullmatch(name) or name.lower() not in expected:
            yield f"header {name!r}"
        if _CONTROL.search(value):
            yield f"value {value!r} of {name!r}"
        if key in value and name.lower() not in (b"api-key", b"authorization"):
            yield f"the key in {name!r}"
    if [host] != request.values(b"host"):
        yield f"hosts {request.values(b'host')}"
    if 1 != len(request.values(b"api-key") + request.values(b"authorization")):
        yield f"keys {request.values(b'api-key') + request.values(b'authorization')}"
    if key in parts[1] or key in request.body:
        yield "the key in the target or the body"


def parse(head: bytes) -> Received:
    """A request's head, read as strictly as `Wire` reads it."""
    stream = io.BytesIO(head)
    line = stream.readline()
    request = Received(line.removesuffix(b"\r\n"))
    request.broken = read_fields(stream, request) or ("" if line.endswith(b"\r\n") and not stream.read() else f"head {head!r}")
    return request


def read_fields(stream: IO[bytes], request: Received) -> str:
    """Read headers into `request`. Return their faults."""
    while (line := stream.readline()) != b"\r\n":
        if not line.endswith(b"\r\n") or b":" not in line or line[:1] in b" \t":
            return f"header line {line!r}"
        name, _, value = line.removesuffix(b"\r\n").partition(b":")
        request.fields.append((name, value.strip(b" \t")))
    return ""


class Wire:
    """Azure: it reads HTTP/1.1 strictly, keeps each request, and answers 200 with a JSON object, or 101 to an upgrade."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received: list[Received] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.host = b"127.0.0.1:%d" % self.port
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PREFIX}"

    def take(self) -> list[Received]:
        """The requests since the last call."""
        with self._lock:
            taken, self._received = self._received, []
            return taken

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            connection.settimeout(PATIENCE)
            try:
                while line := stream.readline():
                    request = Received(line.removesuffix(b"\r\n"))
                    request.broken = self._read(stream, request) or ("" if line.endswith(b"\r\n") else f"line {line!r}")
                    with self._lock:
                        self._received.append(request)
                    connection.sendall(_answer(request))
                    if request.broken or request.values(b"upgrade"):
                        return
            except OSError:
                return

    @staticmethod
    def _read(stream: IO[bytes], request: Received) -> str:
        """Read the rest of one request. Return its faults."""
        if broken := read_fields(stream, request):
            return broken
        lengths, codings = request.values(b"content-length"), request.values(b"transfer-encoding")
        if len(lengths) + len(codings) > 1 or any(not length.isdigit() for length in lengths) or codings not in ([], [b"chunked"]):
            return f"framing {lengths} {codings}"
        if lengths:
            request.body = stream.read(int(lengths[0]))
        elif codings:
            while size := int(stream.readline(), 16):
                request.body += stream.read(size)
                stream.readline()
            stream.readline()
        return ""


def _answer(request: Received) -> bytes:
    if not request.values(b"upgrade"):
        return b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"id": "x"}'
    given = (request.values(b"sec-websocket-key") or [b""])[0] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(given).digest())  # noqa: S324 - as RFC 6455 has it
    head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept
    return head + b"\x88\x02\x03\xe8"


# Clients


def ask_http1(port: int, case: Case) -> int:
    """Send `case` on a connection of its own; the status."""
    length = [(b"content-length", b"%d" % len(case.body))] if case.body else []
    lines = [case.method + b" " + case.target + b" HTTP/1.1", b"host: localhost"]
    lines += [name + b": " + value for name, value in (*case.headers, *length)]
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as opened, opened.makefile("rb") as stream:
        opened.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + case.body)
        status = stream.readline().split()
        return int(status[1]) if len(status) > 1 else 0


def ask_http2(port: int, ca: Path, asked: Sequence[Case]) -> list[int]:
    """Send each of `asked` as a stream of one connection, one after the other; their statuses, 0 for one that was reset.

    A connection that the proxy gives up is opened again.
    """
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    statuses: list[int] = []
    while len(statuses) < len(asked):
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE) as opened,
            context.wrap_socket(opened, server_hostname="localhost") as tls,
        ):
            connection = h2.connection.H2Connection(
                h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding=None)
            )
            connection.initiate_connection()
            alive = True
            while alive and len(statuses) < len(asked):
                status, alive = _stream(tls, connection, asked[len(statuses)])
                statuses.append(status)
    return statuses


def _stream(tls: ssl.SSLSocket, connection: h2.connection.H2Connection, case: Case) -> tuple[int, bool]:
    stream = connection.get_next_available_stream_id()
    pseudo = [(b":method", case.method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", case.target)]
    fields = [(name, value) for name, value in case.headers if name not in (b"connection", b"upgrade")]
    connection.send_headers(stream, pseudo + fields, end_stream=not case.body)
    if case.body:
        connection.send_data(stream, case.body, end_stream=True)
    tls.sendall(connection.data_to_send())
    status = 0
    while data := tls.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                status = int(dict(event.headers)[b":status"])
            elif isinstance(event, h2.events.ConnectionTerminated):
                return status, False
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) and event.stream_id == stream:
                tls.sendall(connection.data_to_send())
                return status, True
        tls.sendall(connection.data_to_send())
    return status, False
