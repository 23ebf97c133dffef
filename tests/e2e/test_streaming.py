"""A stream is never held back: each test holds the simulator, not the clock."""

from __future__ import annotations

import json
import ssl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_simulator import Cut, Gate, reshape
from support import PATIENCE, only_http2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Fault, Simulator
    from conftest import Proxies
    from support import Mitmdump

CHAT = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
WAYS = ["http", "https", "h2", "HTTPS_PROXY"]


@contextmanager
def client(way: str, proxy: Mitmdump, key: str) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=proxy.ca)
    ways: dict[str, dict[str, Any]] = {
        "http": {"base_url": proxy.url},
        "https": {"base_url": proxy.https_url, "verify": trust},
        "h2": {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True},
        "HTTPS_PROXY": {"base_url": "https://api.openai.com", "verify": trust, "proxy": proxy.url},
    }
    with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE, trust_env=False, **ways[way]) as opened:
        yield opened


def data(lines: Iterator[str]) -> Iterator[str]:
    """What the events carry."""
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


def endpoint(azure: Simulator, upstream: str) -> dict[str, Any]:
    """The options for an Azure by that scheme."""
    return {"azure_openai_endpoint": azure.https_url, "ssl_verify_upstream_trusted_ca": azure.ca} if upstream == "https" else {}


@pytest.mark.parametrize("upstream", ["http", "https"])
@pytest.mark.parametrize("way", WAYS)
def test_an_event_arrives_while_azure_holds_back_the_next(way: str, upstream: str, azure: Simulator, proxy: Proxies) -> None:
    """With every event of the answer held back in turn, the client has each one before the next leaves Azure."""
    gates = [Gate(before=chunk) for chunk in range(2, 8)]
    azure.faults.next(*reversed(gates))  # each goes in before those that are there

    with (
        client(way, proxy(**endpoint(azure, upstream)), azure.key) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT) as response,
    ):
        events = data(response.iter_lines())
        seen = []
        for gate in gates:
            seen.append(json.loads(next(events))["choices"][0]["delta"].get("content"))
            assert gate.reached.wait(PATIENCE)
            gate.release()
        rest = list(events)

    assert ["", "You", " said", ":", " one", " two"] == seen
    assert "[DONE]" == rest[-1]


@pytest.mark.parametrize("upstream", ["http", "https"])
@pytest.mark.parametrize(
    "shape",
    [reshape.no_content_type, reshape.compressed("gzip"), reshape.crlf, reshape.split(7), reshape.async_filter()],
    ids=["no content type", "gzip", "crlf", "split", "async filter"],
)
def test_an_event_arrives_however_azure_writes_it(shape: Fault, upstream: str, azure: Simulator, proxy: Proxies) -> None:
    """No shape of Azure's stream makes the proxy wait for its end."""
    gate = Gate(before=3)
    azure.faults.next(gate, shape)

    with (
        client("http", proxy(**endpoint(azure, upstream)), azure.key) as http,
        http.stream("POST", "/v1/chat/completions", json=CHAT) as response,
    ):
        events = data(response.iter_lines())
        first = json.loads(next(events))
        assert gate.reached.wait(PATIENCE)
        gate.release()
        rest = list(events)

    assert "assistant" == first["choices"][0]["delta"]["role"]
    assert "text/event-stream" == response.headers["content-type"].partition(";")[0]
    assert ["[DONE]"] == [event for event in rest if not event.startswith("{")]


def test_completions_stream_too(azure: Simulator, proxy: Proxies) -> None:
    """The older endpoint is held back no more than the newer."""
    gate = Gate(before=2)
    azure.faults.next(gate)
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": "one two three", "stream": True}

    with client("http", proxy(), azure.key) as http, http.stream("POST", "/v1/completions", json=body) as response:
        events = data(response.iter_lines())
        first = json.loads(next(events))
        assert gate.reached.wait(PATIENCE)
        gate.release()
        rest = list(events)

    assert isinstance(first["choices"][0]["text"], str)
    assert "[DONE]" == rest[-1]


def test_azure_hears_that_the_client_left(azure: Simulator, proxy: Proxies) -> None:
    """A client that hangs up in the middle of a stream frees Azure from writing the rest."""
    azure.faults.next(Gate(before=3))

    with client("http", proxy(), azure.key) as http, http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        next(data(response.iter_lines()))

    received = azure.wait_for_request()
    assert received.done.wait(PATIENCE)
    assert "client left" == received.outcome


@pytest.mark.parametrize("upstream", ["http", "https"])
@pytest.mark.parametrize("way", WAYS)
def test_half_an_answer_says_so(way: str, upstream: str, azure: Simulator, proxy: Proxies) -> None:
    """A stream that breaks off ends with an error behind all that came; the client's next request is answered."""
    azure.faults.next(Cut(4))

    lines: list[str] = []
    with client(way, proxy(**endpoint(azure, upstream)), azure.key) as http:
        with suppress(httpx.RemoteProtocolError), http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
            lines.extend(response.iter_lines())
        after = http.post("/v1/chat/completions", json=CHAT | {"stream": False})

    *before, last = (json.loads(event) for event in data(iter(lines)))
    assert ["", "You", " said"] == [event["choices"][0]["delta"].get("content") for event in before]
    assert "upstream_error" == last["error"]["code"]
    assert 200 == after.status_code
