"""Web pages and the configured key, over HTTP/1.1, HTTP/2 and WebSocket: allowed origins, and the names of the proxy."""

from __future__ import annotations

import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from support.processes import PATIENCE, for_websockets, only_http2

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

CHAT = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]})
EVIL = "https://evil.example"
PAGE = "https://chat.example.com"
KEYED: dict[str, Any] = {"azure_openai_token": "azure-key-0123456789abcdef"}  # the simulator's
ALLOWED = KEYED | {"azure_openai_allowed_origins": PAGE}


def ask(
    proxy: Mitmdump, http: str = "1.1", method: str = "POST", path: str = "/v1/chat/completions", content: str = CHAT, **headers: str
) -> httpx.Response:
    """As a page does: with whatever headers the browser sets for it."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if http == "1.1":
        with httpx.Client(timeout=PATIENCE, trust_env=False) as client:
            return client.request(method, proxy.url + path, content=content, headers=sent)
    with httpx.Client(http2=True, verify=only_http2(proxy.ca), timeout=PATIENCE, trust_env=False) as client:
        answer = client.request(method, proxy.https_url + path, content=content, headers=sent)
    assert "HTTP/2" == answer.http_version
    return answer


FOREIGN: dict[str, dict[str, str]] = {
    "a simple request": {"origin": EVIL, "content-type": "text/plain"},
    "a form": {"origin": EVIL, "content-type": "application/x-www-form-urlencoded"},
    "a sandboxed form": {"origin": "null", "content-type": "text/plain"},
    "an upload": {"origin": EVIL, "content-type": "multipart/form-data; boundary=x"},
    "JSON after a preflight": {"origin": EVIL, "content-type": "application/json"},
    "an origin that only looks local": {"origin": "http://localhost.evil.example", "content-type": "text/plain"},
    "two origins": {"origin": f"http://localhost, {EVIL}", "content-type": "text/plain"},
    "no origin, but a browser that says so": {"sec-fetch-site": "cross-site", "content-type": "text/plain"},
}


@pytest.mark.parametrize("http", ["1.1", "2"])
@pytest.mark.parametrize("what", FOREIGN)
def test_a_page_of_another_origin_is_refused(what: str, http: str, azure: Simulator, proxy: Proxies) -> None:
    """With a 403 in OpenAI's shape that the page may not read, for any content type and operation; nothing is sent to Azure."""
    through = proxy(**KEYED)
    for path in ("/v1/chat/completions", "/v1/files", "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", "/v1/models"):
        answer = ask(through, http, path=path, **FOREIGN[what])
        assert (403, "origin_not_allowed") == (answer.status_code, answer.json()["error"]["code"])
        assert "azure_openai_allowed_origins" in answer.json()["error"]["message"]
        assert "access-control-allow-origin" not in answer.headers
    assert [] == azure.requests


@pytest.mark.parametrize("http", ["1.1", "2"])
def test_a_preflight_of_another_origin_is_refused(http: str, azure: Simulator, proxy: Proxies) -> None:
    """With private network access too: nothing is allowed to it."""
    through = proxy(**KEYED)
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    answer = ask(through, http, "OPTIONS", content="", origin=EVIL, access_control_request_private_network="true", **asked)
    assert 403 == answer.status_code
    assert [] == [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("http", ["1.1", "2"])
def test_an_image_and_a_link_of_another_site_are_refused(http: str, azure: Simulator, proxy: Proxies) -> None:
    """They send no Origin; the browser says where they come from. A request that was typed, or made by the page itself, is served."""
    through = proxy(**KEYED)
    assert 403 == ask(through, http, "GET", "/v1/files", "", sec_fetch_site="cross-site").status_code
    assert [] == azure.requests
    for site in ("none", "same-origin", "same-site"):
        assert 200 == ask(through, http, "GET", "/v1/models", "", sec_fetch_site=site).status_code


@pytest.mark.parametrize("http", ["1.1", "2"])
@pytest.mark.parametrize(
    "origin",
    [
        PAGE,
        "http://localhost:3000",
        "https://localhost",
        "http://tauri.localhost",
        "http://127.0.0.1:5173",
        "http://[::1]:3000",
        "app://obsidian.md",
        "file://",
        "tauri://localhost",
        "vscode-webview://0abc",
        "vscode-file://vscode-app",
        "capacitor://localhost",
    ],
)
def test_an_allowed_page_is_served(origin: str, http: str, azure: Simulator, proxy: Proxies) -> None:
    """A page of a listed origin, of this machine, and of an application: it may read the answer, and its preflight is answered."""
    through = proxy(**ALLOWED)
    preflight = ask(through, http, "OPTIONS", content="", origin=origin, access_control_request_method="POST", sec_fetch_site="cross-site")
    answer = ask(through, http, origin=origin, sec_fetch_site="cross-site", content_type="application/json")
    assert (204, 200) == (preflight.status_code, answer.status_code)
    assert {origin} == {one.headers["access-control-allow-origin"] for one in (preflight, answer)}
    assert 1 == len(azure.requests)


@pytest.mark.parametrize(
    "options, status",
    [
        ({}, 200),
        ({"azure_openai_allowed_origins": PAGE}, 403),
        (KEYED, 403),
        (KEYED | {"azure_openai_allowed_origins": "*"}, 200),
        (KEYED | {"azure_openai_allowed_origins": "https://*.example"}, 200),
    ],
)
def test_which_pages_are_allowed(options: dict[str, Any], status: int, azure: Simulator, proxy: Proxies) -> None:
    """All while clients bring their own key, else those of this machine; a list holds in both cases."""
    assert status == ask(proxy(**options), origin=EVIL, authorization=f"Bearer {azure.key}", content_type="application/json").status_code


@pytest.mark.parametrize("way", ["ws", "wss"])
def test_a_websocket_of_another_origin_is_refused(way: str, azure: Simulator, proxy: Proxies) -> None:
    """Its upgrade is answered with 403; that of an allowed page, and of a library that names the proxy as its origin, is not."""
    through = proxy(**ALLOWED)
    url = {"ws": through.url, "wss": through.https_url}[way]
    trust = None if way == "ws" else for_websockets(through.ca)

    def created(origin: str) -> str:
        target = f"{url.replace('http', 'ws', 1)}/v1/realtime?model=gpt-realtime"
        with connect(target, origin=Origin(origin), ssl=trust, proxy=None, open_timeout=PATIENCE, close_timeout=PATIENCE) as opened:
            return str(json.loads(opened.recv(timeout=PATIENCE))["type"])

    for origin in (EVIL, "null"):
        with pytest.raises(InvalidStatus) as refused:
            created(origin)
        assert 403 == refused.value.response.status_code
    assert [] == azure.requests
    assert {"session.created"} == {created(origin) for origin in (PAGE, url)}


def test_the_body_is_not_waited_for(azure: Simulator, proxy: Proxies) -> None:
    """The refusal is there before the body is, and the next request of the connection is served."""
    through = proxy(**KEYED)
    with socket.create_connection(("127.0.0.1", through.port), PATIENCE) as client:
        head = f"Host: localhost\r\nOrigin: {EVIL}\r\nContent-Length: {len(CHAT)}\r\n\r\n"
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode())
        answer = client.recv(65536)
        client.sendall(f"{CHAT}GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        second = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert second.startswith(b"HTTP/1.1 200 ")
    assert [] == azure.requests


MODES = {"regular": (), "reverse": ("--mode", "reverse:https://api.openai.com")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("http", ["1.1", "2"])
def test_a_name_that_is_rebound_is_refused(http: str, mode: str, azure: Simulator, proxy: Proxies) -> None:
    """A page of its own name that was made to point here sends no Origin, or one that equals its Host: neither is the proxy's."""
    through = proxy(*MODES[mode], **KEYED)
    for headers in ({}, {"origin": f"http://evil.example:{through.port}"}, {"sec-fetch-site": "same-origin"}):
        answer = ask(through, http, "GET", "/v1/files", "", host=f"evil.example:{through.port}", **headers)
        assert (403, "origin" not in headers) == (answer.status_code, answer.json()["error"]["code"] == "host_not_allowed")
        if "origin" not in headers:
            assert "azure_openai_hosts" in answer.json()["error"]["message"]
    assert [] == azure.requests


OWN = ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1", "192.168.1.5:8080", "[::1]:8080", "host.docker.internal:8080"]
OWN += ["host.containers.internal", "api.openai.com", "localhost.", "gateway.example.com:8080", "chat.example.com"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("http", ["1.1", "2"])
def test_the_proxy_s_own_names(http: str, mode: str, proxy: Proxies) -> None:
    """Addresses, this machine's names, OpenAI's, those that are set, and those of allowed pages; for an Origin that equals them too."""
    through = proxy(*MODES[mode], **ALLOWED, azure_openai_hosts="gateway.example.com")
    for host in OWN:
        assert 200 == ask(through, http, "GET", "/v1/models", "", host=host).status_code
        scheme = "http" if http == "1.1" else "https"
        assert 200 == ask(through, http, "GET", "/v1/models", "", host=host, origin=f"{scheme}://{host.lower()}").status_code


def test_clients_with_their_own_keys_may_use_any_name(azure: Simulator, proxy: Proxies) -> None:
    """A page has no key of its own to use; so nothing is asked about names then."""
    assert 200 == ask(proxy(), host="evil.example", authorization=f"Bearer {azure.key}").status_code


@pytest.mark.parametrize("way", ["CONNECT", "absolute"])
def test_a_client_that_comes_through_a_proxy(way: str, azure: Simulator, proxy: Proxies) -> None:
    """Its Host is OpenAI's, and its page is asked about all the same."""
    through = proxy(**KEYED)
    url = {"CONNECT": "https://api.openai.com", "absolute": "http://api.openai.com"}[way]
    trust = ssl.create_default_context(cafile=through.ca)
    with httpx.Client(proxy=through.url, verify=trust, timeout=PATIENCE, trust_env=False) as client:
        answers = [
            client.post(f"{url}/v1/chat/completions", content=CHAT, headers=headers).status_code
            for headers in ({"origin": EVIL}, {"origin": url}, {"origin": "http://localhost:3000"}, {})
        ]
    assert [403, 200, 200, 200] == answers
    assert 3 == len(azure.requests)


def test_the_log_says_which_page_was_refused_once(azure: Simulator, proxy: Proxies) -> None:
    """The page sees only an error of its browser's; at the start the proxy says who may use the key."""
    through = proxy(**ALLOWED)
    for _ in range(2):
        ask(through, origin="https://told.example")
    ask(through, origin="https://other.example")
    through.wait_for_start_line(f"pages of local origins and {PAGE} may use the key")
    through.wait_for_log("https://other.example")
    assert 1 == sum("https://told.example" in line and "azure_openai_allowed_origins" in line for line in through.output)


# What an answer may do to the proxy's origin

HOSTILE = {
    "clear_site_data": '"*"',
    "access_control_allow_credentials": "true",
    "access_control_allow_origin": "https://evil.example",
    "set_cookie": "a=b; Path=/",
    "refresh": "0; url=https://evil.example",
    "service_worker_allowed": "/",
    "strict_transport_security": "max-age=31536000",
    "cross_origin_resource_policy": "cross-origin",
}
ASKED: dict[str, tuple[str, str, str]] = {
    "JSON": ("POST", "/v1/chat/completions", CHAT),
    "a stream": ("POST", "/v1/chat/completions", json.dumps(json.loads(CHAT) | {"stream": True})),
    "an operation of Azure's own path": ("POST", "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", CHAT),
    "binary": ("POST", "/v1/audio/speech", json.dumps({"model": "tts", "input": "hello", "voice": "alloy"})),
    "an error": ("POST", "/v1/chat/completions", json.dumps({"model": "nothing", "messages": []})),
}


@pytest.mark.parametrize("http", ["1.1", "2"])
@pytest.mark.parametrize("what", ASKED)
def test_an_answer_does_nothing_to_the_origin(what: str, http: str, azure: Simulator, proxy: Proxies) -> None:
    """No header that a browser would apply to the proxy's origin is passed on, and no HTML is shown as a page."""
    through = proxy(**ALLOWED)
    method, path, content = ASKED[what]

    azure.faults.always(lambda answer, _: answer.with_headers(**HOSTILE, content_type="text/html"))
    answer = ask(through, http, method, path, content, content_type="application/json")
    azure.faults.clear()
    as_it_is = ask(through, http, method, path, content, content_type="application/json")

    for one in (answer, as_it_is):
        assert [] == [name for name in one.headers if name.replace("-", "_") in HOSTILE]
        assert ["nosniff"] == one.headers.get_list("x-content-type-options")
    assert answer.headers["content-type"].startswith("application/json" if what == "an error" else "text/plain")
    assert as_it_is.headers["content-type"].split(";")[0] in ("application/json", "text/event-stream", "audio/mpeg")


@pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/nowhere", "/v1/organization/users"])
def test_an_answer_of_the_proxy_s_own_is_not_sniffed(path: str, proxy: Proxies) -> None:
    """Whatever the response."""
    assert ["nosniff"] == ask(proxy(**ALLOWED), "1.1", "GET", path, "").headers.get_list("x-content-type-options")
