"""The measurement of a WebSocket and its responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.record import NO_TOKENS, Tokens
from support.metering import BACKEND, TOKENS, Bench, response

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.meter import Meter


async def test_a_websocket(bench: Bench, socket: Meter) -> None:
    """Each response has a record, and the WebSocket has one at its end, without usage."""
    assert socket.end(response(101), None) is None
    bench.now += 1
    socket.frame(b'{"type":"response.create"}', from_client=True)
    bench.now += 1
    socket.frame(b'{"type":"response.created","response":{"id":"r"}}', from_client=False)
    bench.now += 1
    socket.frame(
        b'{"type":"response.done","response":{"id":"r","status":"completed","usage":{"input_tokens":3,"output_tokens":4}}}',
        from_client=False,
    )
    assert [True] == [one.streams for one in bench.meters.running]
    record = socket.socket_ended(by_client=True, normal=False)
    one, whole = await bench.delivered()
    assert record is whole
    assert (1101.0, 2.0, None, TOKENS, 0.5, True, True) == (
        one.time,
        one.duration,
        one.first_byte,
        one.tokens,
        one.cost_usd,
        one.in_websocket,
        one.by_model,
    )
    assert (101, None, "none", NO_TOKENS, False, False) == (
        whole.status,
        whole.incomplete,
        whole.usage_state,
        whole.tokens,
        whole.in_websocket,
        whole.by_model,
    )
    assert (26, 161, 3.0, None) == (whole.request_bytes, whole.response_bytes, whole.first_byte, whole.overhead)
    assert (whole.trace_id, whole.span_id) == (one.trace_id, one.parent_span_id)


@pytest.mark.parametrize(
    "by_client, normal, running, incomplete",
    [
        (True, False, False, None),
        (False, True, False, None),
        (False, False, False, "upstream"),
        (True, True, True, "client"),
        (False, True, True, "upstream"),
    ],
)
async def test_who_ended_a_websocket(
    by_client: bool, normal: bool, running: bool, incomplete: str | None, bench: Bench, socket: Meter
) -> None:
    """A response that runs at the end is incomplete, and its usage is unknown."""
    if running:
        socket.frame(b'{"type":"response.created","response":{"id":"r"}}', from_client=False)
    socket.socket_ended(by_client=by_client, normal=normal)
    *responses, whole = await bench.delivered()
    assert incomplete == whole.incomplete
    assert [(incomplete, "unknown")] * running == [(one.incomplete, one.usage_state) for one in responses]


async def test_a_response_of_a_websocket_that_failed(bench: Bench, socket: Meter) -> None:
    """The upstream ended it."""
    socket.frame(b'{"type":"response.done","response":{"id":"r","status":"failed","usage":null}}', from_client=False)
    (record,) = await bench.delivered()
    assert ("upstream", "unknown", True) == (record.incomplete, record.usage_state, record.failed)


async def test_a_websocket_whose_messages_name_models(bench: Bench) -> None:
    """The model and the deployment are those of the last message with a name that fits into a record."""
    meter = bench.start("/v1/responses", "GET", b"", upgrade="websocket")
    meter.frame_names("early", "none")
    meter.attempt(BACKEND, None)
    meter.frame_names("m", "dep")
    meter.frame_names("x" * 257, "long")
    meter.stream_head(response(101), events=True)
    meter.frame(b'{"type":"error","status":429,"error":{"code":"x"}}', from_client=False)
    (record,) = await bench.delivered()
    assert ("m", "dep", 429, "x", "none") == (record.model, record.deployment, record.status, record.error_code, record.usage_state)


async def test_a_websocket_without_usage(bench: Bench) -> None:
    """Its messages are counted and not read."""
    meter = bench.start("/v1/realtime/translations", "GET", b"", upgrade="websocket")
    meter.stream_head(response(101), events=True)
    meter.frame(b'{"type":"response.done","response":{"id":"r","usage":{"input_tokens":3}}}', from_client=False)
    meter.frame(b"1", from_client=True)
    record = meter.socket_ended(by_client=False, normal=True)
    assert record
    assert [record] == await bench.delivered()
    assert 1 == record.request_bytes


async def test_the_record_with_all_responses(socket: Meter) -> None:
    """The tokens and the cost of all responses can be shown at the WebSocket, whose own record has none."""
    for name in ("a", "b"):
        event = f'{{"type":"response.done","response":{{"id":"{name}","usage":{{"input_tokens":3,"output_tokens":4}}}}}}'
        socket.frame(event.encode(), from_client=False)
    record = socket.socket_ended(by_client=True, normal=True)
    whole = socket.with_responses
    assert record
    assert whole
    assert (NO_TOKENS, Tokens(input=6, output=8), 1.0) == (record.tokens, whole.tokens, whole.cost_usd)


@pytest.mark.parametrize("configured", [False, True])
async def test_a_transcription(configured: bool, bench: Bench, socket: Meter) -> None:
    """It has a record of its own, of the transcriber's model if it is known, and its tokens are part of the WebSocket's."""
    if configured:
        session = b'{"audio":{"input":{"transcription":{"model":"heard"}}}}'
        socket.frame(b'{"type":"session.update","session":%b}' % session, from_client=True)
    socket.frame(
        b'{"type":"conversation.item.input_audio_transcription.completed","item_id":"i","usage":{"input_tokens":3,"output_tokens":4}}',
        from_client=False,
    )
    socket.socket_ended(by_client=True, normal=True)
    one, _ = await bench.delivered()
    assert (TOKENS, "known", "i", True) == (one.tokens, one.usage_state, one.response_id, one.in_websocket)
    assert socket.call
    assert ("heard" if configured else socket.call.model) == one.model
    assert socket.with_responses
    assert TOKENS == socket.with_responses.tokens
