"""Requests whose traces are exported: the headers for Azure, and the bodies kept for the export of messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy.accounting import message_content, trace_context
from azure_openai_proxy.accounting.accounts import Accounts, SinkKind
from azure_openai_proxy.accounting.message_content import Content
from azure_openai_proxy.accounting.meters import Meters
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.gateway.request_keys import RequestKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from azure_openai_proxy.accounting.record import CallRecord
    from azure_openai_proxy.accounting.sink import LiveState
    from azure_openai_proxy.accounting.trace_context import TraceContext

KEY = "key-of-the-client"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
BODY = b'{"model":"gpt-4o","messages":[]}'
EVENTS = {"content-type": "text/event-stream"}


class Tracing:
    """A sink that exports traces."""

    def __init__(self, *, wants_content: bool = False) -> None:
        self.wants_content = wants_content
        self.kept: dict[str, Content] = {}

    def begin_trace(self, headers: http.Headers) -> TraceContext:
        return trace_context.begin(headers.fields)._replace(sampled=False)

    def keep_content(self, span_id: str, content: Content) -> None:
        self.kept[span_id] = content

    def record(self, calls: Sequence[CallRecord]) -> None:
        """Nothing."""

    async def start(self, live: Callable[[], LiveState]) -> None:
        """Nothing."""

    def reopen(self) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


def exchange(tracing: Tracing | None, request: http.Request) -> Exchange:
    meters = Meters(lambda _: None)
    meters.tracing = tracing
    backend = Backend(name="b", base=Base("https", "b.example", 443), token="", apiversion="v1")
    keys = RequestKeys()
    return Exchange(Settings(backends=(backend,)), None, meter=meters.start(request, "127.0.0.1", keys), keys=keys)


def asking(path: str = "/v1/chat/completions", body: bytes = BODY) -> http.Request:
    headers: dict[str | bytes, str | bytes] = {"host": "localhost", "authorization": f"Bearer {KEY}", "traceparent": PARENT}
    return http.Request.make("POST", f"http://localhost{path}", body, headers | {"content-type": "application/json"})


def test_azure_gets_the_span_of_the_attempt() -> None:
    """With an export of traces, the request for Azure names the attempt's span, and the sampler's decision; else the client's header."""
    request = asking()
    traced = exchange(Tracing(), request)
    assert traced.request(request) is None
    assert traced.meter
    span = trace_context.attempt_span_id(traced.meter.trace.span_id, 1)
    assert [f"00-{TRACE}-{span}-00"] == request.headers.get_all("traceparent")
    request = asking()
    untraced = exchange(None, request)
    assert untraced.request(request) is None
    assert PARENT == request.headers["traceparent"]


async def ended(tracing: Tracing, request: http.Request, body: bytes | None, *events: bytes, start: bytes | None = None) -> Content | None:
    """The content that was kept of a request."""
    one = exchange(tracing, request)
    flow = tflow.tflow(req=request, resp=http.Response.make(200, body or b"", EVENTS if body is None else {}))
    assert flow.response
    assert one.request(request, start) is None
    one.response_head(flow.response)
    assert one.meter
    for event in events:
        one.meter.event(event)
    one.measure_end(flow, body, shown=True)
    return tracing.kept.get(one.meter.trace.span_id)


async def test_messages_are_kept() -> None:
    """The bodies of a call whose messages are exported, with its keys, which are masked in the export."""
    content = await ended(Tracing(wants_content=True), asking(), b'{"choices":[]}')
    assert Content("chat.completions", BODY, b'{"choices":[]}', (), (KEY,)) == content


async def test_events_are_kept() -> None:
    """The events of a stream."""
    request = asking(body=b'{"model":"gpt-4o","stream":true}')
    content = await ended(Tracing(wants_content=True), request, None, b'{"a":1}', b'{"a":2}')
    assert content
    assert ([b'{"a":1}', b'{"a":2}'], b"") == (content.events, content.response)


async def test_a_large_body_is_not_kept() -> None:
    """A body that would not be parsed needs no memory."""
    content = await ended(Tracing(wants_content=True), asking(), b" " * (message_content.LARGEST + 1))
    assert content
    assert (BODY, b"") == (content.request, content.response)


@pytest.mark.parametrize(("wants", "path"), [(False, "/v1/chat/completions"), (True, "/v1/embeddings")])
async def test_other_bodies_are_not_kept(wants: bool, path: str) -> None:
    """Without the option, and of an operation without messages, nothing is kept."""
    assert await ended(Tracing(wants_content=wants), asking(path), b"{}") is None


async def test_a_streamed_upload_is_not_kept() -> None:
    """Its body is not complete."""
    assert await ended(Tracing(wants_content=True), asking("/v1/chat/completions"), b"{}", start=BODY) is None


async def test_the_sink_with_traces_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """While such a sink is open, the meters of new requests use it."""
    import sys
    from types import ModuleType

    module, sink = ModuleType("azure_openai_proxy.accounting.kept"), Tracing()
    module.__dict__["open_sink"] = lambda _settings: sink
    monkeypatch.setitem(sys.modules, module.__name__, module)
    accounts = Accounts(kinds=(SinkKind("otlp", "kept"),))
    await accounts.start(Settings(otlp="http://127.0.0.1:4318"))
    assert sink is accounts.meters.tracing
    await accounts.follow(Settings)
    assert accounts.meters.tracing is None
