"""The content views of every kind that the simulator knows, asked for through a real mitmweb, as its own content API gives them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.sync.client import connect

from azure_openai_proxy.api import operation as operations
from azure_simulator import others
from azure_simulator.operations import OPERATIONS
from support.mitmweb import mitmweb
from support.processes import PATIENCE
from unit.api.test_azure_surface import SAMPLES, UPLOAD, Sample, case, place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from azure_simulator.calls import Operation
    from support.mitmweb import Web
    from support.processes import Decoy

# Expected text in the views of responses that are assembled. All other responses are shown as JSON.
PUT_TOGETHER = {
    "POST chat/completions": "── assistant\nYou said: hi\n",
    "GET chat/completions/{id}": "── assistant\nhello\n",
    "POST chat/completions/{id}": "── assistant\nhello\n",
    "POST completions": "── text\nYou said: hi\n",
    "POST embeddings": "── embedding 0\n1,536 numbers: ",
    "POST audio/transcriptions": "── transcript\nhello.wav has 6 bytes",
    "POST audio/translations": "── transcript\nhello.wav has 6 bytes",
    "POST images/generations": "── image\n[image, 264 bytes]",
    "POST images/edits": "── image\n[image, 264 bytes]",
    "POST responses": "── assistant\nYou said: hi\n",
    "POST responses/compact": "── compaction\n",
    "GET responses/{id}": "── assistant\nhello again\n",
    "POST responses/{id}/cancel": "── end\ncancelled · ",
    "GET conversations/{conversation_id}/items/{id}": "── user\nhello",
}
SECRETS = {others.EPHEMERAL: "[key]", others.SIGNING: "[key]"}
NOTE = Sample({"metadata": {"note": "look for this"}})
STREAMS: dict[str, tuple[str, Sample, str]] = {
    "chat": ("/v1/chat/completions", Sample({**SAMPLES["chat/completions"].json, "stream": True}), "── assistant\nYou said: hi\n"),
    "completion": ("/v1/completions", Sample({**SAMPLES["completions"].json, "stream": True}), "── text\nYou said: hi\n"),
    "response": ("/v1/responses", Sample({**SAMPLES["responses"].json, "stream": True}), "── assistant\nYou said: hi\n"),
    "speech": ("/v1/audio/speech", Sample({**SAMPLES["audio/speech"].json, "stream_format": "sse"}), "── speech.audio\n[audio, "),
    "transcript": (
        "/openai/v1/audio/transcriptions",
        Sample(data={"model": "whisper", "stream": "true"}, files=UPLOAD),
        "── transcript.text\nhello.wav has 6 bytes",
    ),
    "image": (
        "/openai/v1/images/generations",
        Sample({**SAMPLES["images/generations"].json, "stream": True}),
        "── image_generation.partial_image\n[image, ",
    ),
    "run": ("/v1/threads/thread_1/runs", Sample({"assistant_id": "asst_1", "stream": True}), "── end\ncompleted · gpt-4o\n"),
}


@pytest.fixture
def web(azure: Simulator, decoy: Decoy, confdir: Path, tmp_path: Path) -> Iterator[Web]:
    with mitmweb(tmp_path, confdir, decoy.port, azure_openai_endpoint=azure.http_url, azure_openai_token=azure.key) as web:
        yield web


@pytest.fixture
def client(web: Web) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.proxy.url, trust_env=False, timeout=PATIENCE) as client:
        yield client


def ask(client: httpx.Client, method: str, path: str, sample: Sample) -> httpx.Response:
    return client.request(method, path, json=sample.json, data=sample.data, files=sample.files).raise_for_status()


def of(row: Operation) -> tuple[str, Sample]:
    """Where a client of OpenAI's asks for it, or of Azure's what OpenAI has not; and with what."""
    if row.path == "models/{id}":
        return "/v1/models/tts-1", Sample()
    form = "v1" if row.api.v1 else max(row.api.versions)
    path = place(row, form)
    openais = form == "v1" and operations.row(row.method, path).handled_by in ("azure", "models")
    sample = SAMPLES.get(row.path) if row.method == "POST" else None
    return path if openais else f"/openai{path}", sample or (NOTE if row.body in ("json", "either") else Sample())


def strings(value: Any) -> list[str]:
    """All the texts in a JSON value."""
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def shown(web: Web, flow: dict[str, Any], message: str, view: str = "auto") -> tuple[str, str]:
    """A view's name and text; it has not failed."""
    told = web.http.get(f"/flows/{flow['id']}/{message}/content/{view}.json").raise_for_status().json()
    assert "failed" not in told["description"], told
    return told["view_name"], told["text"]


def missing(web: Web, flow: dict[str, Any], sample: Sample, answer: httpx.Response, put_together: str | None) -> list[str]:
    """What a person looks for in the views of a flow, and does not find."""
    asked: list[str] = strings(sample.json)
    if sample.data or sample.files:
        asked += [f"── {name}\n{value}" for name, value in (sample.data or {}).items()]
        asked += [f"── {name}\n[{file[0] if isinstance(file, tuple) else 'upload'}, " for name, file in sample.files.items()]
    view, text = shown(web, flow, "request")
    lost = [] if view == ("Conversation" if asked else view) else [f"view {view}"]
    lost += [one for one in asked if one not in text]

    if not answer.content:
        return lost
    if put_together is None and not answer.headers["content-type"].startswith("application/json"):
        text = shown(web, flow, "response", "answer")[1]
        said = [f"[{answer.headers['content-type']}, "]
    else:
        view, text = shown(web, flow, "response")
        lost += [] if view == "Answer" else [f"view {view}"]
        said = [put_together] if put_together else [json.dumps(SECRETS.get(one, one)) for one in strings(answer.json())]
    return lost + [one for one in said if one not in text]


def test_every_kind_is_shown(web: Web, client: httpx.Client) -> None:
    """The complete request and response are shown: as a conversation if they are one, as JSON otherwise."""
    asked = [(row, *of(row)) for row in OPERATIONS]
    answers = [ask(client, row.method, path, sample) for row, path, sample in asked]
    flows = web.flows()
    lost = {
        case(row): found
        for (row, _, sample), answer, flow in zip(asked, answers, flows, strict=True)
        if (found := missing(web, flow, sample, answer, PUT_TOGETHER.get(case(row))))
    }
    assert {} == lost


def test_every_stream_is_shown(web: Web, client: httpx.Client) -> None:
    """Put together, with the time that its chunks took."""
    for path, sample, said in STREAMS.values():
        answer = ask(client, "POST", path, sample)
        flow = web.flows()[-1]
        assert [] == missing(web, flow, sample, answer, said)
        assert "── chunks\nfirst after " in shown(web, flow, "response")[1]


SESSION = {"type": "session.update", "session": {"type": "realtime", "instructions": "Speak slowly."}}
STARTED = {"type": "session.start", "session": {"type": "live", "model": "gpt-4o", "instructions": "Speak slowly."}}
CREATED = {"type": "response.create", "model": "gpt-4o", "input": "Speak slowly."}
TALKS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "/v1/realtime?model=gpt-realtime": ([SESSION, {"type": "response.create"}], ["session.created", "session.updated", "response.done"]),
    "/v1/realtime/translations?model=gpt-realtime": ([SESSION], ["session.created", "session.updated"]),
    "/v1/responses": ([CREATED], ["response.completed"]),
    "/v1/live/sessions": ([STARTED, {"type": "response.create"}], ["session.created", "response.done"]),
}
"""The messages of a session, and those of Azure that end a series of deltas."""


@pytest.mark.parametrize("path", TALKS)
def test_every_talk_is_shown(path: str, web: Web) -> None:
    """Each message is shown with its type and its text."""
    said, ends = TALKS[path]
    with connect(web.proxy.url.replace("http", "ws") + path, proxy=None) as socket:
        waiting = iter(said)
        for end in ends:
            if not end.startswith("session.created") or "session.start" in str(said):
                socket.send(json.dumps(next(waiting)))
            while json.loads(socket.recv(timeout=PATIENCE))["type"] != end:
                pass
    flow = web.flows()[-1]
    messages = web.http.get(f"/flows/{flow['id']}/messages/content/auto.json").raise_for_status().json()
    texts = ["".join(message["text"]) for message in messages]
    assert [] == [message for message in messages if "failed" in message["description"]]
    assert [] == [one for one in (*ends, "\nSpeak slowly.") if not any(one in text for text in texts)]
