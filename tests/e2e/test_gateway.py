"""What a client gets over the wire, through a real mitmdump: keys, errors, CORS, models, and bytes as they come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Cut, refusals, reshape
from support.processes import PATIENCE

if TYPE_CHECKING:
    from azure_simulator import Fault, Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
ORIGIN = "https://page.example"


def ask(proxy: Mitmdump, key: str = "", body: Any = CHAT, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(proxy.url + path, json=body, headers=sent | headers, timeout=PATIENCE, trust_env=False)


def test_without_a_key_nothing_is_sent(azure: Simulator, proxy: Proxies) -> None:
    """A 401 in OpenAI's shape says where one would come from."""
    answer = ask(proxy())
    assert (401, "invalid_api_key") == (answer.status_code, answer.json()["error"]["code"])
    assert [] == azure.requests


@pytest.mark.parametrize(
    "token, headers, key",
    [
        ("", {"authorization": "Bearer client"}, "client"),
        ("", {"authorization": "Bearer client", "api-key": "own"}, "own"),
        ("configured", {"authorization": "Bearer client", "api-key": "own"}, "configured"),
        ("configured", {}, "configured"),
    ],
)
def test_the_key_that_azure_gets(token: str, headers: dict[str, str], key: str, azure: Simulator, proxy: Proxies) -> None:
    """And nothing else that says who the client is."""
    through = proxy(azure_openai_token=token) if token else proxy()
    account = {"openai-organization": "org", "openai-project": "project", "openai-beta": "assistants=v2"}
    ask(through, "", **headers, **account)
    (received,) = azure.requests
    assert key == received.header("api-key")
    assert [] == [name for name, _ in received.headers if name.lower() in ("authorization", *account)]


def test_the_dated_form_leaves_the_body_alone(azure: Simulator, proxy: Proxies) -> None:
    """Byte for byte; the query stays, but for a version that may be stale."""
    content = b'{ "messages" : [{"role":"user","content":"hello"}],\n"model" : "gpt-4o", "temperature" : 1.0 }'
    url = f"{proxy().url}/v1/chat/completions?a=%20&api-version=2023-05-15"
    httpx.post(url, content=content, headers={"api-key": azure.key}, timeout=PATIENCE, trust_env=False)
    (received,) = azure.requests
    assert content == received.body
    assert "/openai/deployments/gpt-4o/chat/completions?a=%20&api-version=2024-10-21" == received.path


@pytest.mark.parametrize("path", ["/v1/chat/completions", "//v1/chat/completions", "/chat/completions"])
def test_a_base_url_may_be_written_in_any_way(path: str, azure: Simulator, proxy: Proxies) -> None:
    """With and without /v1, and with a slash too many."""
    assert 200 == ask(proxy(), azure.key, path=path).status_code


ERRORS: dict[str, tuple[Fault | None, Any, int, str, str | None]] = {
    "a wrong key": (refusals.status(401), CHAT, 401, "invalid_request_error", "invalid_api_key"),
    "no such deployment": (None, CHAT | {"model": "nothing"}, 404, "invalid_request_error", "model_not_found"),
    "too many requests": (refusals.status(429, retry_after=7), CHAT, 429, "requests", "rate_limit_exceeded"),
    "a filtered prompt": (refusals.content_filter, CHAT, 400, "invalid_request_error", "content_filter"),
    "an HTML page": (refusals.status(503, "html"), CHAT, 503, "server_error", None),
    "no body": (refusals.status(500, "empty"), CHAT, 500, "server_error", None),
    "no answer": (Cut(), CHAT, 502, "server_error", "upstream_error"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_openais(name: str, azure: Simulator, proxy: Proxies) -> None:
    """Whatever Azure makes of it; with the id to ask about, and when to come back."""
    fault, body, status, type, code = ERRORS[name]
    if fault:
        azure.faults.always(fault)
    answer = ask(proxy(azure_openai_model_mapper="mine=d"), azure.key, body)
    error = answer.json()["error"]
    assert (status, type) == (answer.status_code, "requests" if error["type"] == "tokens" else error["type"])
    assert code in (None, error["code"])
    assert {"message", "type", "param", "code"} <= set(error)
    assert answer.headers["x-request-id"]
    if name == "too many requests":
        assert "7" == answer.headers["retry-after"]
    if name == "no such deployment":
        assert "nothing" in error["message"]
        assert "mine" in error["message"]
    if name == "a filtered prompt":
        assert "ResponsibleAIPolicyViolation" == error["innererror"]["code"]


def test_an_endpoint_that_is_not_there(proxy: Proxies) -> None:
    """A 502 in OpenAI's shape, and the same connection serves the next request."""
    through = proxy(azure_openai_endpoint="http://127.0.0.1:9")
    with httpx.Client(base_url=through.url, headers={"api-key": "k"}, timeout=PATIENCE, trust_env=False) as client:
        for _ in range(2):
            answer = client.post("/v1/chat/completions", json=CHAT)
            assert (502, "upstream_unreachable") == (answer.status_code, answer.json()["error"]["code"])
        assert 200 == client.get("/v1/models").status_code


def test_a_page_of_another_origin_may_ask(azure: Simulator, proxy: Proxies) -> None:
    """The preflight allows what it names, and every answer may be read, errors too."""
    through = proxy()
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os",
        "access-control-request-private-network": "true",
    }
    preflight = httpx.options(f"{through.url}/v1/chat/completions", headers=asked, timeout=PATIENCE, trust_env=False)
    assert "authorization,x-stainless-os" == preflight.headers["access-control-allow-headers"]
    assert "true" == preflight.headers["access-control-allow-private-network"]
    assert int(preflight.headers["access-control-max-age"])
    answers = [
        preflight,
        ask(through, azure.key, origin=ORIGIN),
        ask(through, azure.key, CHAT | {"stream": True}, origin=ORIGIN),
        ask(through, origin=ORIGIN),
        ask(through, azure.key, path="/v1/organization/users", origin=ORIGIN),
        ask(through, azure.key, CHAT | {"model": "nothing"}, origin=ORIGIN),
    ]
    assert [204, 200, 200, 401, 404, 404] == [answer.status_code for answer in answers]
    assert {ORIGIN} == {answer.headers["access-control-allow-origin"] for answer in answers}
    assert all("x-request-id" in answer.headers["access-control-expose-headers"] for answer in answers[1:])


def test_what_the_proxy_answers_itself(azure: Simulator, proxy: Proxies) -> None:
    """Models from the mapping, a word for who opens the address, and a plain 404 outside the API."""
    through = proxy(azure_openai_model_mapper="gpt-4o=prod,o*=reasoning")
    with httpx.Client(base_url=through.url, timeout=PATIENCE, trust_env=False) as client:
        assert ["gpt-4o", "reasoning"] == [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert "o3" == client.get("/v1/models/o3").json()["id"]
        assert "model_not_found" == client.get("/v1/models/nothing").json()["error"]["code"]
        assert "Azure OpenAI Proxy" in client.get("/").text
        assert (404, "text/plain; charset=utf-8") == ((outside := client.get("/favicon.ico")).status_code, outside.headers["content-type"])
    assert [] == azure.requests


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert "[DONE]" == data[-1]
    assert answer.text.endswith("data: [DONE]\n\n")
    return [json.loads(chunk) for chunk in data[:-1]]


SHAPES: dict[str, list[Fault]] = {
    "as Azure writes it": [],
    "asynchronous filter": [reshape.async_filter()],
    "no [DONE]": [reshape.no_done],
    "[DONE] twice": [reshape.double_done],
    "[DONE] without its blank line": [reshape.unfinished_done],
    "gzip": [reshape.compressed("gzip")],
    "deflate": [reshape.compressed("deflate")],
    "no content type": [reshape.no_content_type],
    "empty chunks": [reshape.empty_chunks],
    "a null delta": [reshape.null_content],
}


@pytest.mark.parametrize("faults", SHAPES.values(), ids=SHAPES)
def test_a_stream_is_openais(faults: list[Fault], azure: Simulator, proxy: Proxies) -> None:
    """However Azure writes it: no chunk that breaks a client, the role, the reason, the usage, and [DONE] once."""
    azure.faults.next(*faults)
    answer = ask(proxy(), azure.key, CHAT | {"stream": True, "stream_options": {"include_usage": True}})
    assert "text/event-stream" == answer.headers["content-type"].partition(";")[0]
    seen = chunks(answer)
    assert "filter" not in answer.text
    assert "latency_checkpoint" not in answer.text
    assert all(isinstance(choice["delta"], dict) for chunk in seen for choice in chunk["choices"])
    assert all(chunk["choices"] for chunk in seen[:-1])
    assert "assistant" == seen[0]["choices"][0]["delta"]["role"]
    assert ["stop"] == [c["finish_reason"] for chunk in seen for c in chunk["choices"] if c["finish_reason"]]
    assert [] == seen[-1]["choices"]
    assert seen[-1]["usage"]["total_tokens"]


@pytest.mark.parametrize("fault", [Cut(3), reshape.error_event(2)], ids=["cut", "error"])
def test_half_an_answer_is_not_taken_for_a_whole_one(fault: Fault, azure: Simulator, proxy: Proxies) -> None:
    """A stream that was cut, or that ended in an error, gets no [DONE]."""
    azure.faults.next(fault)
    received = []
    with httpx.Client(headers={"api-key": azure.key}, timeout=PATIENCE, trust_env=False) as client:
        request = client.stream("POST", f"{proxy().url}/v1/chat/completions", json=CHAT | {"stream": True})
        try:
            with request as answer:
                received += [*answer.iter_lines()]
        except httpx.RemoteProtocolError:
            pass
    assert "data: [DONE]" not in received


def test_not_normalized_means_bytes_as_they_come(azure: Simulator, proxy: Proxies) -> None:
    """The same stream that Azure sent, its first chunk and its filters included."""
    body = CHAT | {"stream": True}
    url = f"{azure.http_url}/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"
    direct = httpx.post(url, json=body, headers={"api-key": azure.key}, timeout=PATIENCE, trust_env=False)
    through = ask(proxy(azure_openai_normalize=False), azure.key, body)

    def shape(answer: httpx.Response) -> list[tuple[list[str], list[list[str]]]]:
        return [(list(chunk), [list(choice) for choice in chunk["choices"]]) for chunk in chunks(answer)]

    assert "prompt_filter_results" in through.text
    assert shape(direct) == shape(through)


def test_openai_mode_changes_nothing(azure: Simulator, proxy: Proxies) -> None:
    """The request goes where OpenAI is (here: another server), its path, key and body as they came."""
    through = proxy(azure_openai_proxy_mode="openai", azure_openai_passthrough_endpoint=azure.http_url, azure_openai_endpoint=None)
    answer = ask(through, "client", path="/v1/chat/completions?api-version=1")
    (received,) = azure.requests
    assert ("/v1/chat/completions?api-version=1", "Bearer client") == (received.path, received.header("authorization"))
    assert CHAT == received.json
    assert received.status == answer.status_code


def test_azures_own_clients_are_served(azure: Simulator, proxy: Proxies) -> None:
    """In the form they speak, with the configured key."""
    through = proxy(azure_openai_token=azure.key)
    path = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01"
    azure_says = {
        path: ask(through, "", path=path).status_code,
        "/openai/v1": ask(through, "", path="/openai/v1/chat/completions").status_code,
    }
    assert [path, "/openai/v1/chat/completions"] == [received.path for received in azure.requests]
    assert 200 == azure_says["/openai/v1"]
