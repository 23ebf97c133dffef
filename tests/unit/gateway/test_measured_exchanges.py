"""Requests that are measured for a usage record: each stage of an exchange reports to its meter."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest
from mitmproxy import ctx, http
from mitmproxy.flow import Error
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy import errors
from azure_openai_proxy.accounting.accounts import Accounts
from azure_openai_proxy.accounting.record import Tokens
from azure_openai_proxy.api import operation
from azure_openai_proxy.gateway.registry import Registry
from azure_openai_proxy.gateway.upstream_policy import Policy
from azure_openai_proxy.routing.attempts import Attempts
from azure_openai_proxy.routing.decisions import GIVE_UP
from support.flows import CHAT, ask, gateways

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy.http import HTTPFlow

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.meters import Meters
    from azure_openai_proxy.accounting.record import CallRecord
    from azure_openai_proxy.accounting.sink import LiveState
    from azure_openai_proxy.addon import AzureOpenAIProxy

USED = b'{"id":"c","usage":{"prompt_tokens":3,"completion_tokens":4}}'
EVENTS = {"content-type": "text/event-stream"}


class Kept:
    """A sink that keeps records."""

    meters: Meters

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []

    def record(self, calls: Sequence[CallRecord]) -> None:
        self.calls.extend(calls)

    async def start(self, live: Callable[[], LiveState]) -> None:
        """Nothing."""

    def reopen(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


@pytest.fixture
def kept(addon: AzureOpenAIProxy) -> Kept:
    addon.accounts = Accounts(addon.live_state, (), addon.registry.meters)
    kept = Kept()
    addon.accounts.sinks = [kept]
    kept.meters = addon.accounts.meters
    return kept


async def one(kept: Kept) -> CallRecord:
    kept.meters.complete()
    await asyncio.sleep(0)
    (record,) = kept.calls
    return record


def meter_of(addon: AzureOpenAIProxy, flow: HTTPFlow) -> Meter:
    meter = addon.registry.exchanges[flow].meter
    assert meter
    return meter


def respond(addon: AzureOpenAIProxy, flow: HTTPFlow, status: int, body: bytes, **headers: str) -> None:
    flow.response = http.Response.make(status, body, {"content-type": "application/json"} | headers)
    addon.responseheaders(flow)
    addon.response(flow)


async def test_a_response(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The record has the tokens of Azure's body, and the sizes of the client's."""
    flow = ask(addon, gateways())
    respond(addon, flow, 200, USED)
    record = await one(kept)
    assert (200, Tokens(input=3, output=4), "gpt-4o", "gpt-4o", "default", len(CHAT), len(USED)) == (
        record.status,
        record.tokens,
        record.model,
        record.deployment,
        record.backend,
        record.request_bytes,
        record.response_bytes,
    )


async def test_a_response_that_nobody_watches(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """Its record is made with those of other requests, and from the body that the translation has parsed."""
    addon.recorder.watched = False
    flow = ask(addon, gateways())
    respond(addon, flow, 200, USED.replace(b"{", b'{"prompt_filter_results":[],', 1))
    await asyncio.sleep(0)
    assert [] == kept.calls
    record = await one(kept)
    assert (200, Tokens(input=3, output=4), "c") == (record.status, record.tokens, record.response_id)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_stream(path: str, addon: AzureOpenAIProxy, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events of the stream have the usage, also while items are looked for in them."""
    flow = gateways(path=path, body=b'{"model":"gpt-4o","stream":true}')
    addon.requestheaders(flow)
    addon.request(flow)
    items: list[bytes] = []
    monkeypatch.setattr(Attempts, "makes_items", path == "/v1/responses")
    monkeypatch.setattr(Attempts, "item", lambda _, event: items.append(event))
    flow.response = http.Response.make(200, b"", EVENTS)
    flow.response.raw_content = None
    addon.responseheaders(flow)
    assert callable(flow.response.stream)
    usage = b'"usage":{"input_tokens":3,"output_tokens":4}' if path == "/v1/responses" else USED[10:-1]
    event = b'{"type":"response.completed","response":{"id":"r",%b}}' % usage if path == "/v1/responses" else b'{"choices":[],%b}' % usage
    flow.response.stream(b"data: %b\n\n" % event)
    flow.response.stream(b"")
    addon.response(flow)
    record = await one(kept)
    assert (Tokens(input=3, output=4), True, "known") == (record.tokens, record.stream, record.usage_state)
    assert [event] * (path == "/v1/responses") == items


async def test_attempts(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """A failed attempt has its outcome, and the last one its end."""
    flow = ask(addon, gateways())
    policy = Policy(addon.registry, flow, addon.registry.exchanges[flow])
    assert isinstance(policy.upstream_request(), tuple)
    assert policy.next_attempt(http.Response.make(429)) is GIVE_UP
    respond(addon, flow, 429, b'{"error":{"code":"429","message":"no"}}')
    record = await one(kept)
    assert ["429"] == [attempt.outcome for attempt in record.attempts]
    assert 429 == record.status


async def test_a_failure_before_the_response(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The HTTP layer responds after the error."""
    flow = ask(addon, gateways())
    flow.error = Error("Could not connect upstream.")
    addon.error(flow)
    response = addon.registry.error_response(errors.Failure(502, "upstream_unreachable", "no"), flow)
    assert response
    record = await one(kept)
    assert (502, "upstream_unreachable", response.headers["x-request-id"]) == (record.status, record.error_code, record.request_id)


async def test_a_stream_that_breaks_off(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The event that tells the client is part of the response's size."""
    flow = gateways(body=b'{"model":"gpt-4o","stream":true}')
    ask(addon, flow)
    flow.response = http.Response.make(200, b"", EVENTS)
    flow.response.raw_content = None
    addon.responseheaders(flow)
    failure = errors.Failure(502, "upstream_error", "cut")
    Policy(addon.registry, flow, addon.registry.exchanges[flow]).broke_off(failure)
    flow.error = Error("The connection upstream failed.")
    addon.error(flow)
    event = addon.registry.last_event(failure, flow)
    assert event
    record = await one(kept)
    assert ("upstream", "upstream_error", len(event) + 2) == (record.incomplete, record.error_code, record.response_bytes)


async def test_a_request_that_mitmproxy_sends(addon: AzureOpenAIProxy, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time until its response is Azure's."""
    monkeypatch.setattr(Registry, "takes_upstream", lambda *_: False)
    flow = ask(addon, gateways())
    clock, meter = [0.0], meter_of(addon, flow)
    meter.meters.clock, before = lambda: clock[0], meter.meters.clock()
    clock[0] = before + 100
    respond(addon, flow, 200, USED)
    record = await one(kept)
    assert record.overhead is not None
    assert record.overhead < 50
    assert (record.duration or 0) > 50


async def test_openai_mode(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """Requests that go to OpenAI unchanged are recorded, and the body is counted on its way."""
    ctx.options.azure_openai_proxy_mode = "openai"
    flow = gateways()
    addon.requestheaders(flow)
    assert callable(flow.request.stream)
    assert [CHAT] == flow.request.stream(CHAT)
    flow.response = http.Response.make(200)
    flow.response.raw_content = None
    addon.responseheaders(flow)
    addon.response(flow)
    record = await one(kept)
    assert (200, len(CHAT), "unknown", "chat.completions") == (record.status, record.request_bytes, record.usage_state, record.operation)


async def test_a_streamed_upload(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The body is counted on its way."""
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": "1000000"}
    flow = gateways(path="/v1/files", body=b"", **headers)
    addon.requestheaders(flow)
    addon.registry.start_streamed_upload(flow, b"--b\r\n")
    assert callable(flow.request.stream)
    flow.request.stream(b"12345")
    respond(addon, flow, 200, b"{}")
    record = await one(kept)
    assert (5, None, "files") == (record.request_bytes, record.overhead, record.operation)


async def test_a_compressed_stream_that_cannot_be_read(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The upstream ended the response early, as the event for the client says."""
    flow = ask(addon, gateways(body=b'{"model":"gpt-4o","stream":true}'))
    flow.response = http.Response.make(200, b"", EVENTS | {"content-encoding": "gzip"})
    flow.response.raw_content = None
    addon.responseheaders(flow)
    assert callable(flow.response.stream)
    (event,) = flow.response.stream(b"not gzip")
    assert isinstance(event, bytes)
    assert b"upstream_error" in event
    flow.response.stream(b"")
    addon.response(flow)
    addon.accounts.meters.flush()
    (record,) = kept.calls
    assert (200, "upstream", "upstream_error") == (record.status, record.incomplete, record.error_code)


@pytest.mark.parametrize(("content", "status"), [(gzip.compress(CHAT), 200), (b"not gzip", 400)], ids=["valid", "invalid"])
async def test_a_compressed_request(content: bytes, status: int, addon: AzureOpenAIProxy, kept: Kept) -> None:
    """Its size is that of the bytes that the client sent."""
    flow = gateways(body=content, **{"content-encoding": "gzip"})
    addon.requestheaders(flow)
    working = addon.request(flow)
    assert working
    await working
    if status == 200:
        respond(addon, flow, 200, USED)
    else:
        addon.responseheaders(flow)
        addon.response(flow)
    record = await one(kept)
    assert (status, len(content)) == (record.status, record.request_bytes)


@pytest.mark.parametrize("text", [True, False])
async def test_a_websocket(text: bool, addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The model that a message names is the model of its response."""
    flow = gateways("GET", "/v1/responses", b"", upgrade="websocket", connection="upgrade")
    ask(addon, flow)
    respond(addon, flow, 101, b"")
    exchange = addon.registry.exchanges[flow]
    messages: list[WebSocketMessage] = []
    for from_client, content in (
        (True, b'{"type":"response.create","model":"gpt-4o"}'),
        (False, b'{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3,"output_tokens":4}}}'),
    ):
        messages.append(message(content, from_client=from_client, text=text))
        exchange.messages.translate(messages, 1 << 20)
    record = await one(kept)
    assert Tokens(input=3, output=4) == record.tokens
    assert ("gpt-4o" if text else None) == record.model
    exchange.measure_websocket_end(None)
    assert 1 == len(kept.calls)


def message(content: bytes, *, from_client: bool, text: bool) -> WebSocketMessage:
    return WebSocketMessage(Opcode.TEXT if text else Opcode.BINARY, from_client, content)


async def test_without_a_sink(addon: AzureOpenAIProxy) -> None:
    """Nothing is measured, and the details of the body are not read."""
    flow = ask(addon, gateways(body=b'{"model":"gpt-4o","service_tier":"flex"}'))
    exchange = addon.registry.exchanges[flow]
    assert exchange.meter is None
    assert exchange.call
    assert exchange.call.details is None
    assert operation.recognise("POST", "/v1/chat/completions", {}, CHAT)
