"""A stream is never held back: each test holds the simulator, not the clock."""

from __future__ import annotations

import json
import ssl
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from azure_simulator import Cut, Gate, reshape
from support.processes import PATIENCE, only_http2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator import Fault, Simulator
    from conftest import Proxies
    from support.processes import Mitmdump

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


def test_azure_hears_that_a_client_with_several_streams_left(azure: Simulator, proxy: Proxies) -> None:
    """A client that closes its HTTP/2 connection in the middle of three streams frees Azure from writing the rest of each."""
    gate = Gate(before=3)
    azure.faults.always(gate)

    with client("h2", proxy(), azure.key) as http:
        for _ in range(3):
            request = http.build_request("POST", "/v1/chat/completions", json=CHAT)
            next(data(http.send(request, stream=True).iter_lines()))

    for received in azure.requests:
        assert received.done.wait(PATIENCE)
    assert ["client left"] * 3 == [received.outcome for received in azure.requests]


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


MESSAGES: Any = CHAT["messages"]
SHAPES: dict[str, Fault] = {
    "empty chunks": reshape.empty_chunks,
    "a null delta": reshape.null_content,
    "comments": reshape.comments,
    "the asynchronous filter": reshape.async_filter(),
}


@contextmanager
def sdk(way: str, form: str, azure: Simulator, proxy: Proxies) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which goes that way to Azure's API of that form."""
    through = proxy(azure_openai_apiversion=form)
    with client(way, through, azure.key) as http:
        base = str(http.base_url.join("/v1"))
        yield openai.OpenAI(api_key=azure.key, base_url=base, http_client=http, max_retries=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["2024-10-21", "v1"])
@pytest.mark.parametrize("way", ["http", "h2"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_openai_s_client_reads_every_shape(shape: Fault, way: str, form: str, azure: Simulator, proxy: Proxies) -> None:
    """A program that takes choices[0].delta of each chunk, as OpenAI's examples do, reads the answer; of completions the text."""
    azure.faults.always(shape)
    with sdk(way, form, azure, proxy) as ai:
        chat = list(ai.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True))
        texts = list(ai.completions.create(model="gpt-3.5-turbo-instruct", prompt="one two three", stream=True))

    assert "You said: one two three" == "".join(chunk.choices[0].delta.content or "" for chunk in chat)
    assert "stop" == chat[-1].choices[0].finish_reason
    assert all("chat.completion.chunk" == chunk.object for chunk in chat)
    assert "".join(chunk.choices[0].text for chunk in texts)
    assert "stop" == texts[-1].choices[0].finish_reason


@pytest.mark.parametrize("form", ["2024-10-21", "v1"])
@pytest.mark.parametrize("way", ["http", "h2"])
def test_openai_s_client_reads_an_answer_without_a_message(way: str, form: str, azure: Simulator, proxy: Proxies) -> None:
    """A program that takes the message's content, or the text, of an answer that the filter took away finds nothing in it."""
    azure.faults.always(reshape.null_message)
    with sdk(way, form, azure, proxy) as ai:
        chat = ai.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        completion = ai.completions.create(model="gpt-3.5-turbo-instruct", prompt="one two three")

    assert ("assistant", None) == (chat.choices[0].message.role, chat.choices[0].message.content)
    assert "" == completion.choices[0].text


RESPONSE = {"model": "gpt-4o", "stream": True, "input": "one two three"}


@pytest.mark.parametrize("fault, code", [(reshape.typed_error(2), "rate_limit_exceeded"), (Cut(2), "upstream_error")], ids=["error", "cut"])
@pytest.mark.parametrize("way", ["http", "h2"])
def test_an_error_in_a_stream_of_typed_events_is_typed(fault: Fault, code: str, way: str, azure: Simulator, proxy: Proxies) -> None:
    """It has a type and the next number, also the one that says that the stream broke off; OpenAI's client raises it."""
    azure.faults.always(fault)
    lines: list[str] = []
    with (
        suppress(httpx.RemoteProtocolError),
        client(way, proxy(), azure.key) as http,
        http.stream("POST", "/v1/responses", json=RESPONSE) as response,
    ):
        lines.extend(response.iter_lines())
    with sdk(way, "v1", azure, proxy) as ai, pytest.raises(openai.APIError) as raised:
        list(ai.responses.create(model="gpt-4o", input="one two three", stream=True))

    *_, last = data(iter(lines))
    event = json.loads(last)
    assert ("error", 2, code) == (event["type"], event["sequence_number"], event["error"]["code"])
    assert ["message", "type", "param", "code"] == list(event["error"])
    assert "event: error" == [line for line in lines if line.startswith("event: ")][-1]
    assert code == raised.value.code


@pytest.mark.parametrize("way", WAYS)
def test_a_comment_lets_the_head_go(way: str, azure: Simulator, proxy: Proxies) -> None:
    """The head and the comment are with the client while Azure holds back the first event."""
    gate = Gate(before=1)
    azure.faults.next(reshape.comments, gate)

    with client(way, proxy(), azure.key) as http, http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        lines = response.iter_lines()
        assert ": keep-alive" == next(lines)
        gate.release()
        rest = list(data(lines))

    assert 200 == response.status_code
    assert "[DONE]" == rest[-1]


@pytest.mark.parametrize("before", [0, 1], ids=["nothing", "the filter's findings"])
@pytest.mark.parametrize("way", ["http", "h2"])
def test_the_head_of_a_silent_stream_goes(way: str, before: int, azure: Simulator, proxy: Proxies) -> None:
    """The client has the head while Azure holds back the first event that carries something."""
    gate = Gate(before=before)
    azure.faults.next(gate)

    with client(way, proxy(), azure.key) as http, http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
        assert gate.reached.wait(PATIENCE)
        gate.release()
        rest = list(data(response.iter_lines()))

    assert 200 == response.status_code
    assert "[DONE]" == rest[-1]


def test_a_line_without_an_end_passes(azure: Simulator, proxy: Proxies) -> None:
    """Of an event that is too long the client has most before Azure ends it, and its next request is answered."""
    piece, gate = b"x" * (1 << 20), Gate(before=41)
    long = (b"data: ", *(40 * [piece]), b"\n\n")
    azure.faults.next(lambda answer, _: replace(answer, parts=long), gate)

    with client("http", proxy(), azure.key) as http:
        with http.stream("POST", "/v1/chat/completions", json=CHAT) as response:
            pieces = response.iter_bytes()
            seen = len(next(pieces))
            while seen < 39 << 20:
                seen += len(next(pieces))
            gate.release()
            seen += sum(map(len, pieces))
        assert 200 == http.post("/v1/chat/completions", json=CHAT | {"stream": False}).status_code

    assert sum(map(len, long)) == seen
