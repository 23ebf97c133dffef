"""A call is sent again with changes."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from mitmproxy import http
from mitmproxy.addons.view import View
from mitmproxy.test import taddons

from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.inspection import request_replay
from azure_openai_proxy.inspection.body_store import Shelf, Tap
from azure_openai_proxy.inspection.site import replays as sending
from azure_openai_proxy.inspection.site.index import Index
from azure_openai_proxy.inspection.site.replays import Replays, edited, fields, so_far
from azure_openai_proxy.inspection.site.server import BadRequest
from support.conversations import assistant, chat, flow, responses, stream, tool_call, user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_openai_proxy.config.settings import Settings

PICTURE = {"role": "user", "content": [{"type": "text", "text": "What is this?"}]}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


class Handler:
    """mitmproxy's replay, which waits for an event before it ends."""

    going = asyncio.Event()

    def __init__(self, flow: http.HTTPFlow, options: object) -> None:
        self.flow = flow

    async def replay(self) -> None:
        await self.going.wait()
        self.flow.response = chat([user("x")], assistant("again")).response


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[Replays]:
    Handler.going = asyncio.Event()
    monkeypatch.setattr(sending, "ReplayHandler", Handler)
    monkeypatch.setattr(sending, "GLANCE", 0)
    backend = SimpleNamespace(token="key", entra=False)
    settings = cast("Settings", SimpleNamespace(mapper=Mapper.parse("fast=gpt-4o-mini"), backends=[backend]))
    with taddons.context():
        yield Replays(Index(View(), lambda: None), lambda: settings)


def sent(messages: list[Any], **more: Any) -> http.HTTPFlow:
    one = chat(messages, metadata={"deployment": "prod", "model": "gpt-4o"}, path="/openai/deployments/prod/chat/completions", **more)
    one.live = False
    return one


def change(**more: Any) -> dict[str, Any]:
    return {"items": [{"text": "hello"}], "tools": [], "parameters": {}, **more}


async def test_the_proxy_of_a_file_is_not_used(replays: Replays) -> None:
    """The copy of a call does not go through the upstream proxy that its flow names."""
    one = sent([user("one")])
    one.server_conn.via = ("http", ("evil.example", 3128))
    assert replays.start(one, change()).server_conn.via is None
    Handler.going.set()
    await asyncio.gather(*replays._running.values())


@pytest.mark.parametrize("backends", [[], [SimpleNamespace(token="", entra=False)]])
async def test_without_a_key_nothing_is_sent(backends: list[Any]) -> None:
    """Nothing is sent that would be refused: the reason names the options."""
    settings = cast("Settings", SimpleNamespace(backends=backends))
    with taddons.context(), pytest.raises(BadRequest, match="azure_openai_endpoint"):
        Replays(Index(View(), lambda: None), lambda: settings).start(sent([user("one")]), change())


def test_a_request_as_fields() -> None:
    """Texts as they are, other messages as JSON, tools and parameters apart."""
    shown = fields(sent([user("one"), PICTURE, "text", 5, assistant("", tool_call("c1"))], extra={"tools": TOOLS, "temperature": 1}))
    assert ("gpt-4o", "prod", TOOLS, {"temperature": 1}) == tuple(shown[name] for name in ("model", "deployment", "tools", "parameters"))
    assert [("user", "one"), ("user", None), ("text", "text"), ("item", None), ("assistant", None)] == [
        (item["label"], item.get("text")) for item in shown["items"]
    ]
    assert PICTURE == json.loads(shown["items"][1]["json"])


def test_the_fields_of_a_response() -> None:
    """The instructions are the first one; an input may be one text, or absent."""
    assert [("instructions", "Be brief."), ("text", "one")] == [
        (item["label"], item["text"]) for item in fields(responses("one", [], extra={"instructions": "Be brief."}))["items"]
    ]
    assert [] == fields(flow("/v1/responses", {"model": "gpt-4o"}, {}))["items"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]"])
def test_a_request_that_is_not_json(body: bytes) -> None:
    """It has no fields."""
    with pytest.raises(BadRequest, match="cannot be edited"):
        fields(flow("/v1/chat/completions", body, {}))


def test_what_is_changed_is_sent() -> None:
    """A text keeps the other members of its message; JSON, tools and parameters are replaced; removed parameters are gone."""
    one = sent([{"role": "user", "name": "bob", "content": "one"}, PICTURE], extra={"tools": TOOLS, "temperature": 1, "stream": True})
    body = edited(one, {"items": [{"text": "two"}, {"json": user("new")}, {"text": "plain"}], "tools": [], "parameters": {"top_p": 0.5}})
    expected = [{"role": "user", "name": "bob", "content": "two"}, user("new"), "plain"]
    assert {"model": "gpt-4o", "messages": expected, "top_p": 0.5} == json.loads(body)


def test_the_form_of_a_request_stays() -> None:
    """A text stays a text, functions stay functions, and instructions are the first item."""
    one = responses("one", [], extra={"instructions": "Be brief."})
    body = json.loads(edited(one, change(items=[{"text": "Be long."}, {"text": "two"}])))
    assert {"model": "gpt-4o", "input": "two", "instructions": "Be long."} == body
    functions = sent([user("one")], extra={"functions": [{"name": "look"}]})
    assert [{"name": "see"}] == json.loads(edited(functions, change(tools=[{"name": "see"}])))["functions"]
    tools = json.loads(edited(sent([user("one")]), change(tools=TOOLS)))
    assert TOOLS == tools["tools"]
    assert {"model": "gpt-4o"} == json.loads(edited(flow("/v1/responses", {"model": "gpt-4o"}, {}), change(items=[])))


@pytest.mark.parametrize("value", [{"items": None}, {"tools": {}}, {"parameters": []}, {"items": ["x"]}, {"items": [1]}])
def test_a_change_that_is_invalid(value: dict[str, Any]) -> None:
    """It is refused and sends nothing; with instructions too."""
    for one in (sent([user("one")]), responses("one", [], extra={"instructions": "Be brief."})):
        with pytest.raises(BadRequest):
            edited(one, change(**value))


async def test_a_replay_is_a_flow_of_its_own(replays: Replays) -> None:
    """It is in the list, goes to the chosen deployment, and its answer is followed to its end."""
    one = sent([user("one")])
    made = replays.start(one, change(deployment="other"))
    assert replays._index.view.get_by_id(made.id) is made
    assert ("request", "other", None) == (made.is_replay, made.metadata[request_replay.RESEND], made.response)
    assert "hello" == json.loads(made.request.content or b"")["messages"][0]["content"]
    seen = replays.answer(made)
    assert {"text": "", "done": False} == await anext(seen)
    later = asyncio.ensure_future(anext(seen))
    for _ in range(3):
        await asyncio.sleep(0)
    Handler.going.set()
    assert {"text": "again", "done": True} in [await later, *[news async for news in seen]]


async def test_another_model_is_mapped(replays: Replays) -> None:
    """As a client's model is; without a change the deployment stays."""
    assert "gpt-4o-mini" == replays.start(sent([user("one")]), change(model="fast")).metadata[request_replay.RESEND]
    assert request_replay.RESEND not in replays.start(sent([user("one")]), change()).metadata
    Handler.going.set()
    await asyncio.gather(*replays._running.values())


async def test_what_cannot_be_replayed(replays: Replays) -> None:
    """A flow without a deployment, such as one of another program, and one that still runs."""
    live = sent([user("one")])
    live.live = True
    for one in (chat([user("one")]), live):
        with pytest.raises(BadRequest, match="Only a complete request"):
            replays.start(one, change())


def test_a_stream_is_read_while_it_runs() -> None:
    """The text that has arrived, and afterwards the whole answer with its tool calls."""
    one = chat([user("one")], running=True)
    assert "" == so_far(one)
    one.response = http.Response.make(200, b"", {"content-type": "text/event-stream", "content-encoding": "gzip"})
    tap = Tap(None, Shelf(100_000, lambda _: None), 0)
    one.response.stream = cast("Any", tap)
    tap(stream({"choices": [{"index": 0, "delta": {"content": "Hel"}}]}, done=False))
    tap(stream({"choices": [{"index": 0, "delta": {"content": "lo"}}]}, done=False))
    assert "Hello" == so_far(one)
    tap.give_up()
    assert "" == so_far(one)
    assert "fine\n\nlook({})" == so_far(chat([user("one")], assistant("fine", tool_call("c1"))))
