"""A large body is treated as a small one is: what was found in it by slices stands for what a parser would find."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy import calls, endpoints, json_scan, large_bodies, live, moderations, repair, to_azure
from azure_openai_proxy.addon import AzureOpenAIProxy
from azure_openai_proxy.backends import Backend, Base
from azure_openai_proxy.bodies import BOM
from azure_openai_proxy.credentials import Credential
from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.exchange import Exchange
from azure_openai_proxy.json_scan import LARGE, SLICE, Turns
from azure_openai_proxy.repair import Change, Drop, Rename, Role
from azure_openai_proxy.settings import Settings
from azure_openai_proxy.to_azure import Asked, Query

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from azure_openai_proxy.large_bodies import LargeBody

json_scan._patterns()  # hypothesis has a deadline
JSON = {"content-type": "application/json"}
BACKEND = Backend(name="a", base=Base("https", "a", 443), apiversion="v1")
IMAGE = "A" * LARGE


def read(content: bytes, path: str) -> LargeBody:
    return asyncio.run(large_bodies.read(Turns(), content, *calls.row("POST", path).models, "stream", moderations.ITEMS))


def sent(path: str, content: bytes, large: LargeBody | None, headers: dict[str, str] = JSON) -> tuple[calls.Call | str, bytes]:
    """The call, or why there is none; and the body for Azure."""
    try:
        call = calls.recognise("POST", path, headers, content, "", large)
        assert call
    except BadRequest as error:
        return error.message.partition(":")[0], b""
    asked = Asked(http.Headers(), Query(""), content, large)
    return call, to_azure.translate(call, asked, BACKEND, lambda model: f"my-{model}", Credential("api-key", "k")).content


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
    """Whatever is long stays, and the model is renamed afterwards where it is then."""
    content = json.dumps(body).encode()
    large = read(content, "/v1/chat/completions")
    routes = [repair.route(Asked(http.Headers(), Query(""), content, found), BACKEND, changes) for found in (None, large)]
    assert routes[0].applied == routes[1].applied
    bodies = [json.loads(sent("/v1/chat/completions", route.asked.content, route.asked.large)[1] or b"0") for route in routes]
    assert bodies[0] == bodies[1]
    assert json.loads(routes[0].asked.content) == json.loads(routes[1].asked.content)


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
        (b'{"input":[' + b'"",' * moderations.MOST + b'""]}', -1),
    ],
)
def test_the_same_moderations(content: bytes, results: int) -> None:
    """A result for each text; not one where there is none, or too many."""
    found: list[Any] = []
    for large in (None, read(content, "/v1/moderations")):
        try:
            answer = moderations.unflagged(content, large).json()
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
    addon.live = live.Live(environ={"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}, arguments=[])
    flows = [tflow.tflow(req=asking(json.dumps({"model": "gpt-4o", "text": text}).encode())) for text in (IMAGE, "small")]
    exchanges = [Exchange(Settings(backends=(BACKEND,)), None) for _ in flows]
    for flow, exchange in zip(flows, exchanges, strict=True):
        addon.exchanges[flow] = exchange
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
    """Whatever goes wrong: the client gets an error, and the log has the rest."""

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(large_bodies, "read", fails)
    addon, flow = AzureOpenAIProxy(), tflow.tflow(req=asking(b"{" + b" " * LARGE))
    addon.exchanges[flow] = Exchange(Settings(backends=(BACKEND,)), None)
    waiting = addon.request(flow)
    assert waiting
    await waiting
    assert flow.response
    assert 500 == flow.response.status_code
    assert "A request could not be translated" in caplog.text
