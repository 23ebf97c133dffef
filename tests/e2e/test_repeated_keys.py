"""An upstream that repeats the key in every part of an HTTP message: the client, the log and saved flows get a mask."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from support.hostile import Upstream
from support.processes import PATIENCE, Mitmdump
from support.raw import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from support.processes import Decoy

KEY = "the+owner/s-key=0123456789abcdef"
ENCODED = [base64.b64encode(b"x" * before + KEY.encode())[4:-4] for before in range(3)]
SHOWN = [KEY.encode(), quote(KEY, safe="").encode(), quote(KEY, safe="").lower().encode(), *ENCODED]

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
OK = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'


def head(status: bytes, *headers: bytes, length: int | None = None) -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers, *([b"content-length: %d" % length] if length is not None else [])]
    return b"\r\n".join(lines) + b"\r\nconnection: close\r\n\r\n"


def whole(status: bytes, *headers: bytes, body: bytes = OK) -> list[bytes]:
    return [head(status, b"content-type: application/json", *headers, length=len(body)) + body]


def events(*chunks: bytes) -> list[bytes]:
    """One byte a write."""
    body = b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks)
    return [head(b"200 OK", b"content-type: text/event-stream"), *(body[at : at + 1] for at in range(len(body)))]


CONTENT = b'{"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}'
ECHO: dict[str, Callable[[bytes], Sequence[bytes]]] = {
    "a header": lambda key: whole(b"200 OK", b"x-debug: api-key=" + key),
    "a header of a refusal": lambda key: whole(b"401 Unauthorized", b"www-authenticate: Bearer error=" + key, body=b"{}"),
    "a header of a failure": lambda key: whole(b"503 Busy", b"x-debug: " + key, body=b"{}"),
    "a header's name": lambda key: whole(b"200 OK", b"x-" + key.replace(b"/", b"").replace(b"=", b"") + b": 1"),
    "base64": lambda key: whole(b"200 OK", *(b"x-%d: " % n + base64.b64encode(b"x" * n + key) for n in range(3))),
    "a redirect": lambda key: whole(b"302 Found", b"location: https://elsewhere/?key=" + quote(key, safe="").encode()),
    "a redirect, in lower case": lambda key: whole(b"307 Go", b"location: /login?k=" + quote(key, safe="").lower().encode(), body=b"{}"),
    "the reason": lambda key: whole(b"401 Bad key " + key, body=b"{}"),
    "an error": lambda key: whole(b"400 Bad", body=json.dumps({"error": {"message": "key " + key.decode()}}).encode()),
    "an error in HTML": lambda key: whole(b"502 Bad", body=b"<html>key %b</html>" % key),
    "an error in a stream": lambda key: events(CONTENT, json.dumps({"error": {"message": "key " + key.decode()}}).encode()),
    "an error in the place of a stream": lambda key: events(json.dumps({"error": {"message": "key " + key.decode()}}).encode()),
    "a header of a stream": lambda key: [
        events(CONTENT)[0].replace(b"\r\n\r\n", b"\r\nx-debug: " + key + b"\r\n\r\n"),
        *events(CONTENT)[1:],
    ],
    "an upgrade that is refused": lambda key: whole(b"401 Bad " + key, b"x-debug: " + key, body=b"key " + key),
}


def received(name: str, proxy: Mitmdump, headers: dict[str, str]) -> bytes:
    """Everything that a client gets."""
    if "upgrade" in name:
        with pytest.raises(InvalidStatus) as refused:
            connect(proxy.url.replace("http", "ws") + "/v1/realtime?model=gpt-realtime", additional_headers=headers)
        refusal = refused.value.response
        return f"{refusal.reason_phrase} {list(refusal.headers.raw_items())}".encode() + (refusal.body or b"")
    with Raw(proxy.port) as raw:
        body = json.dumps(CHAT | {"stream": "stream" in name}).encode()
        fields = [(b"Content-Type", b"application/json"), *((name.encode(), value.encode()) for name, value in headers.items())]
        answer = raw.ask("POST", b"/v1/chat/completions", fields, body)
        return f"{answer.status} {answer.headers.items()}".encode() + answer.body


@pytest.mark.parametrize("configured", [True, False], ids=["the owner's key", "the client's own"])
def test_a_repeated_key_is_masked_everywhere(configured: bool, decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """In no byte for the client, of the log, of the flow file and of the HAR there is the key, in plain or encoded."""
    flows, har = tmp_path / "flows", tmp_path / "all.har"
    current = [""]
    told: dict[str, bytes] = {}
    with Upstream(lambda headers: ECHO[current[0]](headers[b"api-key"])) as upstream:
        options = {
            "azure_openai_endpoint": upstream.url,
            "hardump": har,
            "flow_detail": 4,
            "termlog_verbosity": "debug",
            "azure_openai_keep_bodies": "1m",
        }
        if configured:
            options["azure_openai_token"] = KEY
        home = tmp_path / "home"
        with Mitmdump(home, confdir, options=options, args=["-w", str(flows)], decoy_port=decoy.port) as proxy:
            for name in ECHO:
                current[0] = name
                told[name] = received(name, proxy, {} if configured else {"api-key": KEY})
    told["the log"] = "\n".join([*proxy.output, *proxy.records]).encode()
    told["the flow file"], told["the HAR"] = flows.read_bytes(), har.read_bytes()
    assert len(ECHO) <= told["the flow file"].count(b"chat/completions")
    assert [] == [(name, form) for name, text in told.items() for form in SHOWN if form in text]
    assert [] == [name for name in ECHO if b"[key]" not in told[name] and name not in ("a header's name", "the reason")]


def test_a_key_that_was_not_sent_hides_nothing(decoy: Decoy, confdir: Path, tmp_path: Path) -> None:
    """Clients without a key send a word; that word stays in headers that have it."""
    with (
        Upstream(lambda _: whole(b"200 OK", b"x-more: a dummy test")) as upstream,
        Mitmdump(
            tmp_path, confdir, options={"azure_openai_endpoint": upstream.url, "azure_openai_token": KEY}, decoy_port=decoy.port
        ) as proxy,
    ):
        for key in ("test", "dummy", "json", "application"):
            answer = httpx.post(f"{proxy.url}/v1/chat/completions", json=CHAT, headers={"api-key": key}, timeout=PATIENCE, trust_env=False)
            assert "application/json" == answer.headers["content-type"]
            assert "a dummy test" == answer.headers["x-more"]
