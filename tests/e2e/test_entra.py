"""Microsoft Entra ID, on a managed identity's endpoint of our own."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from azure_simulator import Simulator
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from pathlib import Path

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


class Identity:
    """`IDENTITY_ENDPOINT`: returns the given tokens one after the other, and the last one repeatedly."""

    def __init__(self, *tokens: str, life: float = 3600, redirects_to: str = "") -> None:
        self.tokens = list(tokens)
        self.life = life
        self.asked: list[dict[str, list[str]]] = []
        identity = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                identity.asked.append(parse_qs(urlsplit(self.path).query))
                token = identity.tokens[0] if len(identity.tokens) == 1 else identity.tokens.pop(0)
                known = self.headers["X-IDENTITY-HEADER"] == "secret-header" and token
                answer = {
                    "access_token": token,
                    "expires_on": str(int(time.time() + identity.life)),
                    "token_type": "Bearer",
                    "resource": "azure",
                }
                body = json.dumps(answer if known else {"error": "no identity"}).encode()
                self.send_response(307 if redirects_to else 200 if known else 400)
                if redirects_to:
                    self.send_header("location", f"{redirects_to}?{urlsplit(self.path).query}")
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.env = {"IDENTITY_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}/token", "IDENTITY_HEADER": "secret-header"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def start(home: Path, confdir: Path, azure: Simulator, identity: Identity, **options: object) -> Mitmdump:
    given = {"azure_openai_endpoint": azure.http_url, "azure_openai_entra": "managed_identity", "termlog_verbosity": "debug"} | options
    return Mitmdump(home, confdir, options=given | {"save_stream_file": home / "flows"}, env=identity.env)


def ask(proxy: Mitmdump) -> httpx.Response:
    return httpx.post(
        f"{proxy.url}/v1/chat/completions", json=BODY, headers={"authorization": "Bearer mine"}, timeout=PATIENCE, trust_env=False
    )


@pytest.mark.parametrize("version, scope", [("2024-10-21", "https://cognitiveservices.azure.com"), ("v1", "https://ai.azure.com")])
def test_the_proxys_own_token(version: str, scope: str, tmp_path: Path, confdir: Path) -> None:
    """It is sent as Bearer from the first request on, for the scope of the API version, and stands in no log and no flow."""
    with (
        Simulator(entra_tokens=["token-of-entra-1"]) as azure,
        Identity("token-of-entra-1") as identity,
        start(tmp_path, confdir, azure, identity, azure_openai_apiversion=version) as proxy,
    ):
        assert 200 == ask(proxy).status_code
        assert "Bearer token-of-entra-1" == azure.requests[0].header("authorization")
        assert None is azure.requests[0].header("api-key")
        assert [scope] == [asked["resource"][0] for asked in identity.asked]
    saved = (tmp_path / "flows").read_bytes()
    assert b"chat/completions" in saved
    assert b"token-of-entra" not in saved
    assert "token-of-entra" not in proxy.log() + "\n".join(proxy.records)


def test_a_token_is_replaced_before_it_ends(tmp_path: Path, confdir: Path) -> None:
    """Requests go on while the new one is fetched."""
    tokens = [f"token-of-entra-{number}" for number in range(5)]
    with (
        Simulator(entra_tokens=tokens) as azure,
        Identity(*tokens, life=4) as identity,
        start(tmp_path, confdir, azure, identity) as proxy,
    ):
        until = time.monotonic() + PATIENCE
        while "Bearer token-of-entra-2" not in {received.header("authorization") for received in azure.requests}:
            assert 200 == ask(proxy).status_code
            assert time.monotonic() < until


def test_a_redirect_by_the_identity_service_is_not_followed(tmp_path: Path, confdir: Path) -> None:
    """The header that proves who asks is for that service only."""
    with (
        Simulator() as azure,
        Identity("token-of-entra-1") as other,
        Identity("", redirects_to=other.env["IDENTITY_ENDPOINT"]) as identity,
        start(tmp_path, confdir, azure, identity) as proxy,
    ):
        proxy.wait_for_log("No token of Entra ID")
        assert [] == other.asked
        assert identity.asked


SLOW_START = """
import asyncio
from pathlib import Path

async def running():
    while not Path("go").exists():
        await asyncio.sleep(0.01)
"""


@pytest.mark.parametrize("kind", ["HTTP/1.1", "WebSocket"])
def test_a_request_before_the_end_of_the_start(kind: str, tmp_path: Path, confdir: Path) -> None:
    """The port is open and the addon not running yet: the request waits, a probe does not, and the first one is served in the end."""
    (tmp_path / "slow.py").write_text(SLOW_START)
    head, expected = {
        "HTTP/1.1": (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n" % len(json.dumps(BODY)), b"HTTP/1.1 200 "),
        "WebSocket": (
            (
                b"GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            ),
            b"HTTP/1.1 101 ",
        ),
    }[kind]
    body = json.dumps(BODY).encode() if kind == "HTTP/1.1" else b""
    with Simulator(entra_tokens=["token-of-entra-1"]) as azure, Identity("token-of-entra-1") as identity:
        proxy = start(tmp_path, confdir, azure, identity)
        proxy.scripts = (tmp_path / "slow.py", *proxy.scripts)
        proxy.launch()
        try:
            proxy.port = int(proxy.wait_for_log(r"listening at \S+:(\d+)")[1])
            with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client:
                client.sendall(head + b"Host: localhost\r\nContent-Type: application/json\r\n\r\n" + body)
                probes = [httpx.get(f"{proxy.url}{path}", trust_env=False, timeout=PATIENCE) for path in ("/healthz", "/readyz")]
                assert [(200, "ok\n"), (503, "starting\n")] == [(probe.status_code, probe.text) for probe in probes]
                assert [] == identity.asked
                (tmp_path / "go").touch()
                assert client.recv(65536).startswith(expected)
        finally:
            assert 0 == proxy.stop()
        assert ["Bearer token-of-entra-1"] == [request.header("authorization") for request in azure.requests]
    proxy.check()


def test_without_a_token(tmp_path: Path, confdir: Path) -> None:
    """A clear 503, and one log line for all the attempts of a minute."""
    with Simulator() as azure, Identity("") as identity, start(tmp_path, confdir, azure, identity) as proxy:
        for _ in range(3):
            answer = ask(proxy)
            assert (503, "entra_token_unavailable") == (answer.status_code, answer.json()["error"]["code"])
        assert [] == azure.requests
        proxy.wait_for_log("No token of Entra ID")
        assert 1 == proxy.log().count("No token of Entra ID")
