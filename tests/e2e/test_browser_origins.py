"""Pages in a real browser against a proxy with a key: one of a foreign origin never reaches Azure, the same page on an allowed one does."""

from __future__ import annotations

import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from support.browser import CHROMIUM, Browser, browser
from support.marks import BROWSER, second_try

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

# Every way in which a page can send something to another origin. Each request says in its query which way it is.
ATTEMPTS = """
(async (base) => {
  const chat = JSON.stringify({model: "gpt-4o", messages: [{role: "user", content: "hello"}]});
  const path = name => base + "/v1/chat/completions?try=" + name;
  const seen = {};
  const outcome = async (name, attempt) => { try { seen[name] = await attempt; } catch { seen[name] = "failed"; } };

  await outcome("simple", fetch(path("simple"), {method: "POST", headers: {"Content-Type": "text/plain"}, body: chat})
    .then(async answer => (await answer.json()).choices[0].message.content));
  await outcome("blind", fetch(path("blind"), {method: "POST", mode: "no-cors", body: chat}).then(answer => answer.type));
  await outcome("preflighted", fetch(path("preflighted"), {method: "POST", headers: {"Content-Type": "application/json"}, body: chat})
    .then(async answer => (await answer.json()).choices[0].message.content));

  // A form of text/plain whose one field is JSON, sent into a frame; from a sandboxed frame too, which has no origin.
  const form = (name, target) => {
    const made = document.createElement("form");
    Object.assign(made, {action: path(name), method: "POST", enctype: "text/plain", target});
    const field = document.createElement("input");
    field.setAttribute("name", chat.slice(0, -1) + ',"user":"');
    field.setAttribute("value", '"}');
    made.append(field);
    return made;
  };
  const frame = document.createElement("iframe");
  frame.name = "result";
  document.body.append(frame);
  await outcome("form", new Promise(done => {
    const sent = form("form", "result");
    document.body.append(sent);
    frame.onload = () => done("loaded");
    sent.submit();
  }));
  await outcome("sandboxed", new Promise(done => {
    const sandbox = document.createElement("iframe");
    sandbox.sandbox = "allow-forms allow-scripts";
    let loads = 0;
    sandbox.onload = () => { if (++loads == 2) done("loaded"); };
    const script = "<script>onload = () => setTimeout(() => document.forms[0].submit())</" + "script>";
    sandbox.srcdoc = form("sandboxed", "_self").outerHTML + script;
    document.body.append(sandbox);
  }));

  await outcome("image", new Promise(done => {
    const image = new Image();
    image.onload = image.onerror = event => done(event.type);
    image.src = base + "/v1/files?try=image";
  }));
  await outcome("websocket", new Promise((done, failed) => {
    const socket = new WebSocket(base.replace("http", "ws") + "/v1/realtime?model=gpt-realtime&try=websocket");
    socket.onmessage = message => { done(JSON.parse(message.data).type); socket.close(); };
    socket.onerror = failed;
  }));
  return seen;
})(%s)
"""

SERVED = {
    "simple": "You said: hello",
    "blind": "opaque",
    "preflighted": "You said: hello",
    "form": "loaded",
    "sandboxed": "loaded",
    "image": "error",
    "websocket": "session.created",
}
REFUSED = SERVED | dict.fromkeys(["simple", "preflighted", "websocket"], "failed")


@pytest.fixture(scope="module")
def pages() -> Iterator[int]:
    """The port of an empty page, under any name."""

    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><body></body>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


# All names are of this machine. No plain page is asked for by TLS instead, and no person for the access to the local network.
NAMES = ("--host-resolver-rules=MAP *.example 127.0.0.1", "--disable-features=HttpsUpgrades,LocalNetworkAccessChecks")


@pytest.fixture(scope="module")
def chromium(confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium"), confdir / "mitmproxy-ca-cert.pem", *NAMES) as started:
        yield started


@pytest.fixture(scope="module")
def public(pages: int, confdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """For it the pages are on the internet, and the proxy in the private network."""
    space = f"--ip-address-space-overrides=127.0.0.1:{pages}=public"
    with browser(tmp_path_factory.mktemp("chromium"), confdir / "mitmproxy-ca-cert.pem", *NAMES, space) as started:
        yield started


def keyed(azure: Simulator, proxy: Proxies, pages: int) -> Mitmdump:
    allowed = f"http://chat.example:{pages}"
    return proxy("--mode", "regular", azure_openai_token=azure.key, azure_openai_allowed_origins=allowed)


def attempts(azure: Simulator) -> set[str]:
    return {name for name in SERVED if any(f"try={name}" in request.path for request in azure.requests)}


@second_try(BROWSER)
@pytest.mark.parametrize("space", ["chromium", "public"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_of_a_foreign_origin_reaches_nothing(
    scheme: str, space: str, pages: int, azure: Simulator, proxy: Proxies, request: pytest.FixtureRequest
) -> None:
    """Whatever it tries, Azure gets no request, and the page cannot read an answer."""
    through = keyed(azure, proxy, pages)
    base = through.url if scheme == "http" else through.https_url
    starts: Browser = request.getfixturevalue(space)

    seen = starts.run(f"http://evil.example:{pages}/", ATTEMPTS % json.dumps(base))

    assert REFUSED == seen
    assert [] == azure.requests


@second_try(BROWSER)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_of_an_allowed_origin_is_served(scheme: str, pages: int, azure: Simulator, proxy: Proxies, chromium: Browser) -> None:
    """Except requests that it sends without its origin: an image, and the form of a sandboxed frame."""
    through = keyed(azure, proxy, pages)
    base = through.url if scheme == "http" else through.https_url

    seen = chromium.run(f"http://chat.example:{pages}/", ATTEMPTS % json.dumps(base))

    assert SERVED == seen
    assert set(SERVED) - {"image", "sandboxed"} == attempts(azure)


REBOUND = """
(async () => {
  const body = JSON.stringify({model: "gpt-4o", messages: [{role: "user", content: "hello"}]});
  const statuses = [];
  for (const [path, options] of [
    ["/v1/files", {}],
    ["/v1/chat/completions", {method: "POST", body}],
    ["/v1/chat/completions", {method: "POST", body, headers: {"Content-Type": "application/json"}}],
  ]) statuses.push((await fetch(path, options)).status);
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/v1/realtime?model=gpt-realtime");
  const talked = await new Promise(done => { socket.onmessage = () => done("message"); socket.onerror = () => done("failed"); });
  return [location.hostname, document.contentType, ...statuses, talked];
})()
"""


@second_try(BROWSER)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_page_whose_name_is_rebound_reaches_nothing(scheme: str, azure: Simulator, proxy: Proxies, pages: int, chromium: Browser) -> None:
    """Its name resolves to the proxy now, which is of its own origin for the browser: it can read answers, and all are refusals."""
    through = keyed(azure, proxy, pages)
    rebound: list[Any] = chromium.run(f"{scheme}://rebound.example:{through.port}/", REBOUND)
    assert ["rebound.example", "application/json", 403, 403, 403, "failed"] == rebound
    assert [] == azure.requests


@second_try(BROWSER)
def test_the_proxy_s_own_page_is_not_foreign(azure: Simulator, proxy: Proxies, pages: int, chromium: Browser) -> None:
    """The same request from the proxy's own address is served: the requests above are refused for their host name."""
    through = keyed(azure, proxy, pages)
    assert ["localhost", "text/plain", 200, 200, 200, "message"] == chromium.run(f"http://localhost:{through.port}/", REBOUND)
