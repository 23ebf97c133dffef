"""Requests in HTTP/1.1 that no client library writes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from fuzz.hostile_input import NUMBER

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from fuzz.hostile_input import Input

__all__ = ["body_of", "head_of", "joined", "raw"]


def head_of(made: Input, method: bytes = b"POST", path: bytes = b"/v1/chat/completions") -> list[bytes]:
    return [
        method + b" " + path + b"?mark=" + made.mark + b" HTTP/1.1",
        b"Host: localhost",
        NUMBER + b": %d" % made.number,
        b"Authorization: Bearer " + made.key,
        b"Content-Type: application/json",
    ]


def body_of(made: Input) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [], "user": made.mark.decode()}).encode()


def joined(head: Sequence[bytes], body: bytes = b"") -> bytes:
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _sized(head: list[bytes], body: bytes) -> bytes:
    return joined([*head, b"Content-Length: %d" % len(body)], body)


def _smuggled(made: Input) -> bytes:
    return b"GET /v1/files/%b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n" % (made.hot, made.stray)


def _request_line(made: Input, chosen: random.Random) -> bytes:
    head = head_of(made)
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
    return _sized(head, body_of(made))


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
    head = head_of(made)
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
    return _sized(head, body_of(made))


def _hosts(made: Input, chosen: random.Random) -> bytes:
    head = head_of(made)
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
    return _sized(head, body_of(made))


def _framing(made: Input, chosen: random.Random) -> bytes:
    """Ambiguous framing: the proxy and Azure must not disagree about the end of a request."""
    head, body, inner = head_of(made), body_of(made), _smuggled(made)
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
    return joined([*head, *lines], sent)


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
    return _sized(head_of(made, path=path), body)


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
    head = head_of(made, path=path)
    head[4] = b"Content-Type: multipart/form-data; boundary=" + boundary
    return _sized(head, b"".join(parts) + end)


def _bytes(made: Input, chosen: random.Random) -> bytes:
    """A valid request with a few changed bytes, outside its marks."""
    data = bytearray(_sized([*head_of(made), b"X-Mine: a"], body_of(made)))
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


def raw(made: Input, chosen: random.Random) -> None:
    made.place = chosen.choices(list(_RAW1), [weight for weight, _ in _RAW1.values()])[0]
    made.places = frozenset({"headers"})
    made.data = _RAW1[made.place][1](made, chosen)
