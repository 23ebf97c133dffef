"""Memory is bounded, whatever clients send."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped, unused-ignore]
import httpx
import pytest

from e2e.test_large_bodies import Memory, client
from e2e.test_websockets import bearer, dial, heard
from support.processes import PATIENCE
from support.sink import MB, Sink, pattern
from unit.formats.test_compression import zstd
from unit.mitmproxy_patches.test_websocket import bomb, frame, reason

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies

UPLOAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\ntext\r\n--b--\r\n'
JSON = {"content-type": "application/json"}


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def answer(connection: socket.socket, method: str = "POST") -> HTTPResponse:
    response = HTTPResponse(connection, method=method)
    response.begin()
    return response


@pytest.mark.parametrize(
    "line",
    [
        "POST /v1/chat/completions",
        "POST /v1/responses",
        "POST /v1/files",
        "POST /v1/audio/transcriptions",
        "POST /openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
        "POST /openai/v1/responses",
        "POST /v1/some/new/operation",
    ],
)
@pytest.mark.parametrize("framing", ["Content-Length: 4", "Transfer-Encoding: chunked"])
def test_no_body_is_read_without_a_key(line: str, framing: str, proxy: Proxies, azure: Simulator) -> None:
    """The response comes after the request's head, and the connection serves the next request."""
    body = b"more" if "Length" in framing else b"4\r\nmore\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", proxy().port), PATIENCE) as connection:
        connection.sendall(head(line, framing, "Content-Type: application/json", "Authorization: Bearer "))
        refused = answer(connection)
        assert (401, True) == (refused.status, b"invalid_api_key" in refused.read())
        connection.sendall(body + head("GET /v1/models"))
        assert 200 == answer(connection, "GET").status
    assert not azure.requests


def test_an_expected_continue_is_not_given_without_a_key(proxy: Proxies) -> None:
    """The client has not sent its body and may do so or not: the connection ends with the response."""
    with socket.create_connection(("127.0.0.1", proxy().port), PATIENCE) as connection:
        connection.sendall(head("POST /v1/responses", "Content-Length: 4", "Expect: 100-continue"))
        refused = answer(connection)
        assert (401, "close") == (refused.status, refused.headers["connection"])
        refused.read()
        assert b"" == connection.recv(1)


@pytest.mark.parametrize("way", ["http", "h2", "CONNECT"])
def test_bodies_without_a_key_take_no_memory(way: str, proxy: Proxies) -> None:
    """One 60 MB upload after the other over one connection."""
    through = proxy()
    with client(way, through) as http:
        http.get("/v1/models")
        memory = Memory(through)
        answers = [http.post("/v1/responses", headers=JSON, content=pattern(60 * MB)) for _ in range(4)]
        growth = memory.growth()
    assert [401] * 4 == [answer.status_code for answer in answers]
    assert growth < 30 * MB


@pytest.mark.parametrize("place", ["Authorization: Bearer {}", "api-key: {}", "/v1/responses?API-Key={}"])
def test_a_client_s_key_is_found_in_every_place(place: str, proxy: Proxies, azure: Simulator) -> None:
    """In a header or in the query."""
    body = b'{"model":"gpt-4o","input":"hi"}'
    path, header = ("/v1/responses", place) if ":" in place else (place, "X-Other: {}")
    with socket.create_connection(("127.0.0.1", proxy().port), PATIENCE) as connection:
        lines = header.format(azure.key), f"Content-Length: {len(body)}", "Content-Type: application/json"
        connection.sendall(head(f"POST {path.format(azure.key)}", *lines) + body)
        assert 200 == answer(connection).status


def test_what_needs_no_key_is_answered_without_one(proxy: Proxies) -> None:
    """By the proxy itself, with a body or not."""
    url = proxy().url
    asked = [("OPTIONS", "/v1/responses"), ("GET", "/v1/models"), ("GET", "/healthz"), ("POST", "/v1/edits"), ("POST", "/favicon.ico")]
    with httpx.Client(base_url=url, trust_env=False) as http:
        answers = [http.request(method, path, headers=JSON, content=b"{}") for method, path in asked]
    assert 401 not in [answer.status_code for answer in answers]


# WebSockets


@pytest.mark.parametrize("mode", ["azure", "openai"])
@pytest.mark.parametrize("way", ["ws", "wss"])
@pytest.mark.parametrize("path", ["/v1/realtime?model=gpt-realtime", "/v1/responses"])
def test_a_message_that_decompresses_beyond_the_limit(way: str, mode: str, path: str, proxy: Proxies, azure: Simulator) -> None:
    """The connection is closed with 1009 before 300 MB are in memory."""
    options: dict[str, Any] = (
        {"azure_openai_proxy_mode": mode, "azure_openai_passthrough_endpoint": azure.http_url} if mode == "openai" else {}
    )
    through = proxy(azure_openai_max_body="4m", **options)
    path = f"/openai{path}" if mode == "openai" else path
    with dial(way, through, path, additional_headers=bearer(azure) | {"api-key": azure.key}) as ws:
        memory = Memory(through)
        ws.socket.sendall(frame(bomb(300 * MB), opcode=1, compressed=True))
        if "realtime" in path:
            heard(ws)
        code, _ = reason(ws)
        growth = memory.growth()
    assert 1009 == code
    assert growth < 60 * MB


def test_a_message_without_an_end(proxy: Proxies, azure: Simulator) -> None:
    """The client gets the close code 1009 although it never ends its message."""
    through = proxy(azure_openai_max_body="4m")
    with dial("ws", through, "/v1/realtime?model=gpt-realtime", additional_headers=bearer(azure)) as ws:
        heard(ws)
        memory = Memory(through)
        for number in range(5 * 16):
            ws.socket.sendall(frame(bytes(MB >> 4), opcode=0 if number else 2, final=False))
        assert 1009 == reason(ws)[0]
        assert memory.growth() < 40 * MB


def test_models_that_frames_name_are_not_kept(proxy: Proxies, azure: Simulator) -> None:
    """400 frames, each with a long name of its own; and mitmdump keeps no messages."""
    through = proxy()
    with dial("ws", through, "/v1/realtime?model=gpt-realtime", additional_headers=bearer(azure)) as ws:
        heard(ws)
        memory = Memory(through)
        for number in range(400):
            ws.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "model": f"m{number}" + "x" * 200_000}}))
            heard(ws)
        assert memory.growth() < 40 * MB


# Bodies


@pytest.mark.parametrize("way", ["http", "h2", "CONNECT"])
def test_bodies_of_finished_requests_are_freed(way: str, proxy: Proxies) -> None:
    """Uploads one after the other need memory for one, whether Azure or the proxy answers them."""
    body = json.dumps({"model": "gpt-4o", "input": "x" * (30 * MB)}).encode()  # once: httpx keeps it in cycles of requests and responses
    with Sink() as sink:
        through = proxy(azure_openai_endpoint=sink.url)
        with client(way, through) as http:
            http.get("/v1/models")
            memory = Memory(through)
            for path in ["/v1/responses", "/v1/edits"] * 6:
                http.post(path, headers=JSON | {"authorization": "Bearer client"}, content=body)
            growth = memory.growth()
    assert growth < 240 * MB


COMPRESSED = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd,
    "gzip, zstd": lambda data: zstd(gzip.compress(data)),
}


@pytest.mark.parametrize("coding", COMPRESSED)
@pytest.mark.parametrize(
    "path, body, kind",
    [
        ("/v1/responses", b'{"model":"gpt-4o","input":"hi"}', "application/json"),
        ("/v1/chat/completions", b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}', "application/json"),
        ("/v1/files", UPLOAD, "multipart/form-data; boundary=b"),
        ("/v1/files", UPLOAD.replace(b"text", b"text" * MB), "multipart/form-data; boundary=b"),
    ],
    ids=["responses", "chat", "file", "large file"],
)
def test_a_compressed_request_is_decompressed(coding: str, path: str, body: bytes, kind: str, proxy: Proxies) -> None:
    """Azure gets the body as it was, with its length and without the header."""
    sent = COMPRESSED[coding](body)
    with Sink() as sink:
        headers = {"content-type": kind, "content-encoding": coding, "authorization": "Bearer client"}
        response = httpx.post(f"{proxy(azure_openai_endpoint=sink.url).url}{path}", content=sent, headers=headers, timeout=PATIENCE)
        taken = sink.wait()
    assert 200 == response.status_code
    assert (len(body), str(len(body)), None) == (taken.size, taken.headers["content-length"], taken.headers.get("content-encoding"))


@pytest.mark.parametrize("way", ["http", "h2"])
@pytest.mark.parametrize(
    "coding, body, status",
    [
        ("gzip", gzip.compress(bytes(300 * MB), 1), 413),
        ("zstd", zstd(bytes(300 * MB)), 413),
        ("gzip", b"no gzip", 400),
        ("exi", b"{}", 415),
    ],
    ids=["gzip bomb", "zstd bomb", "broken", "unknown"],
)
def test_a_compressed_request_is_refused(way: str, coding: str, body: bytes, status: int, proxy: Proxies) -> None:
    """In OpenAI's shape, and before a bomb fills the memory."""
    through = proxy(azure_openai_max_body="4m")
    with client(way, through) as http:
        http.get("/v1/models")
        memory = Memory(through)
        response = http.post("/v1/responses", content=body, headers=JSON | {"content-encoding": coding, "authorization": "Bearer client"})
        growth = memory.growth()
    assert (status, True) == (response.status_code, bool(response.json()["error"]["message"]))
    assert growth < 60 * MB
