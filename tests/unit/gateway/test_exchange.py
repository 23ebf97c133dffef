"""One request and its answer, through the stages."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from mitmproxy import http
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.accounting.cost import Tariff
from azure_openai_proxy.accounting.meters import Meters
from azure_openai_proxy.accounting.record import Tokens
from azure_openai_proxy.errors import BadRequest, NoKey, NotFound
from azure_openai_proxy.formats.json_scan import LARGE
from support.exchanges import FILTERED, answering, asking, chat, exchange, sent, two_backends

if TYPE_CHECKING:
    from azure_openai_proxy.gateway.exchange import Exchange
    from azure_openai_proxy.inspection.replay_server import Replay


def test_errors_are_raised() -> None:
    """Who calls shapes them."""
    with pytest.raises(BadRequest):
        exchange().request(asking("POST", "/v1/chat/completions", b"{"))
    with pytest.raises(NoKey):
        exchange().request(http.Request.make("POST", "http://localhost/v1/chat/completions", chat()))


def test_openai_mode_hands_everything_over() -> None:
    """The request but for its server, and the answer as it comes."""
    asked = exchange(mode="openai")
    request = asking("POST", "/v1/anything?a=1", b"body")
    asked.forward_unchanged(request)
    assert "https://openai.example/prefix/v1/anything?a=1" == request.url
    assert (True, "Bearer client") == (request.stream, request.headers["authorization"])
    response = answering(200, FILTERED)
    asked.response_head(response)
    assert response.stream is True


def test_a_streamed_answer_is_left_alone_at_its_end() -> None:
    """It has gone by."""
    asked, response = sent(chat(stream=True)), answering(200, FILTERED, "text/event-stream")
    asked.response_head(response)
    asked.response_body(response)
    assert FILTERED == response.raw_content


def test_a_websockets_handshake_is_left_alone() -> None:
    """Its headers are between the client and Azure."""
    asked = exchange()
    asked.request(asking("GET", "/v1/realtime?model=m", upgrade="websocket", connection="upgrade"))
    response = http.Response.make(101, b"", {"upgrade": "websocket", "connection": "upgrade"})
    asked.response_head(response)
    asked.response_body(response)
    assert ("websocket", "upgrade") == (response.headers["upgrade"], response.headers["connection"])


def test_a_request_that_was_held_can_be_sent_again() -> None:
    """It is not streamed."""
    asked = exchange()
    assert not asked.streamed
    asked.request(asking("POST", "/v1/chat/completions", chat()))
    assert not asked.streamed


def test_the_last_backend_that_is_left() -> None:
    """It is not asked for the items of backends that were configured before."""
    asked = exchange()
    asked.shared.owners.claim("rs_1", "gone")
    content = json.dumps({"model": "gpt-4o", "input": [{"type": "item_reference", "id": "rs_1"}]}).encode()
    with pytest.raises(NotFound, match="Item 'rs_1' in `input` was made by the backend 'gone', which is gone"):
        asked.request(asking("POST", "/v1/responses", content))


def test_items_are_sought_in_a_large_body() -> None:
    """With several backends, or with one that is left, the items of a large Responses request are found."""
    content = json.dumps({"model": "gpt-4o", "input": [{"id": "rs_1"}, "x" * LARGE]}).encode()
    left = exchange()
    left.shared.owners.claim("rs_1", "gone")
    for asked, path, found in (
        (two_backends(), "/v1/responses", True),
        (left, "/v1/responses", True),
        (exchange(), "/v1/responses", False),
        (two_backends(), "/v1/chat/completions", False),
    ):
        scan = asked.to_scan(asking("POST", path, content))
        assert scan
        assert found == ("input.*.id" in scan[1])


def test_the_timeouts_of_flex() -> None:
    """A request with this tier has its own until the first byte; other requests have the ordinary ones."""
    asked = exchange()
    ordinary = asked.settings.timeouts
    assert ordinary == asked.timeouts
    for tier, timeouts in (("auto", ordinary), ("flex", ordinary._replace(first_byte=900.0, chunk=900.0))):
        asked.request(asking("POST", "/v1/chat/completions", chat(service_tier=tier)))
        assert timeouts == asked.timeouts


def test_a_recording_answers_instead_of_azure() -> None:
    """Without a key; what the player gives in its own pace streams."""
    recorded = tflow.tflow(resp=True)

    class Recorded:
        def find(self, *_: object) -> http.HTTPFlow:
            return recorded

        def respond(self, *_: object) -> http.Response | None:
            return None

    one = exchange()
    one.replay = cast("Replay", Recorded())
    assert one.request(asking("POST", "/v1/chat/completions", chat())) is None
    played, at_once = answering(200, b"", **{"set-cookie": "a=b", "access-control-allow-origin": "*"}), answering(200, b"{}")
    played.raw_content = None
    one.response_head(played)
    one.response_head(at_once)
    assert (None, recorded, True, False) == (one.from_azure, one.recorded, played.stream, at_once.stream)
    assert {"content-type", "content-length", "x-request-id", "x-content-type-options"} == set(played.headers)
    one.verify(asking("GET", "/name"))
    with pytest.raises(BadRequest, match="spaces"):
        one.verify(asking("GET", "/name a"))


def test_a_recording_may_be_at_hand() -> None:
    """A response that is played at once is not sent to the local server."""
    played = answering(200, b"{}")

    class Recorded:
        def find(self, *_: object) -> http.HTTPFlow:
            return tflow.tflow(resp=True)

        def respond(self, *_: object) -> http.Response:
            return played

    one, request = exchange(), asking("POST", "/v1/chat/completions", chat())
    one.replay = cast("Replay", Recorded())
    one.meter = meter = Meters(lambda _: None).start(request, "::1")
    assert (played, None) == (one.request(request), one.to_azure)
    assert meter
    assert meter.replayed


def early(one: Exchange, method: str = "POST", path: str = "/v1/responses", **headers: str) -> http.Response | None:
    request = http.Request.make(method, f"http://localhost{path}")
    request.headers.update(headers)
    one.request_head(request)
    return one.early


def test_a_request_without_a_key_is_refused_by_its_head() -> None:
    """With the response that it would get after its body."""
    refused = early(exchange())
    assert refused
    with pytest.raises(NoKey) as raised:
        exchange().request(http.Request.make("POST", "http://localhost/v1/chat/completions", chat()))
    assert (401, raised.value.message) == (refused.status_code, json.loads(refused.text or "")["error"]["message"])


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/v1/responses", {"authorization": "Bearer k"}),
        ("POST", "/v1/responses", {"api-key": "k"}),
        ("POST", "/v1/responses?api-key=k", {}),
        ("GET", "/v1/realtime", {"upgrade": "WebSocket", "sec-websocket-protocol": "realtime, openai-insecure-api-key.k"}),
        ("GET", "/v1/models", {}),
        ("GET", "/", {}),
        ("OPTIONS", "/v1/responses", {}),
    ],
)
def test_other_requests_are_not_refused_by_their_head(method: str, path: str, headers: dict[str, str]) -> None:
    """The client has a key, or none is needed."""
    assert early(exchange(), method, path, **headers) is None


def test_a_configured_key_admits_every_request() -> None:
    """Of any backend, since the model is not known yet; recordings and OpenAI itself need none of ours."""
    replayed = exchange()
    replayed.replay = cast("Replay", object())
    entra = exchange()
    entra.settings = replace(entra.settings, backends=(replace(entra.settings.backends[0], entra="cli"),))
    assert [None] * 4 == [early(one) for one in (exchange(token="k"), exchange(mode="openai"), replayed, entra)]


async def test_the_record_of_a_websocket() -> None:
    """On its flow a WebSocket has the tokens of all its responses, and a WebSocket that was not measured has no record."""
    asked = exchange()
    assert asked.measure_websocket_end(WebSocketData()) is None
    request = asking("GET", "/v1/realtime?model=m", upgrade="websocket", connection="upgrade")
    asked.meter = Meters(lambda _: None, lambda _: Tariff((), ((125_000, 0, 0, 0, 0, 0, 0),))).start(request, "127.0.0.1")
    asked.request(request)
    asked.response_head(http.Response.make(101, b"", {"upgrade": "websocket", "connection": "upgrade"}))
    for usage in (b'{"input_tokens":2,"output_tokens":3}', b"null", b'{"input_tokens":4}'):
        frame = b'{"type":"response.done","response":{"id":"r","usage":%b}}' % usage
        asked.messages.translate([WebSocketMessage(Opcode.TEXT, from_client=False, content=frame)], 1000)
    record = asked.measure_websocket_end(WebSocketData(closed_by_client=True))
    assert record
    assert (Tokens(6, output=3), 0.25) == (record.tokens, record.cost_usd)


@pytest.mark.parametrize("websocket", [True, False])
def test_an_exchange_is_freed_at_once(websocket: bool) -> None:
    """With its bodies: no stage refers back to it, so that it does not wait for the garbage collector."""
    if websocket:
        asked, request = exchange(mapping="m=d"), asking("GET", "/v1/realtime?model=m", upgrade="websocket")
    else:
        asked, request = two_backends(), asking("POST", "/v1/chat/completions", chat(stream=True))
    asked.request(request)
    if not websocket:
        asked.next_attempt(request, answering(503, b""))
        asked.hold_mode(answering(200, b"", "text/event-stream"))
    asked.response_head(answering(101 if websocket else 200, b"", "text/event-stream"))
    assert asked.messages.call is asked.call
    freed = weakref.ref(asked.shared.pool)
    del asked
    assert freed() is None
