"""A page of another origin uses the API in a real browser: fetch, a streamed chat, a realtime WebSocket."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from support.browser import CHROMIUM, Browser, browser
from support.marks import BROWSER, second_try
from support.processes import PATIENCE
from support.shell import installed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Decoy

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

SCRIPT = """
(async (base, key) => {
  const ask = (path, body) => fetch(base + path, {
    method: "POST",
    headers: {"Authorization": "Bearer " + key, "Content-Type": "application/json", "X-Stainless-Lang": "js", "OpenAI-Beta": "x=1"},
    body: JSON.stringify(body),
  });
  const body = {model: "gpt-4o", messages: [{role: "user", content: "one two three"}]};

  const chat = await ask("/v1/chat/completions", body);
  const said = (await chat.json()).choices[0].message.content;

  const streamed = await ask("/v1/chat/completions", {...body, stream: true});
  const reader = streamed.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    text += value;
  }
  const events = text.trim().split("\\n\\n").map(event => event.slice("data: ".length));

  const refused = await ask("/v1/nothing", {});
  const models = await (await fetch(base + "/v1/models", {headers: {"Authorization": "Bearer " + key}})).json();

  const protocols = ["realtime", "openai-insecure-api-key." + key];
  const socket = new WebSocket(base.replace("http", "ws") + "/v1/realtime?model=gpt-realtime", protocols);
  const first = await new Promise((done, failed) => {
    socket.onmessage = message => done(JSON.parse(message.data).type);
    socket.onerror = () => failed(new Error("the WebSocket failed"));
  });
  const protocol = socket.protocol;
  socket.close();

  return {
    said, id: Boolean(chat.headers.get("x-request-id")), last: events.at(-1), refused: [refused.status, (await refused.json()).error.code],
    streamed: events.slice(0, -1).map(event => JSON.parse(event).choices[0]?.delta.content ?? "").join(""), list: models.object,
    first, protocol,
  };
})(%s, %s)
"""

SEEN = {
    "said": "You said: one two three",
    "id": True,
    "streamed": "You said: one two three",
    "last": "[DONE]",
    "refused": [404, "unknown_url"],
    "list": "list",
    "first": "session.created",
    "protocol": "realtime",
}


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """An empty page, whose origin is none of the proxy's."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium"), confdir / "mitmproxy-ca-cert.pem") as started:
        yield started


@second_try(BROWSER)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_of_another_origin(scheme: str, page: str, chromium: Browser, azure: Simulator, proxy: Proxies) -> None:
    """Every answer may be read by the page, its headers and errors included."""
    through = proxy("--mode", "regular")
    base = through.url if scheme == "http" else through.https_url

    seen = chromium.run(page, SCRIPT % (json.dumps(base), json.dumps(azure.key)))

    assert SEEN == seen


@second_try(BROWSER)
def test_a_page_that_asks_openai_itself(page: str, confdir: Path, tmp_path: Path, azure: Simulator, decoy: Decoy, proxy: Proxies) -> None:
    """A browser with a proxy set: its requests and its WebSocket come by CONNECT, and api.openai.com is asked for nothing."""
    through = proxy("--mode", "regular")
    with browser(tmp_path, through.ca, f"--proxy-server={through.url}") as chromium:
        seen = chromium.run(page, SCRIPT % (json.dumps("https://api.openai.com"), json.dumps(azure.key)))

    assert SEEN == seen
    assert 0 == decoy.accepted


# Everything that is printed: the variables, and the commands among the comments.
AS_PRINTED = """
printed="$(azure-openai-proxy env --proxy "$0")" && eval "$printed" && eval "$(echo "$printed" | sed -n 's/^#   //p')" && exec env -0
"""


@second_try(BROWSER)
@pytest.mark.skipif(not shutil.which("certutil"), reason="certutil is not installed (libnss3-tools)")
def test_a_browser_with_what_env_prints(page: str, tmp_path: Path, azure: Simulator, decoy: Decoy, proxy: Proxies) -> None:
    """The command puts the CA where Chromium looks for it, and the variables lead it to the proxy: no argument is needed."""
    through = proxy("--mode", "regular")
    at = f"http://localhost:{through.port}"
    done = subprocess.run(
        ["sh", "-c", AS_PRINTED, at], env=installed(tmp_path / "home"), capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    environment = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)

    with browser(tmp_path / "profile", None, env=environment) as chromium:
        seen = chromium.run(page, SCRIPT % (json.dumps("https://api.openai.com"), json.dumps(azure.key)))

    assert SEEN == seen
    assert 0 == decoy.accepted
