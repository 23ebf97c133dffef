"""Client keys, limits and budgets through a real mitmdump."""

from __future__ import annotations

import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from azure_simulator import Cut, Gate, status
from support import operations
from support.curl import Curl
from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

NAMES = (
    *("plain", "other", "picky", "disabled", "expired", "narrow", "tokens", "small", "places", "rich", "poor", "unpriced", "unmetered"),
    *("member", "fellow", "left", "page", "streams", "socket", "sdk", "twice", "failing", "ended", "query", "waiting", "second"),
)
KEYS = {name: f"sk-of-{name}-0123456789abcdef" for name in NAMES}
CONFIG = f"""\
azure_openai_backends:
  - {{name: one, endpoint: ENDPOINT, token: "${{AZURE_KEY}}"}}
  - {{name: two, endpoint: ENDPOINT, token: "${{AZURE_KEY}}", priority: 1}}
azure_openai_model_mapper: "gpt-4o=gpt-4o,gpt-4.1=gpt-4.1,rt=gpt-realtime"
azure_openai_client_groups:
  - {{name: team, requests_per_minute: 2}}
azure_openai_clients:
  - {{name: plain, key: "${{PLAIN_KEY}}"}}
  - {{name: other, key: "{KEYS["other"]}"}}
  - {{name: query, key: "{KEYS["query"]}"}}
  - {{name: picky, key: "{KEYS["picky"]}", models: ["gpt-4o*", rt]}}
  - {{name: disabled, key: "{KEYS["disabled"]}", disabled: true}}
  - {{name: expired, key: "{KEYS["expired"]}", expires: 2020-01-31}}
  - {{name: narrow, key: "{KEYS["narrow"]}", requests_per_minute: 1}}
  - {{name: tokens, key: "{KEYS["tokens"]}", tokens_per_minute: 1000}}
  - {{name: small, key: "{KEYS["small"]}", tokens_per_minute: 100}}
  - {{name: places, key: "{KEYS["places"]}", max_parallel: 1}}
  - {{name: rich, key: "{KEYS["rich"]}", budget_usd: 5, budget_period: total}}
  - {{name: poor, key: "{KEYS["poor"]}", budget_usd: 0.000001, budget_period: day}}
  - {{name: ended, key: "{KEYS["ended"]}", budget_usd: 0, budget_period: total}}
  - {{name: unpriced, key: "{KEYS["unpriced"]}", budget_usd: 5}}
  - {{name: unmetered, key: "{KEYS["unmetered"]}", budget_usd: 5, unmetered: true}}
  - {{name: member, key: "{KEYS["member"]}", group: team}}
  - {{name: fellow, key: "{KEYS["fellow"]}", group: team}}
  - {{name: left, key: "{KEYS["left"]}", tokens_per_minute: 100000, budget_usd: 5}}
  - {{name: page, key: "{KEYS["page"]}", requests_per_minute: 5, tokens_per_minute: 10000, max_parallel: 2, budget_usd: 2}}
  - {{name: streams, key: "{KEYS["streams"]}", tokens_per_minute: 10000, budget_usd: 5}}
  - {{name: socket, key: "{KEYS["socket"]}", requests_per_minute: 1}}
  - {{name: waiting, key: "{KEYS["waiting"]}", max_parallel: 1}}
  - {{name: second, key: "{KEYS["second"]}", backends: [two]}}
  - {{name: sdk, key: "{KEYS["sdk"]}", budget_usd: 0}}
  - {{name: twice, key: "{KEYS["twice"]}", requests_per_minute: 100, tokens_per_minute: 100000}}
  - {{name: failing, key: "{KEYS["failing"]}", requests_per_minute: 100, tokens_per_minute: 100000}}
"""
WORDS = "one two three"
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": WORDS}]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teams") / "teams.yaml"


@pytest.fixture
def proxy_of_teams(azure: Simulator, proxy: Proxies, config: Path) -> Mitmdump:
    if not config.exists():
        config.write_text(CONFIG.replace("ENDPOINT", azure.http_url))
    return proxy(azure_openai_endpoint=None, azure_openai_config=config, env={"PLAIN_KEY": KEYS["plain"], "AZURE_KEY": azure.key})


class Client:
    """A client of the proxy with the key of a name."""

    def __init__(self, proxy: Mitmdump, name: str = "") -> None:
        headers = {"authorization": f"Bearer {KEYS[name]}"} if name else {}
        self.http = httpx.Client(base_url=proxy.url, headers=headers, timeout=PATIENCE)

    def chat(self, **members: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=CHAT | members)

    def key(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/azure-openai-proxy/key").json()
        return found


type Clients = Callable[[str], Client]


@pytest.fixture
def client(proxy_of_teams: Mitmdump) -> Iterator[Clients]:
    """Clients by their names; "" has no key."""
    with ExitStack() as stack:

        def made(name: str) -> Client:
            found = Client(proxy_of_teams, name)
            stack.enter_context(found.http)
            return found

        yield made


def error(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    return found


@pytest.mark.parametrize("native", [False, True])
def test_every_operation_needs_a_key(azure: Simulator, proxy_of_teams: Mitmdump, client: Clients, native: bool) -> None:
    """Each operation, also on its native path, refuses a request without a key before it reaches Azure."""
    http = client("").http
    for row in operations.rows():
        target = re.sub(r"\{\w+\}", "x", row.path)
        target = target.replace("/v1/", "/openai/v1/", 1) if native else target
        if row.method == "WS":
            with pytest.raises(InvalidStatus) as refused, connect(proxy_of_teams.url.replace("http", "ws", 1) + target):
                pass
            assert 401 == refused.value.response.status_code, row
        else:
            response = http.request(row.method, target, content=b"{}" if row.body != "-" else b"")
            assert (401, "invalid_api_key") == (response.status_code, error(response)["code"]), row
    assert [] == azure.requests


def test_a_key_is_required(azure: Simulator, proxy_of_teams: Mitmdump, client: Clients) -> None:
    """A known key works, without reaching Azure; an unknown, disabled or expired one gets a 401 with the reason."""
    assert 200 == client("plain").chat().status_code
    sent = azure.wait_for_request()
    assert azure.key == sent.header("api-key")
    assert KEYS["plain"].encode() not in repr(sent).encode()
    for name, reason in (("disabled", "disabled"), ("expired", "expired")):
        response = client(name).chat()
        assert (401, "invalid_api_key") == (response.status_code, error(response)["code"])
        assert reason in error(response)["message"]
    unknown = httpx.post(f"{proxy_of_teams.url}/v1/chat/completions", json=CHAT, headers={"api-key": "sk-unknown-key"})
    assert (401, "invalid_api_key") == (unknown.status_code, error(unknown)["code"])
    assert "sk-unknown-key" not in unknown.text
    assert 200 == httpx.get(f"{proxy_of_teams.url}/healthz").status_code
    assert 204 == httpx.options(f"{proxy_of_teams.url}/v1/chat/completions", headers={"origin": "https://a.example"}).status_code


def test_where_a_key_counts(azure: Simulator, proxy_of_teams: Mitmdump) -> None:
    """A key in the query, or as a subprotocol, counts for WebSockets only, and reaches neither Azure nor the log."""
    key = KEYS["query"]
    url = f"{proxy_of_teams.url}/v1/chat/completions"
    assert 401 == httpx.post(f"{url}?api-key={key}", json=CHAT).status_code
    assert 401 == httpx.post(url, json=CHAT, headers={"sec-websocket-protocol": f"openai-insecure-api-key.{key}"}).status_code
    assert 200 == httpx.post(url, json=CHAT, headers={"api-key": key, "x-api-key": key}).status_code
    socket = f"{proxy_of_teams.url.replace('http', 'ws', 1)}/v1/realtime?model=rt"
    for target, protocols in ((f"{socket}&api-key={key}", None), (socket, ["realtime", f"openai-insecure-api-key.{key}"])):
        with connect(target, subprotocols=protocols) as connection:  # type: ignore[arg-type]
            assert "session.created" == json.loads(connection.recv(timeout=PATIENCE))["type"]
    assert 3 == len(azure.requests)
    assert key not in "".join(map(repr, azure.requests))
    assert key not in "".join((*proxy_of_teams.output, *proxy_of_teams.records))


def test_an_upload_is_refused_before_its_body(proxy_of_teams: Mitmdump, client: Clients) -> None:
    """A client that waits for a 100 response gets the 401 instead."""
    with socket.create_connection(("127.0.0.1", proxy_of_teams.port), timeout=PATIENCE) as plain:
        plain.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        assert plain.recv(4096).startswith(b"HTTP/1.1 401")


def test_the_models_of_a_key(azure: Simulator, client: Clients) -> None:
    """Other models are refused wherever they are named, and not listed."""
    me = client("picky")
    assert ["gpt-4o", "rt"] == sorted(model["id"] for model in me.http.get("/v1/models").json()["data"])
    refused = [
        me.chat(model="gpt-4.1"),
        me.http.post("/v1/chat/completions", content=b'{"model": "gpt-4o", "messages": [], "model": "gpt-4.1"}'),
        me.http.post("/openai/deployments/gpt-4.1/chat/completions?api-version=2024-10-21", json=CHAT),
        me.http.post("/openai/v1/chat/completions", json=CHAT | {"model": "gpt-4.1"}),
        me.http.post("/v1/audio/transcriptions", data={"model": "whisper-1"}, files={"file": b"x"}),
    ]
    for response in refused:
        assert (403, "model_not_found") == (response.status_code, error(response)["code"])
        assert "gpt-4o*, rt" in error(response)["message"]
    assert [] == azure.requests
    assert 200 == me.chat().status_code
    assert 200 == me.http.post("/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", json=CHAT).status_code


def test_requests_per_minute(azure: Simulator, client: Clients) -> None:
    """The second request gets a 429 that names the wait and the limit; what the proxy answers itself does not count."""
    me = client("narrow")
    assert 200 == me.http.get("/v1/models").status_code
    first, second = me.chat(), me.chat()
    assert (200, "1", "0") == (first.status_code, *(first.headers[f"x-ratelimit-{what}-requests"] for what in ("limit", "remaining")))
    assert (429, "rate_limit_exceeded") == (second.status_code, error(second)["code"])
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert int(second.headers["retry-after-ms"]) <= 60_000
    assert second.headers["x-ratelimit-reset-requests"]
    assert "client narrow" in error(second)["message"]
    assert 1 == len(azure.requests)


def test_tokens_per_minute(azure: Simulator, client: Clients) -> None:
    """The estimate is reserved, real usage replaces it, and input alone beyond the limit is a 400 with both numbers."""
    me = client("tokens")
    gate = Gate(None)
    azure.faults.next(gate)
    with ThreadPoolExecutor() as threads:
        held = threads.submit(me.chat, max_tokens=900)
        assert gate.reached.wait(PATIENCE)
        refused = client("tokens").chat(max_tokens=900)
        gate.release()
    assert (429, "tokens", "rate_limit_exceeded") == (refused.status_code, error(refused)["type"], error(refused)["code"])
    usage = held.result().json()["usage"]
    assert usage["total_tokens"] == 1000 - me.key()["limits"]["tokens_per_minute"]["remaining"]
    assert 200 == me.chat(max_tokens=900).status_code
    large = client("small").chat(messages=[{"role": "user", "content": "x" * 8000}])
    assert 400 == large.status_code
    assert "2000" in error(large)["message"]
    assert "100 " in error(large)["message"]
    assert 200 == client("small").chat().status_code  # capped at the limit


def test_parallel_requests(azure: Simulator, client: Clients) -> None:
    """A taken place is a 429 with one second; it is free after its request."""
    me = client("places")
    azure.faults.next(gate := Gate(1))
    with me.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
        assert gate.reached.wait(PATIENCE)
        other = client("places")
        refused = other.chat()
        assert (429, "1") == (refused.status_code, refused.headers["retry-after"])
        gate.release()
        assert b"[DONE]" in stream.read()
    assert 200 == other.chat().status_code


def test_a_group_shares_its_limits(client: Clients) -> None:
    """Two clients of a group use one limit, and the refusal names the group."""
    member, fellow = client("member"), client("fellow")
    assert [200, 200] == [member.chat().status_code, fellow.chat().status_code]
    refused = member.chat()
    assert 429 == refused.status_code
    assert "group team" in error(refused)["message"]


def test_a_budget(client: Clients) -> None:
    """The request that crosses the budget completes; the next one is a 429 that SDKs do not retry and that names the renewal."""
    me = client("poor")
    assert 200 == me.chat().status_code
    refused = me.chat()
    assert (429, "insufficient_quota", "insufficient_quota") == (refused.status_code, error(refused)["type"], error(refused)["code"])
    assert "false" == refused.headers["x-should-retry"]
    assert 0 < int(refused.headers["retry-after"]) <= 86400
    gone = client("ended").chat()
    assert (429, None) == (gone.status_code, gone.headers.get("retry-after"))
    shown = me.key()["budget"]
    assert ("day", 0.000001) == (shown["period"], shown["limit_usd"])
    assert shown["used_usd"] > shown["limit_usd"]


def test_a_stream_is_charged_before_its_end(client: Clients) -> None:
    """The usage of a stream settles the limit and the budget before the client has read its last event."""
    me = client("streams")
    with me.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
        text = stream.read()
    assert b"[DONE]" in text
    assert b'"usage"' not in text
    shown = me.key()
    assert 9900 < shown["limits"]["tokens_per_minute"]["remaining"] < 10000
    assert 0 < shown["budget"]["used_usd"] < 0.01


def test_a_client_that_leaves_is_charged(azure: Simulator, client: Clients) -> None:
    """A stream that its client has left counts as the estimate of its input and the text that was delivered."""
    me = client("left")
    azure.faults.next(gate := Gate(3))
    words = "x" * 40_000
    with me.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True, "messages": [{"role": "user", "content": words}]}):
        assert gate.reached.wait(PATIENCE)
    shown = me.key()
    while not shown["budget"]["used_usd"]:  # the test's time limit ends it
        shown = me.key()
    gate.release()
    assert 89_900 <= shown["limits"]["tokens_per_minute"]["remaining"] <= 90_000


def test_models_without_a_price(azure: Simulator, client: Clients) -> None:
    """A client with a budget gets a 403 that names the deployment to price, until a deployment has answered with a model of a price."""
    me = client("unpriced")
    refused = me.chat(model="my-model")
    assert 403 == refused.status_code
    assert "my-model" in error(refused)["message"]
    assert "azure_openai_prices" in error(refused)["message"]
    assert "false" == refused.headers["x-should-retry"]
    assert [] == azure.requests
    assert 200 == me.http.get("/v1/files").status_code


def test_unmetered_work(client: Clients) -> None:
    """Work whose tokens the proxy does not see needs `unmetered`, if the client has a budget."""
    body = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    refused = client("rich").http.post("/v1/batches", json=body)
    assert 403 == refused.status_code
    assert "unmetered" in error(refused)["message"]
    assert 403 != client("unmetered").http.post("/v1/batches", json=body).status_code
    assert 403 != client("plain").http.post("/v1/batches", json=body).status_code


def test_the_page_of_a_key(client: Clients) -> None:
    """A client sees its limits and its budget, also in the form of the billing API; this counts nothing."""
    me = client("page")
    fresh = me.key()
    assert {"limit": 5, "remaining": 5, "reset_seconds": 0} == fresh["limits"]["requests_per_minute"]
    assert ("page", None, ["*"], None) == (fresh["name"], fresh["group"], fresh["models"], fresh["expires"])
    me.chat()
    shown = me.key()
    assert 4 == shown["limits"]["requests_per_minute"]["remaining"]
    assert {"limit": 2, "remaining": 2} == shown["limits"]["max_parallel"]
    assert ("month", 2.0) == (shown["budget"]["period"], shown["budget"]["limit_usd"])
    assert 2.0 == me.http.get("/v1/dashboard/billing/subscription").json()["hard_limit_usd"]
    usage = me.http.get("/v1/dashboard/billing/usage?start_date=2020-01-01&end_date=2099-01-01").json()["total_usage"]
    assert round(shown["budget"]["used_usd"] * 100, 6) == usage > 0
    plain = client("plain").key()
    assert ({}, None) == (plain["limits"], plain["budget"])


def test_failures_count_no_tokens(azure: Simulator, client: Clients) -> None:
    """An answer of 400 and above uses no tokens, and a request that was sent twice counts once."""
    me = client("failing")
    azure.faults.always(status(500))
    assert 500 == me.chat().status_code
    azure.faults.clear()
    assert {"requests_per_minute": 99, "tokens_per_minute": 100_000} == {name: one["remaining"] for name, one in me.key()["limits"].items()}


def test_attempts_count_once(azure: Simulator, client: Clients) -> None:
    """A request that fails over, is repaired or is cut off counts once, and so do its tokens."""
    me = client("twice")
    azure.faults.next(status(429))
    used = me.chat().json()["usage"]["total_tokens"]
    used += me.chat(model="o3-mini", max_tokens=50).json()["usage"]["total_tokens"]
    assert 4 == len(azure.requests)
    azure.faults.next(Cut(2))
    with (
        me.http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        stream.read()
    shown = me.key()["limits"]
    assert 97 == shown["requests_per_minute"]["remaining"]
    assert used + 4 <= 100_000 - shown["tokens_per_minute"]["remaining"] <= used + 20


def test_the_backends_of_a_client(azure: Simulator, client: Clients) -> None:
    """A client uses only those of its list."""
    azure.faults.always(status(500))
    assert 500 == client("second").chat().status_code
    assert 1 == len(azure.requests)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("way", ["h2", "CONNECT", "absolute", "reverse", "socks5"])
def test_every_way_of_connecting_needs_a_key(way: str, azure: Simulator, config: Path, proxy: Proxies, proxy_of_teams: Mitmdump) -> None:
    """A request without a key is refused, and one with a key is served."""
    modes = {"reverse": "reverse:https://api.openai.com", "socks5": "socks5"}
    through = proxy_of_teams
    if way in modes:
        env = {"PLAIN_KEY": KEYS["plain"], "AZURE_KEY": azure.key}
        through = proxy("--mode", modes[way], azure_openai_endpoint=None, azure_openai_config=config, env=env)
    base = {"h2": through.https_url, "absolute": "http://api.openai.com", "reverse": through.url}.get(way, "https://api.openai.com")
    leads = {"h2": ["--http2"], "reverse": [], "socks5": ["--proxy", f"socks5h://127.0.0.1:{through.port}"]}
    curl = Curl(["--cacert", str(through.ca), *leads.get(way, ["--proxy", through.url])])
    ask = ("-H", "content-type: application/json", "-d", json.dumps(CHAT), f"{base}/v1/chat/completions")
    assert (401, 0) == (curl(*ask).status, len(azure.requests))
    assert 200 == curl(*ask, "-H", f"Authorization: Bearer {KEYS['plain']}").status


def test_the_sdk_asks_once_for_a_spent_budget(azure: Simulator, proxy_of_teams: Mitmdump, client: Clients) -> None:
    """OpenAI's own client does not retry a 429 of a budget."""
    sdk = openai.OpenAI(api_key=KEYS["sdk"], base_url=f"{proxy_of_teams.url}/v1", max_retries=3)
    with sdk, pytest.raises(openai.RateLimitError) as refused:
        sdk.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": WORDS}])
    retries = refused.value.response.request.headers["x-stainless-retry-count"]
    assert ("insufficient_quota", "0", 0) == (refused.value.code, retries, len(azure.requests))


def test_the_sdk_retries_a_rate_limit(azure: Simulator, proxy_of_teams: Mitmdump, client: Clients) -> None:
    """OpenAI's own client waits for the time that the 429 names, and succeeds."""
    azure.faults.next(gate := Gate(1))

    def note(response: Any) -> None:
        if response.status_code == 429:
            gate.release()

    http = openai.DefaultHttpxClient(event_hooks={"response": [note]})
    sdk = openai.OpenAI(api_key=KEYS["waiting"], base_url=f"{proxy_of_teams.url}/v1", max_retries=5, http_client=http)
    with sdk, client("waiting").http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
        assert gate.reached.wait(PATIENCE)
        with ThreadPoolExecutor() as threads:
            waits = threads.submit(lambda: sdk.chat.completions.with_raw_response.create(**CHAT))
            stream.read()
            answer = waits.result()
    assert (200, True) == (answer.status_code, int(answer.http_request.headers["x-stainless-retry-count"]) > 0)


def test_a_websocket_reserves_for_each_response(proxy_of_teams: Mitmdump) -> None:
    """The second response of a minute gets an error event, and its message does not reach Azure."""
    with connect(
        f"{proxy_of_teams.url.replace('http', 'ws', 1)}/v1/realtime?model=rt",
        additional_headers={"authorization": f"Bearer {KEYS['socket']}"},
    ) as connection:

        def receive() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(connection.recv(timeout=PATIENCE))
            return found

        assert "session.created" == receive()["type"]
        connection.send(json.dumps({"type": "response.create"}))
        while receive()["type"] != "response.done":
            pass
        connection.send(json.dumps({"type": "response.create"}))
        refused = receive()
    assert ("error", "rate_limit_exceeded") == (refused["type"], refused["error"]["code"])
