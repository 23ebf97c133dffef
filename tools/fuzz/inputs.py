"""Generators of hostile requests. Each depends only on the seed and its number, so that a single request can be repeated.

Every request carries its number in a header, a mark that identifies it (`Input.mark`), and a hot mark inside its hostile text
(`Input.hot`). `Input.places` lists the places where the hot mark may arrive.
"""

from __future__ import annotations

import json
import random
import re
import struct
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from hpack import Encoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, RstStreamFrame

from support import hostile_requests, operations
from support.hostile_requests import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CLIENT_KEY", "CONFIGS", "CONFIGURED_KEY", "KEY_SIGN", "NUMBER", "Config", "Input", "fields_of", "make"]

NUMBER = b"x-fuzz-number"
CONFIGURED_KEY = "configured-key-27182818"
KEY_SIGN = "clients-own-key-"
"""Prefix of all client keys."""
CLIENT_KEY = KEY_SIGN + "%08d"
ROWS = [row for row in operations.rows() if row.by == "azure"]
SOCKETS = [row for row in ROWS if row.method == "WS"]
HOT = b"zh0000000hz"
EVIL = hostile_requests.MARK.encode()


class Config(NamedTuple):
    """The configuration of one mitmdump."""

    name: str
    version: str
    key: bool = False  # a key is configured
    mode: str = "azure"
    simulated: bool = False  # the upstream is the simulator
    share: int = 4


CONFIGS = (
    Config("dated, clients' keys", "2024-10-21", share=5),
    Config("v1, clients' keys", "v1", share=4),
    Config("dated, configured key", "2025-04-01-preview", key=True, share=5),
    Config("v1, configured key", "v1", key=True),
    Config("openai mode", "v1", mode="openai", share=2),
    Config("simulator", "2024-10-21", key=True, simulated=True, share=1),
)
KINDS = {
    # transport, way: weight
    ("http1", "plain"): 28,
    ("http1", "tls"): 6,
    ("http1", "connect"): 8,
    ("raw1", "plain"): 16,
    ("raw1", "connect"): 1,
    ("http2", "tls"): 22,
    ("http2", "connect"): 9,
    ("websocket", "plain"): 5,
    ("websocket", "tls"): 1,
    ("benign", "plain"): 4,
}


@dataclass(slots=True)
class Input:
    number: int
    config: Config
    transport: str
    way: str
    place: str  # of the hostile text
    places: frozenset[str]  # where the hostile text may arrive
    case: Case | None = None
    data: bytes = b""  # HTTP/1.1: all sent bytes; HTTP/2: frames, with stream identifiers from 1
    frames: bytes = b""  # sent after the upgrade
    splits: bool = False  # contains the client's own line breaks: it may become several requests
    alone: bool = False  # HTTP/2: it may end the connection and the other requests on it

    @property
    def mark(self) -> bytes:
        return b"zq%07dqz" % self.number

    @property
    def hot(self) -> bytes:
        return b"zh%07dhz" % self.number

    @property
    def key(self) -> bytes:
        return (CLIENT_KEY % self.number).encode()

    @property
    def stray(self) -> bytes:
        """A key in a wrong place. The client put it there, so the proxy need not find it."""
        return b"stray-%b" % self.hot


ATOMS: tuple[bytes, ...] = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x0c",
    b"\x1b[2J\x1b]0;",
    b"\x07",
    b"\x7f",
    "\u2028".encode(),
    "\u2029".encode(),
    b"\x85",
    "\u200b\ufeff\u202e".encode(),
    b"%",
    b"%0d%0a",
    b"%250d%250a",
    b"%c0%8d%c0%8a",
    b"%e5%98%8d%e5%98%8a",
    b"%00",
    b"%2e%2e%2f",
    b"%252e%252e%252f",
    b"%c0%ae%c0%ae%c0%af",
    b"..",
    b"../",
    b"..\\",
    b"/",
    b"//",
    b"\\",
    b";",
    b"$(",
    b"`",
    b"|",
    b"&",
    b"'",
    b'"',
    b"<",
    b">",
    b"#",
    b"?",
    b"=",
    b",",
    b":",
    b"@",
    b"*",
    b"{",
    b"}",
    b"\xff",
    b"\xed\xa0\x80",
    b"HTTP/1.1",
    b"Bearer ",
    b"api-key=",
    b"model=",
    b"A" * 300,
)
LONG = (b"A" * 20_000, b"../" * 4_000, b"%2e" * 4_000, b"\xc3\xa9" * 5_000)


def make(seed: int, number: int, configs: Sequence[Config] = CONFIGS) -> Input:
    chosen = random.Random(f"{seed}:{number}")  # noqa: S311 - no secret
    config = chosen.choices(configs, [config.share for config in configs])[0]
    transport, way = chosen.choices(list(KINDS), list(KINDS.values()))[0]
    made = Input(number, config, transport, way, "", frozenset())
    {"http1": _operation, "http2": _operation2, "raw1": _raw1, "websocket": _websocket, "benign": _benign}[transport](made, chosen)
    return made


def _text(chosen: random.Random) -> bytes:
    """Hostile text that contains the hot mark."""
    draw = chosen.random()
    if draw < 0.5:
        return chosen.choice(hostile_requests.TEXTS).replace(EVIL, HOT)
    if draw < 0.52:
        return chosen.choice(LONG) + HOT
    atoms = chosen.choices(ATOMS, k=chosen.randint(1, 4))
    atoms.insert(chosen.randint(0, len(atoms)), HOT)
    return b"".join(atoms)


# One hostile text in one place of an operation

TARGET = frozenset({"path", "query"})
_PLACES = {
    "segment": frozenset({"path"}),
    "end of path": frozenset({"path"}),
    "query value": frozenset({"query"}),
    "query name": frozenset({"query"}),
    "model in query": TARGET,
    "key in query": frozenset({"key"}),
    "api-version": frozenset({"query"}),
    "version of a deployment": frozenset({"query"}),
    "deployment": frozenset({"path", "body"}),
    "engine": frozenset({"path", "body"}),
    "method": frozenset({"method"}),
    "header value": frozenset({"header x-mine"}),
    "header name": frozenset({"header name"}),
    "content type": frozenset({"header content-type"}),
    "bearer": frozenset({"key"}),
    "api-key": frozenset({"key"}),
    "gateway's key": frozenset({"key", "header ocp-apim-subscription-key"}),
    "account": frozenset(),
    "subprotocol": frozenset({"header sec-websocket-protocol"}),
    "key in a subprotocol": frozenset({"key"}),
    "model": frozenset({"path", "body"}),
    "field name": frozenset({"body"}),
    "file name": frozenset({"body"}),
}
_OPENAI_MODE = {
    "key in query": TARGET,
    "account": frozenset({"header openai-beta", "header openai-organization"}),
    "key in a subprotocol": frozenset({"header sec-websocket-protocol"}),
}
# The number of cases of an operation is unknown before they are generated. This is a lower bound.
_CASES = 40


def _case(made: Input, chosen: random.Random) -> Case:
    row, text = chosen.choice(ROWS), _text(chosen)
    skipped = chosen.randrange(_CASES + 24)
    cases = hostile_requests.cases(row, text)
    case = next(islice(cases, skipped, None), None) or next(islice(hostile_requests.cases(row, text), skipped % _CASES, None))
    made.place, how = case.place, case.place.rpartition(" ")[2]
    place = case.place.removesuffix(f" {how}") if how in ("raw", "encoded", "doubly") else case.place
    made.places = _OPENAI_MODE.get(place, _PLACES[place]) if made.config.mode == "openai" else _PLACES[place]
    if how == "raw" and made.places & (TARGET | {"key"}):
        made.places |= TARGET  # the client itself may send `?`, `&` and `/`
    if place == "segment" and b"/engines/" in case.target:
        made.places |= {"body"}
    if b"api-key" in text:
        made.places |= {"key"}
    if "subprotocol" in place and b"," in text:
        made.places |= {"key", "header sec-websocket-protocol"}

    def put(data: bytes) -> bytes:
        return data.replace(HOT, made.hot).replace(hostile_requests.KEY.encode(), made.key)

    headers = ((NUMBER, b"%d" % made.number), *((put(name), put(value)) for name, value in case.headers))
    return Case(case.place, put(case.method), put(case.target), headers, put(case.body))


def fields_of(case: Case) -> list[tuple[bytes, bytes]]:
    """The headers in the form of HTTP/1.1."""
    length = [(b"content-length", b"%d" % len(case.body))] if case.body else []
    return [(b"host", b"localhost"), *case.headers, *length]


def _written(case: Case) -> bytes:
    lines = [case.method + b" " + case.target + b" HTTP/1.1", *(name + b": " + value for name, value in fields_of(case))]
    return b"\r\n".join(lines) + b"\r\n\r\n" + case.body


def _operation(made: Input, chosen: random.Random) -> None:
    case = made.case = _case(made, chosen)
    made.data = _written(case)
    head = b"".join(name + value for name, value in case.headers)
    if (
        re.search(rb"[\r\n \t\x0b\x0c]", case.method + case.target)
        or re.search(rb"[\r\n]", head)
        or any(not name or b":" in name or re.search(rb"[\s\0]", name) for name, _ in case.headers)
    ):
        made.transport, made.splits = "raw1", True


def _benign(made: Input, _: random.Random) -> None:
    """A valid request, which must be answered with 200, to test that the proxy still works."""
    made.place, made.places = "nowhere", frozenset({"body"})
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": made.hot.decode()}]}).encode()
    headers = ((NUMBER, b"%d" % made.number), (b"authorization", b"Bearer " + made.key), (b"content-type", b"application/json"))
    made.case = Case("nowhere", b"POST", b"/v1/chat/completions", headers, body)
    made.data = _written(made.case)


# HTTP/1.1 that no client library writes


def _head(made: Input, method: bytes = b"POST", path: bytes = b"/v1/chat/completions") -> list[bytes]:
    return [
        method + b" " + path + b"?mark=" + made.mark + b" HTTP/1.1",
        b"Host: localhost",
        NUMBER + b": %d" % made.number,
        b"Authorization: Bearer " + made.key,
        b"Content-Type: application/json",
    ]


def _body(made: Input) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [], "user": made.mark.decode()}).encode()


def _join(head: Sequence[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _sized(head: list[bytes], body: bytes) -> bytes:
    return _join([*head, b"Content-Length: %d" % len(body)], body)


def _smuggled(made: Input) -> bytes:
    return b"GET /v1/files/%b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % (made.hot, made.stray)


def _request_line(made: Input, chosen: random.Random) -> bytes:
    head = _head(made)
    target = b"/v1/chat/completions?mark=" + made.mark
    hot = made.hot
    head[0] = chosen.choice(
        (
            b"POST  %b HTTP/1.1" % target,
            b"POST\t%b\tHTTP/1.1" % target,
            b" POST %b HTTP/1.1" % target,
            b"POST %b HTTP/1.1 " % target,
            b"\r\nPOST %b HTTP/1.1" % target,
            b"POST %b http/1.1" % target,
            b"POST %b HTTP/1.0" % target,
            b"POST %b HTTP/0.9" % target,
            b"POST %b HTTP/2.0" % target,
            b"POST %b HTTP/1.1x" % target,
            b"POST %b" % target,
            b"POST %b HTTP/1.1\x0b" % target,
            b"post %b HTTP/1.1" % target,
            b"PO\x00ST %b HTTP/1.1" % target,
            b"P\xc3\x96ST %b HTTP/1.1" % target,
            b"POST:%b HTTP/1.1" % target,
            b"POST http://localhost%b HTTP/1.1" % target,
            b"POST http://api.openai.com%b HTTP/1.1" % target,
            b"POST https://api.openai.com%b HTTP/1.1" % target,
            b"POST HTTP://API.OPENAI.COM:80%b HTTP/1.1" % target,
            b"POST http://user:%b@api.openai.com%b HTTP/1.1" % (hot, target),
            b"POST http://%b.example%b HTTP/1.1" % (hot, target),
            b"POST http://api.openai.com@%b.example%b HTTP/1.1" % (hot, target),
            b"POST http://api.openai.com#%b%b HTTP/1.1" % (hot, target),
            b"POST http://api.openai.com\\@%b.example%b HTTP/1.1" % (hot, target),
            b"POST http://[::1%b HTTP/1.1" % target,
            b"POST http://api.openai.com:99999%b HTTP/1.1" % target,
            b"POST http://api.openai.com:0x50%b HTTP/1.1" % target,
            b"POST file:///etc/passwd?%b HTTP/1.1" % hot,
            b"POST gopher://api.openai.com%b HTTP/1.1" % target,
            b"POST http:%b HTTP/1.1" % target,
            b"POST http:///%b HTTP/1.1" % target,
            b"POST //%b.example%b HTTP/1.1" % (hot, target),
            b"POST ?mark=%b HTTP/1.1" % made.mark,
            b"CONNECT %b.example:443 HTTP/1.1" % hot,
            b"CONNECT 127.0.0.1:1 HTTP/1.1",
            b"CONNECT /%b HTTP/1.1" % hot,
            b"OPTIONS * HTTP/1.1",
            b"GET * HTTP/1.1",
            b"PRI * HTTP/2.0",
            b"TRACE %b HTTP/1.1" % target,
            b"",
            b"POST %b&long=%b HTTP/1.1" % (target, b"a" * 70_000),
            b"POST %b HTTP/1.1\rX-Mine: %b" % (target, hot),
        )
    )
    if head[0].startswith(b"POST //"):
        made.places |= {"path"}  # two slashes are part of a path
    return _sized(head, _body(made))


def _header_line(made: Input, chosen: random.Random) -> bytes:
    hot, own = made.hot, made.key
    line = chosen.choice(
        (
            b"X-Mine: a\r\n %b: 1" % hot,
            b"X-Mine: a\r\n\t%b" % hot,
            b"X-Mine : %b" % hot,
            b" X-Mine: %b" % hot,
            b"%b" % hot,
            b": %b" % hot,
            b"X-Mine:%b\x00" % hot,
            b"X-Mine: %b\x1b[2J" % hot,
            b"X-Mine: %b\xff\xfe" % hot,
            b"X-Mine:: %b" % hot,
            b"X Mine: %b" % hot,
            b"X-Mine: " + b"a" * 70_000 + hot,
            b"X-Mine: \xe2\x80\xa8%b" % hot,
            b"X-M\xc3\xadne: %b" % hot,
            b"X-Mine: %b\r" % hot,
            b"Host: %b.example" % hot,
            b"Host: localhost, %b" % hot,
            b"Connection: authorization, host, content-length, x-mine",
            b"Connection: x-fuzz-number, api-key",
            b"Connection: close, %b" % hot,
            b"Connection: \x01",
            b"Keep-Alive: %b" % hot,
            b"Proxy-Connection: %b" % hot,
            b"Proxy-Authorization: Basic %b" % own,
            b"TE: trailers, %b" % hot,
            b"Trailer: %b" % hot,
            b"Upgrade: %b" % hot,
            b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nConnection: Upgrade, HTTP2-Settings",
            b"Expect: 100-continue",
            b"Expect: %b" % hot,
            b"X-HTTP-Method-Override: %b" % hot,
            b"X-Forwarded-Host: %b" % hot,
            b"X-Original-URL: /%b" % hot,
            b"X-Rewrite-URL: /%b" % hot,
            b"X-Forwarded-For: 1\x002%b" % hot,
            b"Cookie: key=%b" % made.stray,
            b"Origin: %b" % hot,
            b"Origin: null",
            b"Origin: http://localhost.%b.example" % hot,
            b"Origin: http://localhost:3000",
            b"Origin: http://localhost\\%b" % hot,
            b"Origin: http://localhost%%00%b" % hot,
            b"Sec-Fetch-Site: cross-site",
            b"Access-Control-Request-Headers: %b\x0b" % hot,
            b"OpenAI-Beta: %b" % hot,
            b"Range: bytes=%b" % hot,
            b"Accept-Encoding: %b" % hot,
            b"Content-Encoding: %b" % hot,
            b"Content-Encoding: gzip",
            b"Content-Type: multipart/form-data; boundary=%b" % hot,
            b"Content-Type: application/json; charset=%b" % hot,
            b"Idempotency-Key: %b" % hot,
            b"api-key: %b" % own,
            b"api-key: %b\x00" % own,
            b"api-key: %b\r\napi-key: %b" % (own, own),
            b"Authorization: Basic %b" % own,
            b"Ocp-Apim-Subscription-Key: %b" % hot,
            b"Sec-WebSocket-Key: %b" % hot,
            b"Sec-WebSocket-Protocol: openai-insecure-api-key.%b" % own,
            b"x-fuzz-number: %d" % made.number,
            b"api-key: %b\x01" % own,
            b"api-key:  %b\t" % own,
            b"Authorization: Bearer %b\x0b" % own,
            b"Authorization : Bearer %b" % own,
            b"X-Stainless-Retry-Count: %b" % hot,
            b"x-ms-client-request-id: %b" % hot,
            *(b"X-%d: %b" % (n, hot) for n in (1,)),
            b"\r\n".join(b"X-%d: %b" % (n, hot) for n in range(300)),
        )
    )
    head = _head(made)
    match chosen.randrange(8):
        case 0:
            head.insert(1, line)
        case 1 if line.lower().startswith(b"host"):
            head[1] = line
        case 2:
            del head[1]
            head.append(line)
        case _:
            head.append(line)
    return _sized(head, _body(made))


def _hosts(made: Input, chosen: random.Random) -> bytes:
    head = _head(made)
    hot = made.hot
    head[1] = b"Host:" + chosen.choice(
        (
            b"",
            b" ",
            b" [::1",
            b" [::1]:x",
            b" localhost:",
            b" localhost:0",
            b" localhost:99999",
            b" localhost:80@%b" % hot,
            b" localhost@%b" % hot,
            b" %b@localhost" % hot,
            b" localhost/%b" % hot,
            b" localhost?%b" % hot,
            b" localhost#%b" % hot,
            b" localhost\\%b" % hot,
            b" localhost %b" % hot,
            b" localhost.",
            b" .localhost",
            b" 0",
            b" 0x7f000001",
            b" 127.1",
            b" 127.0.0.1.%b.example" % hot,
            b" api.openai.com",
            b" API.OpenAI.com.:443",
            b" api.openai.com.%b" % hot,
            b" xn--%b" % hot,
            b" \xe2\x93\x81ocalhost",
            b" a\tb",
            b" \x00",
            b" localhost\x00%b" % hot,
            b" " + b"a" * 9000,
            b" localhost\r\nHost: localhost",
            b" %b.example\r\nHost: localhost" % hot,
            b" localhost\r\nHost: %b.example" % hot,
        )
    )
    return _sized(head, _body(made))


def _framing(made: Input, chosen: random.Random) -> bytes:
    """Ambiguous framing: the proxy and Azure must not disagree about the end of a request."""
    head, body, inner = _head(made), _body(made), _smuggled(made)
    length = len(body)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (length, body)
    both = body + inner
    coding = b"Transfer-Encoding: chunked"
    lines, sent = chosen.choice(
        (
            ([b"Content-Length: %d" % length, b"Content-Length: %d" % length], body),
            ([b"Content-Length: %d" % length, b"Content-Length: %d" % len(both)], both),
            ([b"Content-Length: %d" % len(both), b"Content-Length: %d" % length], both),
            ([b"Content-Length: %d, %d" % (length, length)], body),
            ([b"Content-Length: %d, %d" % (length, len(both))], both),
            *(
                ([b"Content-Length:" + form % length], body)
                for form in (b" +%d", b" 0%d", b" %d_0", b" %d.0", b" 0x%x", b" %d\x0b", b"%d\t", b" -%d", b" \xd9\xa1%d")
            ),
            ([b"Content-Length: "], both),
            ([b"Content-Length: 9999999999999999999999"], body),
            ([b"Content-Length : %d" % length], both),
            ([b"Content-Length\x00: %d" % length], both),
            ([b"Content-Length:\r\n %d" % length], body),
            ([coding, b"Content-Length: %d" % len(both)], chunked + inner),
            ([b"Content-Length: 4", coding], chunked + inner),
            ([coding, coding], chunked),
            ([b"Transfer-Encoding: chunked, chunked"], chunked),
            ([b"Transfer-Encoding: identity"], both),
            ([b"Transfer-Encoding: chunked, identity"], chunked),
            ([b"Transfer-Encoding: gzip, chunked"], chunked),
            ([b"Transfer-Encoding: xchunked"], chunked),
            ([b"Transfer-Encoding : chunked"], chunked),
            ([b"Transfer-Encoding: chunked\x0b"], chunked),
            ([b"Transfer-Encoding:\tchunked"], chunked),
            ([b"Transfer-Encoding: CHUNKED"], chunked),
            ([b"Transfer-Encoding:\r\n chunked"], chunked),
            ([b'Transfer-Encoding: "chunked"'], chunked),
            ([b"Transfer-Encoding: chunked;q=1"], chunked),
            ([b"Transfer-Encoding: "], both),
            *(
                ([coding], form % (length, body))
                for form in (
                    b"%x;" + made.hot + b"=1\r\n%b\r\n0\r\n\r\n",
                    b'%x;a="' + made.hot + b'"\r\n%b\r\n0\r\n\r\n',
                    b"%x ;a\r\n%b\r\n0\r\n\r\n",
                    b"%x;a=\n" + made.hot + b"\r\n%b\r\n0\r\n\r\n",
                    b"0x%x\r\n%b\r\n0\r\n\r\n",
                    b"+%x\r\n%b\r\n0\r\n\r\n",
                    b"-%x\r\n%b\r\n0\r\n\r\n",
                    b" %x\r\n%b\r\n0\r\n\r\n",
                    b"%x \r\n%b\r\n0\r\n\r\n",
                    b"0000000000%x\r\n%b\r\n0\r\n\r\n",
                    b"%x\n%b\n0\n\n",
                    b"%x\r\n%bXX0\r\n\r\n",
                    b"%x\r\n%b\r\n00\r\n\r\n",
                    b"%x\r\n%b\r\n0;a\r\n\r\n",
                    b"%x\r\n%b\r\n0\r\nX-Mine: " + made.hot + b"\r\n\r\n",
                    b"%x\r\n%b\r\n0\r\nHost: " + made.hot + b"\r\nContent-Length: 5\r\napi-key: " + made.key + b"\r\n\r\n",
                    b"%x\r\n%b\r\n0\r\n bad " + made.hot + b"\r\n\r\n",
                    b"%x_0\r\n%b\r\n0\r\n\r\n",
                    b"%x;" + b"a" * 70_000 + b"\r\n%b\r\n0\r\n\r\n",
                )
            ),
            ([coding], b"FFFFFFFFFFFFFFFFFF\r\n" + body),
            ([coding], b"\r\n" + chunked),
            ([coding], b"g\r\n" + body),
            ([coding], b"3\r\nabcdef\r\n0\r\n\r\n"),
            ([b"Content-Length: %d" % len(both)], both),
            ([], both),
            ([coding], b""),
            ([b"Content-Length: %d" % (length + 10)], body),
        )
    )
    if not lines or lines == [b"Content-Length: %d" % len(both)]:
        made.places |= {"body"}
    made.splits = not lines  # bytes after a request without a body are the client's next request
    return _join([*head, *lines], sent)


def _json_body(made: Input, chosen: random.Random) -> bytes:
    hot = made.hot
    made.places = frozenset({"body", "path"})
    path = chosen.choice(
        (
            b"/v1/chat/completions",
            b"/v1/responses",
            b"/v1/embeddings",
            b"/v1/evals",
            b"/v1/images/generations",
            b"/v1/batches",
            b"/v1/realtime/client_secrets",
            b"/v1/audio/speech",
            b"/openai/deployments/d/chat/completions",
            b"/v1/completions",
        )
    )
    text = b'"%b"' % hot
    value = chosen.choice(
        (
            text,
            b'"..\\/..\\/%b"' % hot,
            b'"\\u002e\\u002e/%b"' % hot,
            b'"%b\\r\\nx: 1"' % hot,
            b'"\\u0000%b"' % hot,
            b'"\\ud800%b"' % hot,
            b'"%b\\u2028"' % hot,
            b"[%b]" % text,
            b'{"model":%b}' % text,
            b"1e999",
            b"NaN",
            b"null",
            b"true",
            b"1" * 5000,
            b"-0",
            b'"a\nb%b"' % hot,
            b'"%b\x00"' % hot,
            b'"%b\xff"' % hot,
            b'"' + b"%2e%2e%2f" * 3 + hot + b'"',
            b'"a?api-version=%b&api-key=x"' % hot,
            b'"a#%b"' % hot,
            b'"/../%b"' % hot,
            b'"\\\\..\\\\%b"' % hot,
            b'" %b "' % hot,
            b'"gpt-4o","model":"%b"' % hot,
            b'"azure/%b"' % hot,
            b'"ft:gpt-4o:%b::x"' % hot,
            b"[" * 3000 + b"]" * 3000,
            b'{"a":' * 900 + b"1" + b"}" * 900,
            b'"%b' % hot,
            b'"%b"}{' % hot,
            b'"' + b"A" * 30_000 + hot + b'"',
        )
    )
    body = chosen.choice(
        (
            b'{"model":%b,"messages":[]}',
            b'{"messages":[],"model":%b}',
            b'{"model":"gpt-4o","m\\u006fdel":%b}',
            b'{"MODEL":%b}',
            b'{"model" : %b , "stream":true}',
            b'{"session":{"model":%b}}',
            b'{"testing_criteria":[{"model":%b}],"data_source":{"model":%b}}',
            b'{"grader":{"model":%b}}',
            b'{"input":%b,"model":"gpt-4o"}',
            b'{"metadata":{%b:1},"model":"gpt-4o"}',
            b'\xef\xbb\xbf{"model":%b}',
            b'[{"model":%b}]',
            b'{"model":%b}//',
            b'{"model":"gpt-4o","api_key":%b,"api-version":%b}',
            b"%b",
            b'{"tools":[{"type":"function","function":{"name":%b}}],"model":"gpt-4o"}',
        )
    ).replace(b"%b", value)
    if chosen.random() < 0.05:
        body = body.decode("latin-1").encode(chosen.choice(("utf-16", "utf-32", "utf-16-le", "utf-7")))
    return _sized(_head(made, path=path), body)


def _form(made: Input, chosen: random.Random) -> bytes:
    hot = made.hot
    made.places = frozenset({"body", "path", "header content-type"})
    path = chosen.choice(
        (b"/v1/audio/transcriptions", b"/v1/images/edits", b"/v1/videos", b"/v1/files", b"/v1/realtime/calls", b"/v1/audio/translations")
    )
    boundary = chosen.choice(
        (b"b", b'"b"', b"b;x=%b" % hot, b'"b b"', b"%b" % hot, b"", b'"', b"b" * 300, b"b\x01", b"b\\", b"=?utf-8?q?b?=")
    )
    used = chosen.choice((boundary.strip(b'"'), b"b"))
    parts = []
    for _ in range(chosen.randint(1, 4)):
        name = chosen.choice(
            (b'"model"', b"model", b'"file"', b'"mod\\"el"', b'"%b"' % hot, b'"a\r\nX: %b"' % hot, b'"a%%0d%%0a%b"' % hot, b'"model\x00"')
        )
        more = chosen.choice(
            (
                b"",
                b'; filename="%b"' % hot,
                b"; filename*=utf-8''%%0d%%0a%b" % hot,
                b'; filename="../../%b"' % hot,
                b"; name=model",
                b"\r\n folded: %b" % hot,
            )
        )
        extra = chosen.choice(
            (
                b"",
                b"\r\nContent-Type: text/plain; charset=%b" % hot,
                b"\r\nContent-Transfer-Encoding: base64",
                b"\r\n%b" % hot,
                b"\r\n" + b"a" * 9000 + b": 1",
            )
        )
        value = chosen.choice(
            (b"gpt-4o", hot, b"../%b" % hot, b"\r\n--%b--" % used, b"\r\n--%b" % used, b"\x00%b" % hot, b"%b\r\n" % hot, b"")
        )
        parts.append(b"--%b\r\nContent-Disposition: form-data; name=%b%b%b\r\n\r\n%b\r\n" % (used, name, more, extra, value))
    end = chosen.choice((b"--%b--\r\n" % used, b"--%b--" % used, b"--%b" % used, b"", b"--%b--\r\n%b" % (used, hot)))
    head = _head(made, path=path)
    head[4] = b"Content-Type: multipart/form-data; boundary=" + boundary
    return _sized(head, b"".join(parts) + end)


def _bytes(made: Input, chosen: random.Random) -> bytes:
    """A valid request with a few changed bytes, outside its marks."""
    data = bytearray(_sized([*_head(made), b"X-Mine: a"], _body(made)))
    spans = re.compile(b"|".join((made.mark, b"\r\nAuthorization: Bearer " + made.key + b"\r\n", NUMBER + b": %d(?=\r\n)" % made.number)))
    for _ in range(chosen.randint(1, 4)):
        at = chosen.randrange(len(data))
        if any(match.start() <= at < match.end() for match in spans.finditer(data)):
            continue
        value = chosen.choice((chosen.randrange(256), *b'\r\n\0 :;,%/\\\t"\x7f\xff'))
        match chosen.randrange(4):
            case 0:
                data.insert(at, value)
            case 1:
                del data[at]
            case _:
                data[at] = value
    made.splits = True
    return bytes(data)


_RAW1: dict[str, tuple[int, Callable[[Input, random.Random], bytes]]] = {
    "request line": (4, _request_line),
    "header line": (6, _header_line),
    "host": (2, _hosts),
    "framing": (5, _framing),
    "JSON": (6, _json_body),
    "form": (4, _form),
    "changed bytes": (4, _bytes),
}


def _raw1(made: Input, chosen: random.Random) -> None:
    made.place = chosen.choices(list(_RAW1), [weight for weight, _ in _RAW1.values()])[0]
    made.places = frozenset({"headers"})
    made.data = _RAW1[made.place][1](made, chosen)


# HTTP/2, frame by frame


def _encoded(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Encode headers without the dynamic table, so that each block is independent."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode([(name, value, True) for name, value in fields], huffman=False)


def _headers(stream: int, fields: Sequence[tuple[bytes, bytes]], *flags: str, size: int = 16_000) -> list[Frame]:
    block = _encoded(fields)
    pieces = [block[start : start + size] for start in range(0, max(len(block), 1), size)]
    frames: list[Frame] = [HeadersFrame(stream, pieces[0], flags=[*flags, *(["END_HEADERS"] if len(pieces) == 1 else [])])]
    frames += [ContinuationFrame(stream, piece) for piece in pieces[1:-1]]
    if len(pieces) > 1:
        frames.append(ContinuationFrame(stream, pieces[-1], flags=["END_HEADERS"]))
    return frames


def _datas(stream: int, body: bytes) -> list[Frame]:
    pieces = [body[start : start + 16_000] for start in range(0, max(len(body), 1), 16_000)]
    return [DataFrame(stream, piece, flags=["END_STREAM"] if piece is pieces[-1] else []) for piece in pieces]


def _operation2(made: Input, chosen: random.Random) -> None:
    if chosen.random() < 0.3:
        made.alone = True
        _raw2(made, chosen)
        return
    case = made.case = _case(made, chosen)
    pseudo = [(b":method", case.method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", case.target)]
    fields = pseudo + [(name, value) for name, value in case.headers if name not in (b"connection", b"upgrade")]
    made.alone = any(
        re.search(rb"[\x00-\x20\x7f-\xff]", name + b":".join(value.split(b" "))) or name != name.lower() for name, value in fields
    )
    frames = _headers(1, fields, *([] if case.body else ["END_STREAM"])) + (_datas(1, case.body) if case.body else [])
    made.data = b"".join(frame.serialize() for frame in frames)


def _raw2(made: Input, chosen: random.Random) -> None:  # noqa: PLR0915 - a list of cases
    hot, body = made.hot, _body(made)
    target = b"/v1/chat/completions?mark=" + made.mark
    made.places = frozenset({"headers"})
    pseudo = {b":method": b"POST", b":scheme": b"https", b":authority": b"localhost", b":path": target}
    fields = [(NUMBER, b"%d" % made.number), (b"authorization", b"Bearer " + made.key), (b"content-type", b"application/json")]
    size = 16_000
    text = _text(chosen).replace(HOT, hot)
    made.place = place = chosen.choice(
        (
            "scheme",
            "authority",
            "path",
            "method",
            "unknown pseudo",
            "twice",
            "late",
            "missing",
            "upper case",
            "connection",
            "te",
            "host",
            "length",
            "trailers",
            "continuation",
            "reset",
            "value",
            "name",
            "cookies",
            "connect",
            "websocket",
            "padding",
            "key",
            "empty name",
            "many",
            "options",
        )
    )
    first = list(pseudo.items())
    match place:
        case "scheme" | "authority" | "path" | "method":
            pseudo[b":" + place.encode()] = chosen.choice((text, pseudo[b":" + place.encode()] + text, b""))
            first = list(pseudo.items())
            made.places |= {"path": {"path", "query"}, "method": {"method"}}.get(place, set())
        case "unknown pseudo":
            first.append((b":" + hot, text))
        case "twice":
            first.append(chosen.choice([(b":path", b"/v1/files/" + hot), (b":authority", hot + b".example"), (b":method", b"GET")]))
        case "late":
            fields.append(first.pop(chosen.randrange(4)))
        case "missing":
            del first[chosen.randrange(4)]
        case "upper case":
            fields.append((b"X-Mine", hot))
        case "connection":
            fields.append(
                chosen.choice(
                    [
                        (b"connection", b"keep-alive, x-mine"),
                        (b"transfer-encoding", b"chunked"),
                        (b"upgrade", hot),
                        (b"keep-alive", hot),
                        (b"proxy-connection", hot),
                    ]
                )
            )
        case "te":
            fields.append((b"te", chosen.choice([b"trailers", b"gzip", text])))
        case "host":
            fields.append((b"host", chosen.choice([b"localhost", hot + b".example", text, b""])))
        case "length":
            fields.append(
                (
                    b"content-length",
                    chosen.choice(
                        [
                            b"0",
                            b"%d" % (len(body) + 5),
                            b"-1",
                            b"+%d" % len(body),
                            b"%d" % len(body),
                            b"%d, %d" % (len(body), len(body)),
                            text,
                        ]
                    ),
                )
            )
        case "value":
            fields.append((b"x-mine", text))
        case "key":
            fields[1] = (
                fields[1][0],
                fields[1][1] + chosen.choice((b"\n", b"\r", b"\0", b" ", b"\t", b"\x7f", b"\xff", b"\r\nx: 1", b"A" * 20_000)),
            )
        case "name":
            fields.append((text, b"1"))
            made.places |= {"header name"}
        case "cookies":
            fields += [(b"cookie", made.stray), (b"cookie", text)]
        case "empty name":
            fields.append((b"", hot))
        case "many":
            fields += [(b"x-%d" % n, hot) for n in range(300)]
        case "continuation":
            size = 5
        case "options":
            first[0] = (b":method", b"OPTIONS")
            fields += [(b"origin", text), (b"access-control-request-headers", text)]
        case "connect":
            first = [
                (b":method", b"CONNECT"),
                (b":authority", chosen.choice([hot + b".example:443", b"127.0.0.1:1", b"api.openai.com:443"])),
            ]
        case "websocket":
            first = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *list(pseudo.items())[1:]]
            fields += [(b"sec-websocket-version", b"13"), (b"sec-websocket-protocol", b"realtime, " + text)]
            made.places |= {"key"}
    frames = _headers(1, first + fields, size=size)
    if place == "trailers":
        trailers = chosen.choice(
            [[(b"x-mine", text)], [(b":path", b"/" + hot)], [(b"api-key", made.stray)], [(b"content-length", b"0")], [(text, b"1")]]
        )
        frames += [DataFrame(1, body), *_headers(1, trailers, "END_STREAM")]
    elif place == "padding":
        frames += [DataFrame(1, body, flags=["PADDED", "END_STREAM"], pad_length=chosen.randrange(255))]
    elif place == "reset":
        frames += [RstStreamFrame(1, error_code=chosen.randrange(16))]
    else:
        frames += _datas(1, body)
    made.data = b"".join(frame.serialize() for frame in frames)


# WebSocket


def _frame(opcode: int, payload: bytes, *, fin: int = 0x80, rsv: int = 0, masked: bool = True, mask: bytes = b"\x11\x22\x33\x44") -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size) if size < 65536 else b"\x7f" + struct.pack("!Q", size)
    head = bytes([fin | rsv | opcode]) + bytes([length[0] | (0x80 if masked else 0)]) + length[1:]
    if not masked:
        return head + payload
    whole = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")).to_bytes(size, "big")


def _websocket(made: Input, chosen: random.Random) -> None:
    hot = made.hot
    made.place, made.places = "frames", frozenset({"frames", "header sec-websocket-protocol"})
    path = chosen.choice(
        (
            b"/v1/realtime?model=gpt-4o&",
            b"/v1/responses?",
            b"/openai/v1/realtime?model=gpt-4o&",
            b"/openai/realtime?api-version=2025-04-01-preview&deployment=d&",
        )
    )
    head = _head(made, b"GET", path.partition(b"?")[0])
    head[0] = b"GET " + path + b"mark=" + made.mark + b" HTTP/1.1"
    head.pop()
    head += [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    head.append(
        chosen.choice(
            (
                b"Sec-WebSocket-Protocol: realtime",
                b"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + made.key,
                b"Sec-WebSocket-Protocol: realtime,, %b" % hot,
                b"Sec-WebSocket-Extensions: permessage-deflate",
                b"X-Mine: a",
            )
        )
    )
    made.data = _join(head)
    event = json.dumps({"type": "session.update", "session": {"model": hot.decode(), "instructions": "\r\n\0"}}).encode()
    created = json.dumps({"type": "response.create", "model": hot.decode(), "input": "x"}).encode()
    frames = [
        chosen.choice(
            (
                _frame(1, event),
                _frame(1, created),
                _frame(1, hot),
                _frame(1, b"\xff\xfe" + hot),
                _frame(1, b"\xed\xa0\x80" + hot),
                _frame(2, b"\0\r\n" + hot),
                _frame(1, event[:9], fin=0) + _frame(0, event[9:]),
                _frame(1, event[:9], fin=0) + _frame(9, hot) + _frame(0, event[9:]),
                _frame(0, hot),
                _frame(1, hot, rsv=0x40),
                _frame(1, hot, rsv=0x30),
                _frame(3, hot),
                _frame(11, hot),
                _frame(1, hot, masked=False),
                _frame(9, hot * 20),
                _frame(9, hot),
                _frame(10, hot),
                _frame(9, hot, fin=0),
                _frame(1, hot * 7000),
                _frame(1, b""),
                _frame(2, b""),
                _frame(8, b"\x03\xe8" + hot),
                _frame(8, b"\x00"),
                _frame(8, b"\x03\xed" + hot),
                _frame(8, b"\x03\xe8\xff" + hot),
                _frame(8, b"\x27\x10"),
                b"\x81\xff" + b"\x7f" + b"\xff" * 7 + b"abcd" + hot,
                b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % hot,
                _frame(1, b"[" * 5000 + hot),
                _frame(1, b'{"type":"response.create","model":"../../%b"}' % hot),
                _frame(1, b'{"model":1,"model":"%b"' % hot),
            )
        )
        for _ in range(chosen.randint(1, 4))
    ]
    frames.append(_frame(8, b"\x03\xe8"))
    made.frames = b"".join(frames)
