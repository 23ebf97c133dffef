"""A large body, of a request or a response, is treated as a small one is: scanning finds the same members as a parser."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.addon import AzureOpenAIProxy
from azure_openai_proxy.api import endpoints, large_bodies, local_responses, realtime
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.credentials import Credential
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.api.request import ClientRequest, Query, Target
from azure_openai_proxy.config import runtime
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.formats import json_scan
from azure_openai_proxy.formats.json_edit import BOM
from azure_openai_proxy.formats.json_scan import LARGE, SLICE, Turns
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.routing import repair
from azure_openai_proxy.routing.repair_changes import Change, Drop, Rename, Role

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from azure_openai_proxy.api.large_bodies import LargeBody

json_scan._patterns()  # hypothesis has a deadline
JSON = {"content-type": "application/json"}
BACKEND = Backend(name="a", base=Base("https", "a", 443), apiversion="v1")
IMAGE = "A" * LARGE


def read(content: bytes, path: str) -> LargeBody:
    return asyncio.run(
        large_bodies.read(Turns(), content, *operations.row("POST", path).models, "stream", local_responses.MODERATION_INPUTS)
    )


def sent(path: str, content: bytes, large: LargeBody | None, headers: dict[str, str] = JSON) -> tuple[operations.Call | str, bytes]:
    """The call, or why there is none; and the body for Azure."""
    try:
        call = operations.recognise("POST", path, headers, content, "", large)
        assert call
    except BadRequest as error:
        return error.message.partition(":")[0], b""
    asked = ClientRequest(http.Headers(), Query(""), content, large)
    target = Target.of(call, BACKEND, call.model and f"my-{call.model}")
    return call, azure_request.translate(call, asked, target, lambda model: f"my-{model}", Credential("api-key", "k")).content


def meaning(content: bytes) -> object:
    try:
        return json.loads(content.removeprefix(BOM))
    except ValueError:
        return "no JSON"


PATHS = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/engines/e/completions",
    "/v1/realtime/client_secrets",
    "/v1/evals",
    "/openai/deployments/d/chat/completions",
    "/v1/something/new",
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [
        b'{"model":"a","stream":true}',
        b'{"messages":[{"model":"b"}],"stream":1,"model":"a"}',
        BOM + b' { "model" : "a" } ',
        b'{"session":{"model":"a"},"testing_criteria":[{"model":"b"},{"model":"c"}]}',
        b'{"model":"a","model":"b"}',
        b'{"model":7}',
        b'{"model":[]}',
        b'{"model":"\\n"}',
        b'{"stream":true}',
        b"{}",
        b" { } ",
        b"[1]",
        b'"model"',
        b'{"model":"a",}',
        b"{",
        b"[],",
    ],
)
def test_the_same_call_and_the_same_body(path: str, content: bytes) -> None:
    """For every way in which an operation names its model."""
    small, large = sent(path, content, None), sent(path, content, read(content, path))
    assert small[0] == large[0]
    assert meaning(small[1]) == meaning(large[1])


def test_a_large_compressed_body_is_refused() -> None:
    """As a small one is."""
    content = b"\x1f\x8b" + b"x" * 100
    found = sent("/v1/chat/completions", content, read(content, "/v1/chat/completions"), JSON | {"content-encoding": "gzip"})
    assert ("The body is compressed (gzip)", b"") == found


MESSAGES = st.lists(st.sampled_from([{"role": "system", "content": IMAGE[:200]}, {"role": "user"}, 7]))
CHANGES: list[Change] = [Drop("user"), Rename("max_tokens", "max_completion_tokens"), Role("system", "developer")]
CHATS = st.fixed_dictionaries({"messages": MESSAGES}, optional={"user": st.text(), "max_tokens": st.integers(), "model": st.just("m")})


@given(CHATS, st.lists(st.sampled_from(CHANGES), unique=True))
def test_the_same_repairs(body: dict[str, Any], changes: list[Change]) -> None:
    """Long members stay unchanged, and the model is renamed afterwards at its new position."""
    content = json.dumps(body).encode()
    large = read(content, "/v1/chat/completions")
    routes = [repair.route(ClientRequest(http.Headers(), Query(""), content, found), BACKEND, changes) for found in (None, large)]
    assert routes[0].applied == routes[1].applied
    bodies = [
        json.loads(sent("/v1/chat/completions", route.client_request.content, route.client_request.large)[1] or b"0") for route in routes
    ]
    assert bodies[0] == bodies[1]
    assert json.loads(routes[0].client_request.content) == json.loads(routes[1].client_request.content)


@pytest.mark.parametrize(
    "content, results",
    [
        (b'{"input":"a","model":"m"}', 1),
        (b'{"input":["a","b","a"],"model":"m"}', 3),
        (b'{"input":[{"type":"text"},{}],"model":"m"}', 1),
        (b'{"input":["",""]}', 2),
        (b'{"input":""}', 0),
        (b'{"input":[]}', 0),
        (b'{"input":3}', 0),
        (b"{}", 0),
        (b"[]", 0),
        (b"{", 0),
        (b'{"input":[' + b'"",' * local_responses.MOST_MODERATIONS + b'""]}', -1),
    ],
)
def test_the_same_moderations(content: bytes, results: int) -> None:
    """A result for each text; not one where there is none, or too many."""
    found: list[Any] = []
    for large in (None, read(content, "/v1/moderations")):
        try:
            answer = local_responses.unflagged_moderation(content, large).json()
            found.append((len(answer["results"]), answer["model"]))
        except BadRequest as error:
            found.append(error.message)
    assert found[0] == found[1]
    assert results <= 0 or results == found[0][0]
    assert results or "`input` is required" in found[0]
    assert results >= 0 or "more than 2048 texts" in found[0]


# When


def asking(content: bytes, path: str = "/v1/chat/completions", content_type: str = "application/json") -> http.Request:
    request = http.Request.make("POST", f"http://localhost:8080{path}", content)
    request.headers.update({"authorization": "Bearer client", "content-type": content_type})
    return request


@pytest.mark.parametrize(
    "content, path, content_type, places",
    [
        (b"{" + b" " * LARGE, "/v1/chat/completions", "application/json", ("model", "stream")),
        (b"{" + b" " * LARGE, "/v1/moderations", "", ("model", "stream", "input.*")),
        (b"{}", "/v1/chat/completions", "application/json", None),
        (b"--b" + b" " * LARGE, "/v1/audio/transcriptions", "multipart/form-data; boundary=b", None),
    ],
)
def test_what_is_read_first(content: bytes, path: str, content_type: str, places: tuple[str, ...] | None) -> None:
    """Only a large body that may be JSON, and what its operation needs of it."""
    found = Exchange(Settings(), None).to_scan(asking(content, path, content_type))
    assert found == (None if places is None else (content, places))


async def test_a_large_request_is_translated_after_others_had_their_turn() -> None:
    """Its hook is to be awaited, and a small one's is not."""
    addon = AzureOpenAIProxy()
    addon.runtime = runtime.Runtime(environ={"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}, arguments=[])
    flows = [tflow.tflow(req=asking(json.dumps({"model": "gpt-4o", "text": text}).encode())) for text in (IMAGE, "small")]
    exchanges = [Exchange(Settings(backends=(BACKEND,)), None) for _ in flows]
    for flow, exchange in zip(flows, exchanges, strict=True):
        addon.registry.exchanges[flow] = exchange
    waiting = [addon.request(flow) for flow in flows]
    assert waiting[1] is None
    assert [None, "gpt-4o"] == [exchange.call and exchange.call.model for exchange in exchanges]
    turns = 0
    awaited: Coroutine[Any, Any, None] = waiting[0]  # type: ignore[assignment]
    task = asyncio.ensure_future(awaited)
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= LARGE // SLICE
    assert ["gpt-4o", "gpt-4o"] == [exchange.call and exchange.call.model for exchange in exchanges]
    assert endpoints.find("POST", ("chat", "completions")) is exchanges[0].call.endpoint  # type: ignore[union-attr]


async def test_a_large_request_that_cannot_be_read_does_not_leave(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After any exception the client gets an error, and the log has the details."""

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(large_bodies, "read", fails)
    addon, flow = AzureOpenAIProxy(), tflow.tflow(req=asking(b"{" + b" " * LARGE))
    addon.registry.exchanges[flow] = Exchange(Settings(backends=(BACKEND,)), None)
    waiting = addon.request(flow)
    assert waiting
    await waiting
    assert flow.response
    assert 500 == flow.response.status_code
    assert "A request could not be translated" in caplog.text


# Answers

FILTER = {"hate": {"filtered": False, "severity": "safe"}}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "é" * 200}}
ANSWERS = [
    {"data": [{"b64_json": IMAGE, "content_filter_results": FILTER}, 7], "prompt_filter_results": [], "created": 1},
    {"choices": [CHOICE | {"content_filter_results": FILTER}], "model": "gpt-35-turbo-16k", "text": IMAGE},
    {"choices": [{"index": 0, "finish_reason": "content_filter", "message": None}], "text": IMAGE, "content_filters": []},
    {"choices": None, "text": IMAGE},
    {"text": IMAGE, "note": "_filter"},
    {"data": [IMAGE], "next": "https://r.openai.azure.com/openai/v1/files?after=1", "nextLink": "/openai/v1/x"},
    {"data": [IMAGE], "content_filters": [], "next_link": "https:\\/\\/r.openai.azure.com\\/openai\\/v1\\/files"},
    {"note": "/openai/v1", "data": IMAGE},
    [IMAGE, "_filter", "/openai/"],
]


def exchange_of(*, normalize: bool = True) -> Exchange:
    base = Base("https", "r.openai.azure.com", 443)
    asked = Exchange(Settings(backends=(Backend(name="a", base=base, apiversion="v1"),), normalize=normalize), None)
    asked.request(asking(b'{"model":"m"}'))
    return asked


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("normalize", [True, False])
async def test_the_same_answer(answer: object, normalize: bool) -> None:
    """Without what Azure added, and with the proxy's addresses."""
    content = json.dumps(answer, ensure_ascii=False).replace("\\\\/", "\\/").encode()
    asked = exchange_of(normalize=normalize)
    shaped = []
    scan = asked.response_to_scan(http.Response.make(200, content), content)
    for large in (None, await large_bodies.read(Turns(), content, *(scan[1] if scan else ()))):
        response = http.Response.make(200, content, {"content-type": "application/json"})
        asked.response_body(response, content, large)
        shaped.append(response.content or b"")
    assert json.loads(shaped[0]) == json.loads(shaped[1])
    assert scan or shaped[0] == content


async def test_which_answers_are_read_first() -> None:
    """Large ones that may have to be changed, of Azure's, and no errors."""
    content = b'{"_filter":"%b"}' % IMAGE.encode()
    asked = exchange_of()
    assert asked.response_to_scan(http.Response.make(200), content) == (content, ("next", "next_link", "nextLink"))
    for response, body in ((200, None), (200, b"_filter"), (400, content), (200, content.replace(b"_", b"-"))):
        assert None is asked.response_to_scan(http.Response.make(response), body)
    assert None is Exchange(Settings(), None).response_to_scan(http.Response.make(200), content)


async def test_a_large_answer_is_shaped_after_others_had_their_turn() -> None:
    """Its hook is to be awaited."""
    addon, flow = AzureOpenAIProxy(), tflow.tflow(req=asking(b'{"model":"m"}'), resp=True)
    addon.registry.exchanges[flow] = exchange_of()
    content = json.dumps(ANSWERS[0]).encode()
    flow.response = http.Response.make(200, content, {"content-type": "application/json"})
    waiting = addon.response(flow)
    assert waiting
    assert content == flow.response.content
    await waiting
    assert {"data": [{"b64_json": IMAGE}, 7], "created": 1} == flow.response.json()


# Frames

FRAMES = [
    (True, {"session": {"model": "m"}, "text": "é" + IMAGE}),
    (True, {"type": "x", "audio": IMAGE}),
    (False, {"type": "response.done", "response": {"model": "d", "content_filters": []}, "text": "é" + IMAGE}),
    (False, {"type": "error", "error": {"code": "429", "message": "slow down"}, "text": "😀" + IMAGE}),
    (False, {"type": "x", "text": "error", "audio": "é" + IMAGE}),
    (False, {"type": "response.error", "response": {"error": {"message": None}}, "audio": IMAGE}),
]


@pytest.mark.parametrize("from_client, frame", FRAMES)
@pytest.mark.parametrize("normalize", [True, False])
async def test_the_same_frame(from_client: bool, frame: object, normalize: bool) -> None:
    """The models renamed in both directions, an error in OpenAI's shape, and ASCII if it has changed."""
    content = json.dumps(frame, ensure_ascii=False).encode()
    changed = []
    for in_slices in (False, True):
        asked = Exchange(Settings(backends=(BACKEND,), mapper=Mapper.parse("m=d"), normalize=normalize), None)
        request = asking(b"", "/v1/realtime?model=m")
        request.method = "GET"
        request.headers["upgrade"] = "websocket"
        asked.request(request)
        addon, flow = AzureOpenAIProxy(), tflow.twebsocketflow()
        assert flow.websocket
        flow.websocket.messages = [WebSocketMessage(Opcode.TEXT, from_client, content)]
        addon.registry.exchanges[flow] = asked
        assert asked.messages.to_scan(flow.websocket.messages[0])
        if in_slices:
            await addon.websocket_message(flow)  # type: ignore[misc]
        else:
            asked.messages.translate(flow.websocket.messages, 0)
        changed.append(flow.websocket.messages[-1].content)
    assert json.loads(changed[0]) == json.loads(changed[1])
    assert [one == content or one.isascii() for one in changed] == [True, True]
    assert (changed[0] == content) == (changed[1] == content)


@given(st.text(min_size=1), st.integers(min_value=1, max_value=9))
def test_ascii_in_pieces(text: str, size: int) -> None:
    """Wherever a character is cut."""
    document = json.dumps([text], ensure_ascii=False).encode(errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realtime, "PIECE", size)
        assert realtime.in_ascii(document) == b"".join(realtime.pieces_in_ascii(document))
