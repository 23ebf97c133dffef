"""An upstream that means harm: bombs, endless numbers, long errors. The proxy answers, goes on, and has not grown."""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import brotli  # type: ignore[import-untyped, unused-ignore]
import httpx
import pytest
from mitmproxy.net import encoding as encodings

from support.hostile import Upstream
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.processes import Decoy

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
SIZE = 200 << 20


def bombs() -> Iterator[tuple[str, bytes]]:
    """So much text in 0.2 MB and less."""
    text = b"data: " + bytes(1 << 20) * (SIZE >> 20)
    yield "gzip", gzip.compress(text, 9)
    yield "deflate", zlib.compress(text, 9)
    yield "br", brotli.compress(text, quality=1)
    zstd = encodings.encode(text, "zstd")
    assert isinstance(zstd, bytes)
    yield "zstd", zstd


def answer(status: bytes, body: bytes, *headers: bytes) -> list[bytes]:
    return [b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"content-length: %d" % len(body), b"connection: close", b"", body])]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of another process's memory is Linux's")
@pytest.mark.parametrize("kind", ["a stream", "JSON", "an error", "an error that is tried again"])
def test_a_bomb_takes_no_memory(kind: str, decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """Compressed 0.2 MB that become 200 MB: an error in OpenAI's shape, and the process has grown by a fraction of it."""
    status = {"a stream": b"200 OK", "JSON": b"200 OK", "an error": b"400 Bad", "an error that is tried again": b"503 Busy"}[kind]
    content_type = b"content-type: " + (b"text/event-stream" if kind == "a stream" else b"application/json")
    made = [answer(status, bomb, content_type, b"content-encoding: " + name.encode()) for name, bomb in bombs()]
    current = [answer(b"200 OK", OK, b"content-type: application/json")]
    with (
        Upstream(lambda _: current[-1]) as upstream,
        Mitmdump(
            tmp_path,
            confdir,
            options={"azure_openai_endpoint": upstream.url, "azure_openai_token": "k-0123456789", "azure_openai_keep_bodies": "64m"},
            args=["-w", str(tmp_path / "flows")],
            decoy_port=decoy.port,
        ) as proxy,
        httpx.Client(base_url=proxy.url, timeout=PATIENCE, trust_env=False) as client,
    ):

        def ask() -> httpx.Response:
            return client.post("/v1/chat/completions", json=CHAT | {"stream": kind == "a stream"})

        assert 200 == ask().status_code
        before = peak(proxy.pid)
        for bomb in made:
            current.append(bomb)
            got = ask()
            assert {"a stream": 200, "JSON": 502, "an error": 400}.get(kind, 503) == got.status_code
            said = json.loads(text(got).removeprefix("data: "))["error"]
            assert "decompress to more than" in said["message"] or (got.status_code in (400, 503) and "gave no reason" in said["message"])
        current.append(current[0])
        assert 200 == ask().status_code
        grown = peak(proxy.pid) - before
    assert grown < SIZE // 2


def text(got: httpx.Response) -> str:
    """httpx does not know zstd unless there is a library for it."""
    plain = b"" if got.headers.get("content-encoding") != "zstd" or got.content.startswith(b"{") else encodings.decode(got.content, "zstd")
    return plain.decode() if isinstance(plain, bytes) and plain else got.text


def peak(pid: int) -> int:
    """Bytes: the most that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


HOSTILE_HEADERS = {
    "digits": b"x-ratelimit-reset-tokens: " + b"9" * 12_000,
    "a long duration": b"x-ratelimit-reset-tokens: " + b"1h" * 6_000,
    "digits without a unit": b"x-ratelimit-reset-requests: " + b"9" * 12_000 + b"x",
    "a long retry-after": b"retry-after: " + b"9" * 12_000,
    "a long retry-after-ms": b"retry-after-ms: " + b"9" * 12_000,
    "a date without end": b"retry-after: Mon, 01 Jan 9999999999999999 00:00:00 GMT",
    "a zone without end": b"retry-after: Mon, 01 Jan 2026 00:00:00 +9999999999999",
    "infinity": b"retry-after: inf\r\nretry-after-ms: nan",
    "control characters": b"x-request-id: a\x1b]0;b\x07\x1b[2Jc\r\nx-ms-region: \x7f\x08e\t\xc3\xa9",
    "tokens left": b"x-ratelimit-remaining-tokens: " + b"9" * 5_000 + b"\r\nx-ratelimit-reset-tokens: 1s",
}
HOSTILE_BODIES = {
    "a long text": b"x" * 300_000,
    "long HTML": b"<html>" + b"<script>" * 40_000,
    "a long message": json.dumps({"error": {"message": "x " * 100_000}}).encode(),
    "many members": json.dumps({"error": {"message": "m", "details": ["x"] * 50_000}}).encode(),
    "nested": b'{"error":' * 100_000 + b"{}" + b"}" * 100_000,
    "a number as the code": b'{"error":{"code":%b,"message":"m"}}' % (b"4" * 5000),
    "a code of digits": b'{"error":{"code":"%b","message":"m"}}' % (b"4" * 5000),
    "infinity": b'{"error":{"code":1e999,"message":"m","x":[NaN,-Infinity]}}',
    "half an emoji": b'{"error":{"message":"\\ud83d"}}',
}


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"429 Busy", b"503 Busy"])
def test_hostile_heads_and_errors(status: bytes, decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """Whatever the headers and the error say, the client gets an answer that is short, and the next request is served."""
    cases = [(name, header, OK if status.startswith(b"200") else b"{}") for name, header in HOSTILE_HEADERS.items()]
    if not status.startswith(b"200"):
        cases += [(name, b"x-more: 1", body) for name, body in HOSTILE_BODIES.items()]
    current = [0]

    def say(headers: dict[bytes, bytes]) -> list[bytes]:
        return answer(status, cases[current[0]][2], b"content-type: application/json", cases[current[0]][1])

    options = {"azure_openai_token": "k-0123456789", "azure_openai_max_attempts": 1}
    with (
        Upstream(say) as upstream,
        Mitmdump(tmp_path, confdir, options=options | {"azure_openai_endpoint": upstream.url}, decoy_port=decoy.port) as proxy,
        httpx.Client(base_url=proxy.url, timeout=PATIENCE, trust_env=False) as client,
    ):
        for number, (name, _, _) in enumerate(cases):
            current[0] = number
            got = client.post("/v1/chat/completions", json=CHAT)
            assert got.status_code in (int(status[:3]), 429), name
            assert len(got.content) < 100_000, name
            if got.status_code >= 400:
                assert isinstance(got.json()["error"]["message"], str), name
            assert len(got.headers.get("x-ratelimit-reset-tokens", "")) <= 64, name
            assert not re.search(rb"[^\t\x20-\x7e\x80-\xff]", b"".join(value for _, value in got.headers.raw)), name
        assert 200 == client.get("/healthz").status_code
        proxy.check()
