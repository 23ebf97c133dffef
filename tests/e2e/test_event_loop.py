"""Bodies that take long to read: other clients are served meanwhile, and a large one is translated as a small one is."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from support.processes import PATIENCE, SCRIPT, Mitmdump, only_http2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call
    from conftest import Proxies

TEXT = {"type": "text", "text": "what is this?"}
PIXELS = "data:image/png;base64," + base64.b64encode(bytes(3 << 20)).decode()
IMAGE = {"type": "image_url", "image_url": {"url": PIXELS}}
MESSAGES = [{"role": "user", "content": [TEXT, IMAGE]}]
HERE = """
import logging

def request(flow):
    if len(flow.request.raw_content or b"") > 1 << 20:
        logging.warning("A large body is here")
"""


@pytest.fixture
def watched(azure: Simulator, confdir: Path, tmp_path: Path) -> Iterator[Mitmdump]:
    """A proxy that says when it has received a large body, before anything is done with it."""
    script = tmp_path / "here.py"
    script.write_text(HERE)
    with Mitmdump(tmp_path, confdir, options={"azure_openai_endpoint": azure.http_url}, scripts=(script, SCRIPT)) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/responses", b'{"model":"gpt-4o","input":[' + (b'{"a":' * 9 + b"1" + b"}" * 9 + b",") * 80_000),
        ("/v1/chat/completions", b'{"model":"gpt-4o","messages":[' + (b"[" * 90 + b"]" * 90 + b",") * 15_000),
        ("/v1/embeddings", b'{"model":"a",' + b'"\\u006dodel":"gpt-4o",' * 500_000),
    ],
    ids=["nested objects", "nested lists", "names with escapes"],
)
def test_others_are_served_while_a_large_body_is_read(path: str, body: bytes, azure: Simulator, watched: Mitmdump) -> None:
    """A chat that is requested after the large body has arrived is answered first; a large body that is not JSON is refused.

    Each body takes more than a million steps of the scanner, which come in more than five hundred turns of the event loop.
    """
    order: list[str] = []
    answers: list[httpx.Response] = []
    headers = {"authorization": f"Bearer {azure.key}", "content-type": "application/json"}

    def hostile() -> None:
        answers.append(httpx.post(watched.url + path, content=body, headers=headers, timeout=PATIENCE, trust_env=False))
        order.append("large")

    chat = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    with httpx.Client(base_url=watched.url, headers=headers, timeout=PATIENCE, trust_env=False) as http:
        http.get("/v1/models")
        thread = threading.Thread(target=hostile)
        thread.start()
        watched.wait_for_log("A large body is here")
        for _ in range(3):
            assert 200 == http.post("/v1/chat/completions", json=chat).status_code
            order.append("small")
        thread.join(PATIENCE)

    assert ["small"] * 3 + ["large"] == order
    assert 400 == answers[0].status_code
    assert answers[0].json()["error"]["message"].startswith("The body is not valid JSON: it ends too early")


def client(way: str, proxy: Mitmdump, azure: Simulator) -> httpx.Client:
    ways: dict[str, dict[str, Any]] = {
        "http": {"base_url": proxy.url},
        "h2": {"base_url": proxy.https_url, "verify": only_http2(proxy.ca), "http1": False, "http2": True},
    }
    return httpx.Client(timeout=PATIENCE, trust_env=False, headers={"authorization": f"Bearer {azure.key}"}, **ways[way])


@pytest.mark.parametrize("way", ["http", "h2"])
@pytest.mark.parametrize("stream", [False, True], ids=["JSON", "SSE"])
@pytest.mark.parametrize("version", ["v1", "2024-10-21"])
def test_a_chat_with_a_large_image(way: str, stream: bool, version: str, azure: Simulator, proxy: Proxies) -> None:
    """Its model is mapped wherever it is in the body, and the response streams if requested; the image passes byte for byte."""
    through = proxy(azure_openai_apiversion=version, azure_openai_model_mapper="gpt-4=gpt-4o")
    body = {"messages": MESSAGES, "stream": stream, "model": "gpt-4"}
    with client(way, through, azure) as http:
        answer = http.post("/v1/chat/completions", json=body)

    assert (200, stream) == (answer.status_code, answer.headers["content-type"].startswith("text/event-stream")), answer.text
    assert ("gpt-4o" if version == "v1" else "gpt-4") == json.loads(azure.requests[-1].body)["model"]
    assert ("deployments/gpt-4o/" in azure.requests[-1].path) == (version != "v1")
    assert body["messages"] == json.loads(azure.requests[-1].body)["messages"]


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_refused_chat_with_a_large_image_is_repaired(way: str, azure: Simulator, proxy: Proxies) -> None:
    """As a small one is: the first time after the refusal, the second time at once."""
    through = proxy(azure_openai_apiversion="v1", env={"CASE": f"large {way}"})  # the learned repair belongs to this case only
    body = {"messages": MESSAGES, "max_tokens": 7, "temperature": 0.5, "model": "o3-mini"}
    with client(way, through, azure) as http:
        first = http.post("/v1/chat/completions", json=body)
        tried = len(azure.requests)
        second = http.post("/v1/chat/completions", json=body)

    assert (200, 200) == (first.status_code, second.status_code), first.text
    assert tried > 1
    assert tried + 1 == len(azure.requests)
    assert {"messages": MESSAGES, "max_completion_tokens": 7, "model": "o3-mini"} == json.loads(azure.requests[-1].body)


@pytest.mark.parametrize(
    "path, body, status",
    [
        ("/v1/responses", b"[]," * 780_000, 400),
        ("/v1/chat/completions", b"[" * 2_000_000, 400),
        ("/v1/chat/completions", b'{"model":"gpt-4o","messages":[' + b'"\\u00e9",' * 300_000 + b"]}", 400),
        ("/v1/chat/completions", b'{"messages":"' + b"a" * 2_000_000 + b'"}', 400),
        ("/v1/chat/completions", b'{"model":7,"messages":"' + b"a" * 2_000_000 + b'"}', 400),
        ("/v1/chat/completions", b'["' + b"a" * 2_000_000 + b'"]', 400),
    ],
    ids=["empty lists", "nesting", "a comma too many", "no model", "a number", "a list"],
)
def test_a_large_body_that_cannot_be_served(path: str, body: bytes, status: int, azure: Simulator, proxy: Proxies) -> None:
    """It is refused as a small one is, and never sent."""
    with client("http", proxy(), azure) as http:
        answer = http.post(path, content=body, headers={"content-type": "application/json"})
        assert (status, "invalid_request_error") == (answer.status_code, answer.json()["error"]["type"])
    assert [] == azure.requests


def large_answer(answer: Answer, _: Call) -> Answer:
    """An image of many megabytes, with what Azure's filter found."""
    found = {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
    data = {"created": 1, "data": [found | {"b64_json": PIXELS}], "note": "\u00e9"}
    return replace(answer, parts=(json.dumps(data).encode(),))


@pytest.mark.parametrize("way", ["http", "h2"])
def test_a_large_answer_is_shaped(way: str, azure: Simulator, proxy: Proxies) -> None:
    """Without what Azure added; the image passes."""
    azure.faults.next(large_answer)
    with client(way, proxy(azure_openai_apiversion="v1"), azure) as http:
        answer = http.post("/v1/images/generations", json={"model": "gpt-image-1", "prompt": "a cat"})
    assert {"created": 1, "data": [{"b64_json": PIXELS}], "note": "\u00e9"} == answer.json()


def test_a_large_frame_names_the_deployment(azure: Simulator, proxy: Proxies) -> None:
    """Out and back, and small ones that follow it come behind it."""
    through = proxy(azure_openai_model_mapper="rt=gpt-realtime")
    url = through.url.replace("http", "ws", 1) + "/v1/realtime?model=rt"
    headers = {"authorization": f"Bearer {azure.key}"}
    texts = ["\u00e9\u20ac" * 200_000, "small"]
    with connect(url, additional_headers=headers, max_size=None, proxy=None, open_timeout=PATIENCE, close_timeout=PATIENCE) as ws:
        assert "session.created" == json.loads(ws.recv(PATIENCE))["type"]
        for text in texts:
            session = {"type": "realtime", "model": "rt", "instructions": text}
            ws.send(json.dumps({"type": "session.update", "session": session}, ensure_ascii=False))
        back = [json.loads(ws.recv(PATIENCE))["session"] for _ in texts]

    sent = [json.loads(frame)["session"] for frame in azure.requests[-1].frames]
    assert [("gpt-realtime", text) for text in texts] == [(one["model"], one["instructions"]) for one in sent]
    assert [("rt", text) for text in texts] == [(one["model"], one["instructions"]) for one in back]


@pytest.mark.parametrize(
    ("part", "passes"),
    [(b"--b\r\n\r\n\r\n", False), (b"--b\r\n" + b"content-disposition:" * 800 + b"\r\n\r\n\r\n", True), (b"\r\n--bb", False)],
    ids=["tiny parts", "long heads", "longer boundaries"],
)
def test_a_form_of_many_parts(part: bytes, passes: bool, azure: Simulator, proxy: Proxies) -> None:
    """Its model is renamed, and nothing else in it. A form of more parts than the proxy reads is refused, because another model could
    follow. How little is done for the rest, the unit tests count.
    """
    through = proxy(azure_openai_apiversion="v1", azure_openai_model_mapper="hear=whisper")
    form = (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nhear\r\n--b\r\n\r\n\r\n'
        + part * (500_000 // len(part))
        + b"\r\n--b--\r\n"
    )
    with client("http", through, azure) as http:
        response = http.post("/v1/audio/transcriptions", content=form, headers={"content-type": "multipart/form-data; boundary=b"})
    if passes:
        assert form.replace(b"\r\nhear\r\n", b"\r\nwhisper\r\n", 1) == azure.requests[-1].body
    else:
        assert (400, "model") == (response.status_code, response.json()["error"]["param"])
        assert not azure.requests
