"""The recording of flows while they run."""

from __future__ import annotations

import zlib
from typing import Literal

import pytest
from mitmproxy import flow as flows
from mitmproxy import http
from mitmproxy.io import tnetstring
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.accounting.record import CallRecord, Tokens
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config import settings
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.inspection import recorder
from azure_openai_proxy.inspection.body_store import Tap
from azure_openai_proxy.inspection.recorder import Recorder

KEY = "azure-key-0123456789"
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"content_filter_results":{}}]}\n\n'
RECORD = CallRecord(time=1.0, request_id="r", trace_id="t", tokens=Tokens(1204, 1024, output=87), cost_usd=0.0031)
LAST = b'data: {"choices":[],"usage":{"prompt_tokens":23,"completion_tokens":11}}\n\ndata: [DONE]\n\n'


def began(see: Recorder, body: bytes = b'{"model":"gpt-4o","stream":true}', apiversion: str = "v1") -> tuple[http.HTTPFlow, Exchange]:
    """The flow of an OpenAI request that was sent to Azure."""
    backend = Backend(name="west", base=Base("https", "r.openai.azure.com", 443), token=KEY, apiversion=apiversion)
    exchange = Exchange(settings.Settings(backends=(backend,), mapper=Mapper.parse("gpt-4o=prod")), None)
    request = http.Request.make("POST", "http://localhost/v1/chat/completions", body, http.Headers(authorization="Bearer client"))
    request.timestamp_start = request.timestamp_end = 1.0
    flow = tflow.tflow(req=request)
    see.record_request(flow)
    exchange.request(flow.request)
    see.record_upstream_request(flow, exchange.facts())
    return flow, exchange


def answered(see: Recorder, flow: http.HTTPFlow, exchange: Exchange, *pieces: bytes, encoding: str = "", ends: bool = True) -> None:
    """Let Azure respond with a stream."""
    response = flow.response = http.Response.make(200, b"", http.Headers(content_type="text/event-stream"))
    response.raw_content = None
    if encoding:
        response.headers["content-encoding"] = encoding
    see.record_response_head(flow, response)
    exchange.response_head(response)
    see.tap_stream(flow, response)
    assert isinstance(response.stream, Tap)
    for piece in pieces:
        response.stream(piece)
    if ends:
        response.stream(b"")
        response.timestamp_end = 3.0


def ended(
    see: Recorder, flow: http.HTTPFlow, exchange: Exchange, azure_body: bytes | None = None, record: CallRecord | None = RECORD
) -> None:
    """Let the response end."""
    see.record_body(flow, exchange.facts(), azure_body)
    see.record_end(flow, exchange.facts(), record)


@pytest.fixture
def see() -> Recorder:
    """A recorder that stores bodies."""
    made = Recorder()
    made.keep(1_000_000)
    return made


def test_a_request_that_is_not_utf8_can_be_saved(see: Recorder) -> None:
    """In its method, its path or its key."""
    flow = tflow.tflow(resp=True)
    flow.request.data.path, flow.request.data.method = b"/v1/\xff", b"G\xff"
    see.record_request(flow)
    assert ["G\\udcff", "/v1/\\udcff"] == flow.metadata["azure_openai_asked"][:2]
    see.record_body(flow, recorder.RequestFacts(secrets=("a-long-key-\udcff",)), b"the key is a-long-key-\xff")
    assert b"the key is [key]" == flow.metadata["azure_openai_azures"]
    tnetstring.dumps(flow.get_state())


def test_a_stream_is_kept(see: Recorder) -> None:
    """A stream is stored as sent to the client and as received from Azure, with the times of its chunks and its facts."""
    flow, exchange = began(see)
    answered(see, flow, exchange, CHUNK, LAST)
    ended(see, flow, exchange)
    assert flow.response
    assert flow.comment.startswith("gpt-4o → prod · at west · 1,204+87 tokens (1,024 cached) · $0.0031 · first chunk ")
    assert b"content_filter" not in (flow.response.raw_content or b"content_filter")
    assert CHUNK + LAST == flow.metadata["azure_openai_azures"]
    assert 4 == len(flow.metadata["azure_openai_chunks"])
    assert [10, 16, b"gpt-4o"] == flow.metadata["azure_openai_asked"][3]
    assert ["200 OK", ((b"content-type", b"text/event-stream"), (b"content-length", b"0"))] == flow.metadata["azure_openai_answered"]


def test_a_compressed_stream_is_kept_readable(see: Recorder) -> None:
    """Azure's compressed stream is stored decoded, or empty if it cannot be decoded."""
    for sent, kept in ((zlib.compress(CHUNK + LAST), CHUNK + LAST), (b"no zlib", b"")):
        flow, exchange = began(see)
        answered(see, flow, exchange, sent, encoding="deflate")
        ended(see, flow, exchange)
        assert kept == flow.metadata["azure_openai_azures"]


def test_without_a_store_no_body_is_kept() -> None:
    """Without a store only the comment and the facts are recorded."""
    see = Recorder()
    flow, exchange = began(see)
    answered(see, flow, exchange, CHUNK, LAST)
    ended(see, flow, exchange)
    kept = {"azure_openai_azures", "azure_openai_chunks", "azure_openai_answered"} & set(flow.metadata)
    assert (None, set(), 1204) == (flow.response and flow.response.raw_content, kept, flow.metadata["azure_openai_input_tokens"])


def test_a_whole_answer(see: Recorder) -> None:
    """Azure's body is stored with masked keys if it differs from the client's, and the record is shown."""
    azure_body = b'{"error":{"message":"no %s"},"usage":{"input_tokens":5}}' % KEY.encode()
    flow, exchange = began(see)
    flow.response = http.Response.make(401, b'{"usage":{"input_tokens":5}}')
    see.tap_stream(flow, flow.response)
    flow.response.timestamp_end = 2.5
    ended(see, flow, exchange, azure_body)
    assert azure_body.replace(KEY.encode(), b"[key]") == flow.metadata["azure_openai_azures"]
    assert ("gpt-4o → prod · at west · 401 · 1,204+87 tokens (1,024 cached) · $0.0031 · 1.5 s", ":red_circle:") == (
        flow.comment,
        flow.marked,
    )


def test_an_answer_that_was_not_changed(see: Recorder) -> None:
    """An unchanged response is stored once."""
    flow, exchange = began(see)
    flow.response = http.Response.make(200, b"{}")
    ended(see, flow, exchange, b"{}")
    assert "azure_openai_azures" not in flow.metadata


def test_a_stream_that_broke_off(see: Recorder) -> None:
    """The received part of an interrupted stream is stored, and the comment reports the interruption."""
    flow, exchange = began(see)
    answered(see, flow, exchange, CHUNK, ends=False)
    flow.error = flows.Error("gone")
    ended(see, flow, exchange)
    assert flow.response
    assert b"hi" in (flow.response.raw_content or b"")
    assert ("broke off", ":red_circle:") == (flow.comment.rpartition(" · ")[2], flow.marked)


def test_a_client_that_leaves_at_the_end(see: Recorder) -> None:
    """A client that disconnects at the [DONE], as OpenAI's SDK does, is no interruption, and the recording can be replayed."""
    flow, exchange = began(see)
    answered(see, flow, exchange, CHUNK, LAST, ends=False)
    flow.error = flows.Error("Client disconnected.")
    ended(see, flow, exchange)
    assert flow.response
    assert ("None", "", True) == (str(flow.error), flow.marked, bool(flow.response.timestamp_end))
    assert "broke off" not in flow.comment


def test_a_failure_is_reported_once(see: Recorder) -> None:
    """The comment has the status of the last attempt once, and the causes of the earlier attempts."""
    flow, exchange = began(see)
    assert exchange.attempts
    exchange.attempts.tried[-1] = exchange.attempts.tried[-1]._replace(cause="400")
    told = []
    for status in (400, 502):
        flow.response = http.Response.make(status, b"{}")
        flow.response.timestamp_end = None
        ended(see, flow, exchange, record=None)
        told.append(flow.comment)
    assert ["gpt-4o → prod · at west · 400", "gpt-4o → prod · at west · 502 · west: 400"] == told


def test_a_request_without_an_answer(see: Recorder) -> None:
    """A request without a response has the error as its comment."""
    flow, exchange = began(see)
    flow.response, flow.error = None, flows.Error("refused")
    ended(see, flow, exchange, record=None)
    assert "gpt-4o → prod · at west · refused" == flow.comment


def test_user_comments_and_marks_stay(see: Recorder) -> None:
    """A comment and a mark set by the user are kept."""
    flow, exchange = began(see)
    flow.comment, flow.marked = "mine", ":star:"
    flow.error = flows.Error("refused")
    ended(see, flow, exchange, record=None)
    assert ("mine", ":star:") == (flow.comment, flow.marked)


@pytest.mark.parametrize("mode", ["azure", "openai"])
@pytest.mark.parametrize("kept", [True, False], ids=["by us", "by mitmproxy"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_secret_made_for_the_client(mode: Literal["azure", "openai"], kept: bool, encoding: str) -> None:
    """A secret that Azure issues reaches the client but is not stored, with this store or with mitmproxy's option to store streams."""
    see = Recorder()
    see.keep(1_000_000 if kept else 0)
    backend = Backend(name="west", base=Base("https", "r.openai.azure.com", 443), token=KEY, apiversion="v1")
    exchange = Exchange(settings.Settings(backends=(backend,), mode=mode), None)
    flow = tflow.tflow(req=http.Request.make("POST", "http://localhost/v1/realtime/client_secrets", b"{}"))
    see.record_request(flow)
    (exchange.forward_unchanged if exchange.unchanged else exchange.request)(flow.request)
    response = flow.response = http.Response.make(
        200, b'{"value":"ek_123"}', {"content-type": "application/json", "content-encoding": encoding}
    )
    body, response.raw_content = response.raw_content or b"", None
    see.record_response_head(flow, response)
    exchange.response_head(response)
    see.tap_stream(flow, response)
    assert isinstance(response.stream, Tap)
    passed = response.stream(body[:5]) + response.stream(body[5:]) + response.stream(b"")
    response.raw_content = None if kept else body
    exchange.response_body(response)
    ended(see, flow, exchange)
    assert (body, b'{"value":"[key]"}') == (b"".join(passed), response.content)
    assert "ek_123" not in str({name: bytes(value) if isinstance(value, bytes) else value for name, value in flow.metadata.items()})


def test_a_realtime_session(see: Recorder) -> None:
    """The comment of a realtime session has the number of its messages and the sum of its tokens."""
    flow, exchange = began(see)
    see.record_websocket_end(flow, exchange.facts())
    assert "gpt-4o → prod · at west · 0 messages" == flow.comment
    flow.websocket = WebSocketData(messages=[WebSocketMessage(Opcode.TEXT, who, b"{}") for who in (True, False, False)])
    flow.response = http.Response.make(101)
    see.record_websocket_end(flow, exchange.facts(), RECORD)
    assert ("gpt-4o → prod · at west · 1,204+87 tokens (1,024 cached) · $0.0031 · 3 messages", True) == (
        flow.comment,
        flow.marked in ("", ":wrench:"),
    )


def test_a_full_shelf_forgets(see: Recorder) -> None:
    """A full store evicts the oldest body, and its flow stays."""
    see.keep(4 * len(CHUNK + LAST) * 4)
    made = [began(see, apiversion="2024-10-21") for _ in range(12)]
    for flow, exchange in made:
        answered(see, flow, exchange, CHUNK, LAST)
        ended(see, flow, exchange)
    kept = [flow.response is not None and flow.response.raw_content is not None for flow, _ in made]
    assert (False, True) == (kept[0], kept[-1])
    assert "azure_openai_azures" not in made[0][0].metadata


def test_a_body_that_does_not_fit_is_not_stored(see: Recorder) -> None:
    """A body that does not fit is not stored in part."""
    flow, exchange = began(see)
    answered(see, flow, exchange, CHUNK, LAST)
    assert see.shelf
    see.shelf.limit = 10
    ended(see, flow, exchange)
    assert flow.response
    assert None is flow.response.raw_content
    other, exchange = began(see)
    other.response = http.Response.make(200, b"{}")
    ended(see, other, exchange, b'{"long": "answer"}')
    assert "azure_openai_azures" not in other.metadata
    assert None is other.metadata["azure_openai_asked"][3] or see.shelf.limit


def test_the_shelf_changes_with_its_limit(see: Recorder) -> None:
    """The same limit keeps the store, another replaces it, and 0 removes it."""
    before = see.shelf
    see.keep(1_000_000)
    assert before is see.shelf
    see.keep(0)
    assert None is see.shelf


def test_nobody_sees_the_record() -> None:
    """Where no flow is shown or saved, the record is not on the flow."""
    see = Recorder()
    see.keep(0, watched=False)
    flow, exchange = began(see)
    flow.response = http.Response.make(200, b"{}")
    ended(see, flow, exchange)
    see.record_websocket_end(flow, exchange.facts(), RECORD)
    assert "azure_openai_record" not in flow.metadata


@pytest.mark.parametrize(
    "headers, said",
    [
        ({"x-ms-deployment-name": "prod"}, None),
        ({"x-ms-deployment-name": "paid", "x-ms-spillover-from-prod": "prod"}, "spillover to paid"),
        ({"X-MS-Spillover-From-Deployment": "prod"}, "spillover to another deployment"),
        ({"x-ms-spillover-error": "429"}, "spillover failed"),
        ({"x-ms-spillover-deployment": "paid"}, None),
    ],
)
def test_spillover(headers: dict[str, str], said: str | None, see: Recorder) -> None:
    """The comment names the deployment that served the request in place of the one that was full."""
    flow, exchange = began(see)
    flow.response = http.Response.make(200, b"{}", {"content-type": "application/json", **headers})
    exchange.response_head(flow.response)
    ended(see, flow, exchange, record=None)
    assert "gpt-4o → prod" in flow.comment
    assert (said is None, said or "") == ("spillover" not in flow.comment, flow.comment.rpartition(" · ")[2] if said else "")
