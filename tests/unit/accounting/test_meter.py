"""The measurement of one request. Its use by a real mitmdump is tested in tests/e2e/test_access_log.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from mitmproxy import http

from azure_openai_proxy.accounting import usage
from azure_openai_proxy.accounting.meters import NO_REMAINING, Remaining
from azure_openai_proxy.accounting.record import NO_TOKENS, AttemptRecord
from azure_openai_proxy.api.backend import Base
from azure_openai_proxy.errors import Failure
from support.metering import ANSWER, BACKEND, TOKENS, USAGE, Bench, Keys, fields, response, streamed

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.meter import Meter


async def test_a_response(bench: Bench) -> None:
    """The record has what the request, the attempt and the response say, and the times in between."""
    meter = bench.start(user_agent="agent", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    bench.now += 0.1
    meter.attempt(BACKEND, "dep")
    bench.now += 0.1
    meter.sending()
    bench.now += 5
    head = response(content=ANSWER, x_request_id="id", x_ms_deployment_name="dep")
    meter.head(head)
    bench.now += 0.3
    record = meter.end(head, ANSWER)
    assert record
    assert [record] == await bench.delivered()
    assert pytest.approx([1099.0, 6.5, 6.5, 0.5]) == [record.time, record.duration, record.first_byte, record.overhead]
    assert ("id", "a" * 32, "b" * 16, True) == (record.request_id, record.trace_id, record.parent_span_id, record.traced)
    assert ("10.0.0.1", "agent", "POST", "/v1/chat/completions") == (record.client_ip, record.user_agent, record.method, record.path)
    assert ("chat.completions", "chat", True, False) == (record.operation, record.gen_ai_operation, record.by_model, record.stream)
    assert ("m", "dep", "dep", False, "b", "eu") == (
        record.model,
        record.deployment,
        record.served_deployment,
        record.spillover,
        record.backend,
        record.zone,
    )
    assert ("known", TOKENS, 0.5, "m-1", "c") == (
        record.usage_state,
        record.tokens,
        record.cost_usd,
        record.response_model,
        record.response_id,
    )
    assert (13, len(ANSWER)) == (record.request_bytes, record.response_bytes)
    (attempt,) = record.attempts
    assert AttemptRecord("b", "dep", "ok", attempt.started, attempt.ended, "r.openai.azure.com", 443) == attempt
    assert pytest.approx([1100.2, 1105.5]) == [attempt.started, attempt.ended]
    assert not bench.meters.running


async def test_a_record_is_made_once(bench: Bench) -> None:
    """An error after the end changes nothing."""
    meter = bench.start()
    assert meter.end(response(), None)
    assert meter.end(None, None, "Client disconnected.") is None
    assert 1 == len(await bench.delivered())


async def test_several_attempts(bench: Bench) -> None:
    """Each attempt has its outcome; the time between two of them is the proxy's."""
    meter = bench.start()
    meter.attempt(BACKEND, "one")
    meter.sending()
    bench.now += 1
    meter.attempt_failed(response(429, x_ratelimit_remaining_tokens="7", x_ratelimit_remaining_requests="-1"))
    bench.now += 0.2
    meter.attempt(BACKEND, "two")
    meter.sending()
    bench.now += 1
    meter.attempt_failed(Failure(502, "upstream_unreachable", "no"))
    meter.attempt_failed(Failure(502, "late", "no"))
    record = meter.end(response(502, b'{"error":{"code":"upstream_unreachable"}}'), None)
    assert record
    assert [("one", "429"), ("two", "upstream_unreachable")] == [(one.deployment, one.outcome) for one in record.attempts]
    assert (502, "upstream_unreachable", "none", "two") == (record.status, record.error_code, record.usage_state, record.deployment)
    assert pytest.approx(0.2) == record.overhead
    assert [("b", "one")] == bench.meters.deployments(["b"])
    assert Remaining(7) == bench.meters.remaining.get(("b", "one"), NO_REMAINING)


async def test_a_stream(bench: Bench) -> None:
    """Its first byte, the time between its events, its size and its usage are measured. Waiting for Azure is no overhead."""
    meter = bench.start(body=b'{"model":"m","stream":true}')
    meter.attempt(BACKEND, "dep")
    meter.sending()
    bench.now += 2
    head = streamed(meter)
    assert [True] == [one.streams for one in bench.meters.running]
    for data in (b'data: {"id":"c"}\n\n', b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'):
        bench.now += 1
        began = bench.now
        meter.event(data[6:])
        bench.now += 0.01
        meter.chunk(began, [data], last=False)
    meter.chunk(bench.now, [], last=True)
    bench.now += 0.03
    record = meter.end(head, None)
    assert record
    assert (True, "known", TOKENS, None) == (record.stream, record.usage_state, record.tokens, record.incomplete)
    assert pytest.approx([4.01, 1.01, 0.05]) == [record.first_byte, record.time_per_chunk, record.overhead]
    assert 90 == record.response_bytes
    assert [] == bench.meters.running


async def test_a_stream_without_usage(bench: Bench) -> None:
    """Its usage is unknown, and its tokens are not zero."""
    meter = bench.start(body=b'{"model":"m","stream":true}')
    meter.attempt(BACKEND, "dep")
    record = meter.end(streamed(meter), None)
    assert record
    assert ("unknown", NO_TOKENS, None) == (record.usage_state, record.tokens, record.cost_usd)


@pytest.mark.parametrize(
    "error, incomplete",
    [("Client disconnected.", "client"), ("stream reset by client (CANCEL)", "client"), ("anything else", "upstream"), (None, None)],
)
async def test_who_ended_a_stream(error: str | None, incomplete: str | None, bench: Bench) -> None:
    """The error of the HTTP layer says it."""
    meter = bench.start()
    meter.attempt(BACKEND, "dep")
    record = meter.end(streamed(meter), None, error)
    assert record
    assert incomplete == record.incomplete


async def test_a_stream_that_breaks_off(bench: Bench) -> None:
    """The record has the code of the failure, and the size includes the event that tells the client."""
    meter = bench.start()
    meter.attempt(BACKEND, "dep")
    head = streamed(meter)
    meter.chunk(bench.now, [b"data: 1\n\n"], last=False)
    meter.broke_off(Failure(502, "upstream_error", "no"))
    meter.end(head, None, "The connection upstream failed.")
    assert [] == await bench.delivered()
    meter.last_event(20)
    (record,) = await bench.delivered()
    assert ("upstream", "upstream_error", 29) == (record.incomplete, record.error_code, record.response_bytes)
    assert ["upstream_error"] == [one.outcome for one in record.attempts]


async def test_a_client_that_leaves_after_the_last_event(bench: Bench) -> None:
    """The response is complete."""
    meter = bench.start("/v1/responses")
    meter.attempt(BACKEND, "dep")
    head = streamed(meter)
    meter.event(b'{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3,"output_tokens":4}}}')
    record = meter.end(head, None, "Client disconnected.")
    assert record
    assert (None, TOKENS) == (record.incomplete, record.tokens)


@pytest.mark.parametrize(
    "event",
    [{"type": "response.failed", "response": {"status": "failed", "error": {"code": "x"}}}, {"type": "error", "error": {"code": "x"}}],
)
async def test_a_failure_in_a_stream(event: dict[str, Any], bench: Bench) -> None:
    """The upstream ended the response, though the status is 200."""
    meter = bench.start("/v1/responses")
    head = streamed(meter)
    meter.event(json.dumps(event).encode())
    record = meter.end(head, None)
    assert record
    assert (200, "upstream", "x", True) == (record.status, record.incomplete, record.error_code, record.failed)


async def test_a_client_that_leaves_before_the_head(bench: Bench) -> None:
    """There is no status. Its usage is unknown if Azure got the request."""
    for attempts, state in ((1, "unknown"), (0, "none")):
        meter = bench.start()
        for _ in range(attempts):
            meter.attempt(BACKEND, "dep")
        record = meter.end(None, None, "Client disconnected.")
        assert record
        assert (None, "client", state, None, None) == (
            record.status,
            record.incomplete,
            record.usage_state,
            record.response_bytes,
            record.first_byte,
        )
        assert ["client_left"] * attempts == [one.outcome for one in record.attempts]


async def test_an_error_response_of_the_http_layer(bench: Bench) -> None:
    """Its status and code come after the error itself, and the record waits for them."""
    meter = bench.start()
    meter.attempt(BACKEND, "dep")
    meter.attempt_failed(Failure(502, "upstream_unreachable", "no"))
    meter.end(None, None, "Could not connect upstream.")
    assert [] == await bench.delivered()
    meter.error_response(Failure(502, "upstream_unreachable", "no"), response(502, b"12345", x_request_id="id"))
    (record,) = await bench.delivered()
    assert (502, "upstream_unreachable", None, "none", 5, "id") == (
        record.status,
        record.error_code,
        record.incomplete,
        record.usage_state,
        record.response_bytes,
        record.request_id,
    )


async def test_a_late_event_and_a_late_error_response(bench: Bench) -> None:
    """Without a record there is nothing to change."""
    meter = bench.start()
    meter.last_event(1)
    meter.error_response(Failure(500, "x", "no"), response(500))
    assert [] == await bench.delivered()


@pytest.mark.parametrize(
    "content, code",
    [
        (b'{"error":{"code":"x"}}', "x"),
        (b'{"error":{"code":429}}', "429"),
        (b'{"error":{"code":null}}', None),
        (b'{"error":{"code":""}}', None),
        (b'{"error":"x"}', None),
        (b"[]", None),
        (b"Not found.", None),
        (b'{"error":{"code":"x"}}' + b" " * 70_000, None),
    ],
)
async def test_the_code_of_an_error(content: bytes, code: str | None, bench: Bench) -> None:
    """It is that of the body as the client gets it."""
    record = bench.start().end(response(400, content), None)
    assert record
    assert code == record.error_code


@pytest.mark.parametrize("replayed", [False, True])
async def test_a_recorded_response(replayed: bool, bench: Bench) -> None:
    """No model was asked, so there is no usage."""
    meter = bench.start()
    meter.replayed = replayed
    meter.attempt(BACKEND, "dep")
    record = meter.end(response(content=ANSWER), ANSWER)
    assert record
    assert (NO_TOKENS if replayed else TOKENS) == record.tokens
    assert ("none" if replayed else "known") == record.usage_state


@pytest.mark.parametrize(
    "path, body, answer, state",
    [
        ("/v1/audio/transcriptions", b'{"model":"m"}', {"text": "a", "usage": {"type": "duration", "seconds": 2}}, "none"),
        ("/v1/audio/transcriptions", b'{"model":"m"}', {"text": "a"}, "unknown"),
        ("/v1/files", b"{}", {"usage": USAGE}, "none"),
        ("/v1/responses", b'{"model":"m","background":true}', {"id": "r", "background": True, "status": "queued"}, "none"),
        ("/v1/responses", b'{"model":"m","background":true}', {"id": "r"}, "none"),
        ("/v1/responses", b'{"model":"m"}', {"id": "r"}, "unknown"),
        ("/v1/nothing", b'{"model":"m"}', {}, "none"),
    ],
    ids=["seconds", "no usage", "another operation", "in the background", "in the background, unread", "no usage either", "unknown"],
)
async def test_whether_usage_is_unknown(path: str, body: bytes, answer: dict[str, Any], state: str, bench: Bench) -> None:
    """It is unknown if the operation reports usage and the response has none."""
    meter = bench.start(path, body=body)
    meter.attempt(BACKEND, "dep")
    record = meter.end(response(), json.dumps(answer).encode())
    assert record
    assert (state, NO_TOKENS) == (record.usage_state, record.tokens)


async def test_the_usage_of_a_response_in_the_background(bench: Bench) -> None:
    """It is counted once, by the request that shows it first, and polling for another response counts nothing."""

    def poll(**answer: Any) -> tuple[str, int | None, str | None]:
        meter = bench.start("/v1/responses/r", "GET", b"")
        meter.attempt(BACKEND, "")
        record = meter.end(response(), json.dumps({"id": "r", "usage": {"input_tokens": 3}} | answer).encode())
        assert record
        assert ("fetch_response", None) == (record.gen_ai_operation, record.incomplete)
        return record.usage_state, record.tokens.input, record.once

    nothing = "none", None, None
    assert nothing == poll(status="completed")
    assert nothing == poll(status="in_progress", background=True)
    assert nothing == poll(status="completed", background=True, id=None)
    assert nothing == poll(status="failed", background=True, usage=None, error={"code": "x"})
    assert ("known", 3, "r") == poll(status="completed", background=True)
    assert nothing == poll(status="completed", background=True)
    assert ("known", 3, "s") == poll(status="cancelled", background=True, id="s")


async def test_the_usage_of_a_batch(bench: Bench) -> None:
    """It has a tier of its own, and a batch that failed is no failed request."""
    records = []
    for status in ("Validating", "Completed", "completed"):
        meter = bench.start("/v1/batches/batch_1", "GET", b"")
        meter.attempt(BACKEND, "")
        content = json.dumps({"id": "batch_1", "status": status, "usage": {"input_tokens": 3, "output_tokens": 4}}).encode()
        records.append(meter.end(response(), content))
    assert [(NO_TOKENS, None, None), (TOKENS, "batch_1", "batch"), (NO_TOKENS, None, None)] == [
        (record.tokens, record.once, record.price_tier) for record in records if record
    ]
    failed = bench.start("/v1/batches/batch_2", "GET", b"").end(response(), b'{"id":"batch_2","status":"failed"}')
    assert failed
    assert failed.incomplete is None


async def test_a_chain_of_responses(bench: Bench) -> None:
    """The first response of a chain is the session of the others."""
    sessions = []
    for previous, id in ((None, "a"), ("a", "b"), ("b", "c"), ("unknown", "d")):
        meter = bench.start("/v1/responses", body=json.dumps({"model": "m", "previous_response_id": previous}).encode())
        record = meter.end(response(), json.dumps({"id": id}).encode())
        assert record
        sessions.append(record.session)
    assert [None, "a", "a", "unknown"] == sessions


async def test_details_of_the_request(bench: Bench) -> None:
    """The record has the requested tier and effort."""
    record = bench.start("/v1/responses", body=b'{"model":"m","service_tier":"flex","reasoning":{"effort":"low"}}').end(response(), None)
    assert record
    assert ("flex", "low") == (record.service_tier_requested, record.reasoning_effort)


async def test_a_request_that_was_not_recognised(bench: Bench) -> None:
    """The path says which operation it is."""
    meter = bench.request("/v1/chat/completions?a=b")
    record = meter.end(response(401, b'{"error":{"code":"invalid_api_key"}}'), None)
    assert record
    assert ("chat.completions", "invalid_api_key", None, None, None, "/v1/chat/completions") == (
        record.operation,
        record.error_code,
        record.model,
        record.request_bytes,
        record.backend,
        record.path,
    )
    assert record.request_id


async def test_a_request_that_goes_on_unchanged(bench: Bench) -> None:
    """In openai mode the body is counted, and the usage is unknown."""
    meter = bench.request()
    count = meter.upload(rewrite=True)
    assert [b"1234"] == count(b"1234")
    assert [] == count(b"")
    meter.sending()
    head = response()
    meter.head(head)
    head.stream = True
    meter.stream_head(head, events=False)
    meter.event(b"{}")
    meter.chunk(bench.now, [b"123"], last=False)
    meter.chunk(bench.now, [], last=True)
    record = meter.end(head, None)
    assert record
    assert (4, 3, "unknown", None, None) == (
        record.request_bytes,
        record.response_bytes,
        record.usage_state,
        record.overhead,
        record.time_per_chunk,
    )


async def test_a_streamed_upload(bench: Bench) -> None:
    """The function that rewrites the body gets it, and the bytes of the client count."""
    meter = bench.request("/v1/files")
    count = meter.upload(rewrite=lambda data: [data, data])
    assert [b"12", b"12"] == count(b"12")
    assert 2 == meter.request_bytes


@pytest.mark.parametrize(
    "headers, spillover",
    [
        ({}, None),
        ({"x_ms_deployment_name": "dep"}, False),
        ({"x_ms_spillover_from_dep": "dep", "x_ms_deployment_name": "std"}, True),
        ({"x_ms_spillover_error": "429"}, False),
        ({"no_x_ms_spillover_from": "dep"}, None),
    ],
)
async def test_spillover(headers: dict[str, str], spillover: bool | None, bench: Bench) -> None:
    """Azure's headers say whether another deployment answered; without them it is unknown."""
    meter = bench.start()
    meter.head(http.Response.make(200, b"", fields(headers)))
    record = meter.end(response(), None)
    assert record
    assert (spillover, headers.get("x_ms_deployment_name")) == (record.spillover, record.served_deployment)


async def test_the_spillover_of_an_earlier_attempt(bench: Bench) -> None:
    """The last response counts."""
    meter = bench.start()
    meter.attempt(BACKEND, "dep")
    for headers in ({"x_ms_deployment_name": "other", "x_ms_spillover_from_dep": "dep"}, {}):
        head = response(200, ANSWER, **headers)
        meter.head(head)
    meter.end(head, ANSWER)
    (record,) = await bench.delivered()
    assert (None, None) == (record.spillover, record.served_deployment)


@pytest.mark.parametrize("more", [{}, {"user_agent": "a"}])
async def test_the_session_of_a_header(more: dict[str, Any], bench: Bench) -> None:
    """The session of a header is recorded, whether or not the client has a user agent."""
    record = bench.start(x_session_affinity="s", **more).end(response(), None)
    assert record
    assert "s" == record.session


async def test_untrusted_texts(bench: Bench) -> None:
    """Texts are on one line, bounded, and without keys."""
    meter = bench.start("/v1/files/secret-key-1234", "GET", b"", user_agent="\ta\x1b" + "x" * 1000, session_id="secret-key-1234")
    meter.keys = Keys(("secret-key-1234",))
    record = meter.end(response(), None)
    assert record
    assert ("/v1/files/[key]", "[key]") == (record.path, record.session)
    assert (r"\ta\x1b" + "x" * 253) == record.user_agent


async def test_the_limits_of_a_deployment_that_does_not_exist(bench: Bench) -> None:
    """A deployment that is not found is not remembered, so that made-up names do not displace the others."""
    meter = bench.start()
    meter.attempt(BACKEND, "made-up")
    meter.attempt_failed(response(404))
    meter.attempt(BACKEND, "made-up")
    meter.head(response(404))
    assert 0 == len(bench.meters.remaining)


@pytest.mark.parametrize("ids", [f"{'ab' * 16}-{'1' * 16}", f"{'1' * 32}-{'ab' * 8}"])
@pytest.mark.parametrize("attempted", [True, False])
async def test_ids_of_a_trace_that_are_parts_of_a_key(ids: str, attempted: bool, bench: Bench) -> None:
    """A request whose trace or span id is a part of its key has a trace of its own, with the client's decision on sampling."""
    meter = bench.start(traceparent=f"00-{ids}-00")
    meter.keys = Keys(("AB" * 20,))
    if attempted:
        meter.attempt(BACKEND, "m")
    record = meter.end(response(), None)
    assert record
    assert "ab" * 8 not in record.trace_id + record.parent_span_id
    assert ("", False) == (record.parent_span_id, record.traced)


async def test_a_failure_of_accounting(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the request goes on."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patched:
        patched.setattr(usage.Events, "event", fail)
        meter = bench.start()
        head = streamed(meter)
        meter.event(b"{}")
        meter.event(b"{}")
        socket = bench.start("/v1/realtime", "GET", upgrade="websocket")
        socket.stream_head(response(101), events=True)
        socket.frame(b'"usage"', from_client=False)
    assert 2 == caplog.text.count("cannot be read")
    monkeypatch.setattr(bench.meters, "later", fail)
    assert meter.end(head, None) is None
    assert socket.socket_ended(by_client=True, normal=True) is None
    assert 2 == caplog.text.count("not accounted for")
    bench.start().cut_off()
    assert 3 == caplog.text.count("not accounted for")
    monkeypatch.setattr("azure_openai_proxy.accounting.meters.Meter", fail)
    assert bench.meters.start(http.Request.make("GET", "http://proxy/"), "") is None
    assert not bench.meters.running


async def test_the_end_of_the_process(bench: Bench, socket: Meter) -> None:
    """Requests that run are recorded as cut off by the proxy, WebSockets as closed."""
    meter = bench.start()
    meter.attempt(BACKEND, "dep")
    streamed(meter)
    bench.start().end(response(), None)
    bench.meters.flush()
    records = {(record.status, record.incomplete, record.error_code) for record in bench.records}
    assert {(200, None, None), (101, None, None), (200, "upstream", "proxy_stopped")} == records
    assert socket.record
    bench.records.clear()
    assert [] == await bench.delivered()


async def test_a_response_of_another_addon(bench: Bench) -> None:
    """A request that was not sent has used nothing."""
    record = bench.start().end(response(content=ANSWER), ANSWER)
    assert record
    assert ("none", NO_TOKENS, None) == (record.usage_state, record.tokens, record.cost_usd)


async def test_a_body_that_is_parsed_already(bench: Bench) -> None:
    """Its members are read from the object, and not from the bytes again."""
    meter = bench.start()
    meter.attempt(BACKEND, "dep")
    head = response(content=ANSWER)
    record = meter.end(head, b"{}", parsed=json.loads(ANSWER))
    assert record
    assert (TOKENS, "m-1", "c") == (record.tokens, record.response_model, record.response_id)


async def test_a_frame_before_the_head_of_a_websocket(bench: Bench) -> None:
    """Only its size is counted."""
    meter = bench.start("/v1/realtime", "GET", b"", upgrade="websocket")
    meter.frame(b"1234", from_client=True)
    assert (4, None, None) == (meter.request_bytes, meter.with_responses, meter.socket_ended(by_client=True, normal=True))


def finished(bench: Bench, content: bytes = ANSWER, status: int = 200) -> tuple[Meter, http.Response]:
    """A request whose response is complete."""
    meter = bench.start(user_agent="agent", session_id="s")
    meter.attempt(BACKEND, "dep")
    head = response(status, content, x_request_id="id", x_ratelimit_remaining_tokens="7")
    meter.head(head)
    return meter, head


@pytest.mark.parametrize("parsed", [None, json.loads(ANSWER)])
async def test_a_record_that_is_made_later(parsed: dict[str, Any] | None, bench: Bench) -> None:
    """It is the one that is made at once, apart from ids; the time until it is made does not count."""
    meter, head = finished(bench)
    expected = meter.end(head, ANSWER)
    assert [expected] == await bench.delivered()
    meter, head = finished(bench)
    meter.end_soon(head, ANSWER, parsed=parsed)
    bench.now += 1
    assert [] == await bench.delivered()
    assert not bench.meters.running
    assert meter.end(head, ANSWER) is None
    bench.meters.complete()
    assert expected
    (record,) = await bench.delivered()
    assert expected == replace(record, span_id=expected.span_id, trace_id=expected.trace_id)
    meter.end_soon(head, ANSWER)
    bench.meters.complete()
    assert [] == await bench.delivered()
    assert Remaining(7) == bench.meters.remaining.get(("b", "dep"), NO_REMAINING)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_members_of_a_meter(stream: bool, bench: Bench) -> None:
    """Python keeps no more of them in an array, which is faster than a dictionary."""
    meter = bench.start(user_agent="agent")
    meter.attempt(BACKEND, "dep")
    head = streamed(meter) if stream else response(200, ANSWER)
    if stream:
        meter.chunk(bench.now, [b"data: {}\n\n"], last=True)
    else:
        meter.head(head)
    meter.end_soon(head, None if stream else ANSWER)
    assert len(vars(meter)) <= 29


async def test_a_record_that_is_not_made_later(bench: Bench) -> None:
    """The record of an error is made at once."""
    meter, head = finished(bench, b"{}", 404)
    meter.end_soon(head, b"{}")
    assert [meter.record] == await bench.delivered()


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_record_that_cannot_be_made_later(
    at_once: bool, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and other records are made. `at_once`: the failure occurs at the end of the response."""
    meter, head = finished(bench)
    if at_once:
        monkeypatch.setattr(meter, "call", 3)
    meter.end_soon(head, ANSWER)
    monkeypatch.setattr(meter, "call", 3)
    other, head = finished(bench)
    other.end_soon(head, ANSWER)
    bench.meters.flush()
    assert 1 == len(bench.records)
    assert 1 == caplog.text.count("not accounted for")
    assert not bench.meters.running


@pytest.mark.parametrize(
    ("path", "usage", "state", "counts"),
    [
        ("/v1/chat/completions", {"prompt_tokens": 3, "completion_tokens": -1}, "unknown", (3, None)),
        ("/v1/chat/completions", {"prompt_tokens": 3}, "unknown", (3, None)),
        ("/v1/chat/completions", {"prompt_tokens": True, "completion_tokens": 4}, "unknown", (None, 4)),
        ("/v1/chat/completions", {"prompt_tokens": "3", "completion_tokens": "4"}, "unknown", (None, None)),
        ("/v1/chat/completions", {"prompt_tokens": 3.0, "completion_tokens": 4.0}, "known", (3, 4)),
        ("/v1/embeddings", {"prompt_tokens": 3, "total_tokens": 3}, "known", (3, None)),
        ("/v1/embeddings", {"prompt_tokens": "3"}, "unknown", (None, None)),
    ],
)
async def test_a_usage_without_a_count_that_costs(
    path: str, usage: dict[str, Any], state: str, counts: tuple[int | None, ...], bench: Bench
) -> None:
    """It is not known, so that no part of the cost is taken for all of it. The other counts are recorded."""
    body = json.dumps({"id": "c", "model": "m-1", "usage": usage}).encode()
    meter = bench.start(path)
    meter.attempt(BACKEND, "dep")
    head = response(200, body)
    meter.head(head)
    record = meter.end(head, body)
    assert record
    assert (state, state == "known") == (record.usage_state, record.cost_usd is not None)
    assert counts == (record.tokens.input, record.tokens.output)


async def test_the_order_of_records(bench: Bench, socket: Meter) -> None:
    """Records are delivered in the order in which their requests ended, also if only some of them are made later."""
    statuses: list[int | None] = []
    for status in (200, 404, 201):
        meter, head = finished(bench, status=status)
        meter.end_soon(head, ANSWER)
        statuses += [record.status for record in await bench.delivered()]
    assert [200, 404] == statuses
    socket.frame(b'{"type":"response.done","response":{"id":"r","usage":null}}', from_client=False)
    assert [(201, False), (200, True)] == [(record.status, record.in_websocket) for record in bench.records]


async def test_calls_that_differ(bench: Bench) -> None:
    """Each difference in a member that calls of a kind have in common makes another kind. The fixture compares the members."""
    asked: list[dict[str, Any]] = [
        {},
        {"user_agent": "agent"},
        {"path": "/v1/completions"},
        {"path": "/v1/files", "method": "GET", "body": b""},
        {"path": "/v1/files", "method": "DELETE", "body": b""},
        {"path": "/v1/unknown/one", "method": "GET", "body": b""},
        {"path": "/v1/unknown/one", "method": "PUT", "body": b""},
        {"path": "/other", "method": "GET", "body": b""},
        {"path": "/other", "method": "PUT", "body": b""},
        {"body": b'{"model":"n"}'},
        {"body": b'{"model":"m","service_tier":"flex"}'},
        {"body": b'{"model":"m","reasoning_effort":"low"}'},
        {"body": b'{"model":"m","stream":true}'},
    ]
    elsewhere = replace(BACKEND, base=Base("https", "other.openai.azure.com", 443))
    sent: list[dict[str, Any]] = [{"backend": elsewhere}, {"deployment": "d"}, {"repairs": ("r",)}, {"reason": "only"}]
    told: list[dict[str, Any]] = [
        {"model": "m-2"},
        {"service_tier": "flex"},
        {"system_fingerprint": "f"},
        {"choices": [{"finish_reason": "stop"}]},
    ]
    told += [{"usage": None}, {"status": "failed"}]
    answered: list[dict[str, Any]] = [{"content": json.dumps({**json.loads(ANSWER), **one}).encode()} for one in told]
    answered += [{"status": 201}, {"status": 404}, {"x_ms_deployment_name": "s"}, {"x_ms_deployment_name": "t"}]
    answered += [{"x_ms_deployment_name": "t", "x_ms_spillover_from_deployment": "s"}]
    none: dict[str, Any] = {}
    calls: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]]
    calls = [(one, none, none, "") for one in asked] + [(none, one, none, "") for one in sent]
    calls += [(none, none, one, "") for one in answered] + [(none, none, none, "team")]
    for _ in range(2):
        for request, attempt, answer, client in calls:
            meter = bench.start(**request)
            meter.client = client
            meter.attempt(**{"backend": BACKEND, "deployment": "dep", **attempt})
            head = response(**{"content": ANSWER, **answer})
            meter.head(head)
            meter.end_soon(head, head.content)
        bench.meters.complete()
        await bench.delivered()
        assert len(calls) == len(bench.meters.kinds)


async def test_the_choice_of_the_model_router(bench: Bench) -> None:
    """It is in the record, without the keys of the request."""
    details = {"model_router_details": {"mode": "cost", "routing_trace": [{"attempts": [{"model": "a-secret-key"}]}]}}
    content = json.dumps({"id": "c", "usage": USAGE, "model_selection_details": details}).encode()
    meter, head = finished(bench, content)
    meter.keys = Keys(("a-secret-key",))
    record = meter.end(head, content)
    assert record
    assert record.model_selection_details
    assert "cost" == record.model_selection_details["model_router_details"]["mode"]
    assert "a-secret-key" not in str(record.model_selection_details)
