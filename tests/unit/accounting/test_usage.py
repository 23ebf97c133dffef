"""Reading what Azure reports about a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.accounting import usage
from azure_openai_proxy.accounting.record import Tokens
from azure_openai_proxy.accounting.usage import NOTHING, Events, Reported, kept, read, reports
from azure_openai_proxy.api.operation import Call, recognise
from azure_openai_proxy.formats.json_scan import LARGE

JSON = {"content-type": "application/json"}
# What Azure sends at the end of a chat's stream with `include_usage`.
CHAT_USAGE = {
    "completion_tokens": 87,
    "completion_tokens_details": {"accepted_prediction_tokens": 0, "audio_tokens": 0, "reasoning_tokens": 64},
    "prompt_tokens": 1204,
    "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 1024, "cache_write_tokens": 100},
    "total_tokens": 1291,
}
CHAT_TOKENS = Tokens(1204, 1024, 100, 87, 64, 0, 0)
RESPONSE_USAGE = {
    "input_tokens": 300,
    "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 64, "cache_write_tokens_details": {"ttl_30m_tokens": 64}},
    "output_tokens": 50,
    "output_tokens_details": {"reasoning_tokens": 40},
    "total_tokens": 350,
}
RESPONSE_TOKENS = Tokens(300, 128, 64, 50, 40)
REALTIME_USAGE = {
    "total_tokens": 253,
    "input_tokens": 132,
    "output_tokens": 121,
    "input_token_details": {
        "text_tokens": 60,
        "audio_tokens": 72,
        "image_tokens": 0,
        "cached_tokens": 64,
        "cached_tokens_details": {"text_tokens": 32, "audio_tokens": 32, "image_tokens": 0},
    },
    "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
}
REALTIME_TOKENS = Tokens(132, 64, None, 121, None, 72, 91, 32)
EMPTY_RESPONSE = {"id": "resp_1", "model": "gpt-5.4", "status": "in_progress", "usage": None, "error": None, "max_output_tokens": None}
RESPONSE = {**EMPTY_RESPONSE, "status": "completed", "service_tier": "priority", "usage": RESPONSE_USAGE, "metadata": {}}


def of_body(content: bytes, call: Call, parsed: dict[str, Any] | None = None) -> Reported:
    found = kept(content, parsed, call)
    return read(found) if found else NOTHING


def called(method: str, path: str) -> Call:
    call = recognise(method, path, JSON, b'{"model": "m"}', "model=m")
    assert call
    return call


CHAT = called("POST", "/v1/chat/completions")
RESPONSES = called("POST", "/v1/responses")
REALTIME = called("WS", "/v1/realtime")
IMAGES = called("POST", "/v1/images/generations")
EMBEDDINGS = called("POST", "/v1/embeddings")
SPEECH = called("POST", "/v1/audio/speech")
TRANSCRIPTIONS = called("POST", "/v1/audio/transcriptions")


def dump(value: object, *, spaced: bool = False) -> bytes:
    return json.dumps(value, separators=None if spaced else (",", ":")).encode()


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("POST /v1/chat/completions", True),
        ("POST /v1/engines/m/completions", True),
        ("POST /openai/deployments/d/embeddings", True),
        ("POST /v1/responses", True),
        ("POST /v1/responses/compact", True),
        ("GET /v1/responses/resp_1", True),
        ("GET /v1/batches/batch_1", True),
        ("POST /v1/audio/translations", True),
        ("WS /v1/realtime", True),
        ("GET /v1/responses/resp_1/input_items", False),
        ("DELETE /v1/responses/resp_1", False),
        ("GET /v1/chat/completions/chatcmpl-1", False),
        ("GET /v1/files/file-1/content", False),
        ("GET /v1/models", False),
    ],
)
def test_operations_that_report_usage(operation: str, expected: bool) -> None:
    """The operations that a model answers report usage, and so does a batch; stored objects and files do not."""
    assert expected == reports(called(*operation.split()))


def test_a_chat_is_read() -> None:
    """Cached, cache-write and reasoning tokens are parts of input and output, and Azure's own measurements are read."""
    body = {
        "choices": [{"index": 1, "finish_reason": "length"}, {"index": 0, "finish_reason": "stop"}, {"finish_reason": None}, 3],
        "id": "chatcmpl-1",
        "latency_checkpoint": {"engine_ttft_ms": 28, "total_duration_ms": 293.5, "Bad Name": 1, "negative": -1, "true": True},
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        "usage": CHAT_USAGE,
    }
    expected = Reported(
        tokens=CHAT_TOKENS,
        metered=True,
        model="gpt-4o-2024-08-06",
        service_tier="default",
        id="chatcmpl-1",
        finish_reasons=("length", "stop"),
        system_fingerprint="fp_1",
        latency={"engine_ttft_ms": 28.0, "total_duration_ms": 293.5},
    )
    assert expected == of_body(dump(body), CHAT)


@pytest.mark.parametrize(
    ("call", "body", "tokens"),
    [
        (RESPONSES, RESPONSE, RESPONSE_TOKENS),
        (EMBEDDINGS, {"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}, Tokens(8)),
        (
            IMAGES,
            {"usage": {"input_tokens": 9, "input_tokens_details": {"text_tokens": 9}, "output_tokens": 272}},
            Tokens(9, None, None, 272),
        ),
        (
            TRANSCRIPTIONS,
            {"text": "", "usage": {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}, "output_tokens": 4}},
            Tokens(14, None, None, 4, None, 14),
        ),
        (called("GET", "/v1/batches/b"), {"status": "completed", "usage": RESPONSE_USAGE}, RESPONSE_TOKENS),
        (called("GET", "/v1/batches/b"), {"status": "in_progress", "usage": None}, None),
    ],
)
def test_usage_of_each_operation(call: Call, body: dict[str, Any], tokens: Tokens | None) -> None:
    """Each operation names its counts in its own way."""
    assert tokens == of_body(dump(body), call).tokens


def test_usage_in_another_unit() -> None:
    """A usage in seconds has no tokens, but it is a usage."""
    told = of_body(dump({"text": "", "usage": {"type": "duration", "seconds": 12}}), TRANSCRIPTIONS)
    assert (None, True) == (told.tokens, told.metered)


def test_a_background_response() -> None:
    """A response that runs in the background says so, and has a status."""
    told = of_body(dump({**EMPTY_RESPONSE, "background": True, "status": "queued"}), RESPONSES)
    assert Reported(model="gpt-5.4", id="resp_1", status="queued", background=True) == told


def test_bodies_of_other_operations_are_not_read() -> None:
    """A user's own data is no usage."""
    assert Reported() == of_body(dump({"usage": CHAT_USAGE}), called("GET", "/v1/files/file-1/content"))


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"usage": %b}' % (b"9" * 5000), b"\xff"])
def test_a_body_that_cannot_be_read(body: bytes) -> None:
    """Invalid JSON and other values than an object report nothing."""
    assert Reported() == of_body(body, CHAT)


@pytest.mark.parametrize("count", [-1, 10**12, 10**4000, 1.5, "5", True, None, {}, [5], float("nan")])
def test_an_invalid_count_is_unknown(count: object) -> None:
    """Only a whole number within bounds is a count; the other counts of the usage stay known."""
    usage = {"prompt_tokens": count, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": 3}
    assert Tokens(output=7) == of_body(dump({"usage": usage}), CHAT).tokens
    usage = {"prompt_tokens": 5, "completion_tokens": count, "completion_tokens_details": {"reasoning_tokens": count}}
    assert Tokens(5) == of_body(dump({"usage": usage}), CHAT).tokens


def test_a_count_with_a_decimal_point() -> None:
    """Gateways that write numbers again may add one."""
    usage = {"prompt_tokens": 5.0, "completion_tokens": 7.0, "prompt_tokens_details": {"cached_tokens": 1.0}}
    assert Tokens(5, 1, None, 7) == of_body(dump({"usage": usage}), CHAT).tokens


@pytest.mark.parametrize("usage", [{}, {"total_tokens": 7}, {"prompt_tokens": "5"}, 3])
def test_a_usage_without_a_count(usage: object) -> None:
    """It is no usage in another unit, so the usage is not known."""
    assert not of_body(dump({"usage": usage}), CHAT).metered


def test_a_part_is_not_larger_than_its_whole() -> None:
    """A part that exceeds its whole is unknown, so no difference of the two is negative."""
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {
            "cached_tokens": 6,
            "cache_write_tokens": 5,
            "audio_tokens": 3,
            "cached_tokens_details": {"audio_tokens": 4},
        },
        "completion_tokens_details": {"reasoning_tokens": 6, "audio_tokens": 6},
    }
    assert Tokens(10, 6, None, 5, None, 3) == of_body(dump({"usage": usage}), CHAT).tokens


@pytest.mark.parametrize("name", ["", 5, "a\nb", "x" * 257, ["gpt"], None])
def test_an_invalid_name_is_unknown(name: object) -> None:
    """Names are printable strings of bounded length."""
    assert Reported() == of_body(dump({"model": name, "id": name, "service_tier": name, "latency_checkpoint": {"a": [name]}}), CHAT)


def test_a_name_of_several_words_is_unknown() -> None:
    """A tier and a fingerprint have no spaces, so that a text in their place is not recorded."""
    assert Reported() == of_body(dump({"service_tier": "one two three", "system_fingerprint": "one two three"}), CHAT)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"code": "DeploymentNotFound"}}, "DeploymentNotFound"),
        ({"error": {"code": 429}}, "429"),
        ({"error": {"code": -1}}, None),
        ({"error": {"code": None}}, None),
        ({"status_details": {"error": {"code": "rate_limit"}}}, "rate_limit"),
        ({"status_details": {"reason": "client_cancelled"}}, None),
        ({"error": "no"}, None),
    ],
)
def test_the_code_of_an_error(body: dict[str, Any], code: str | None) -> None:
    """The code is read from an error, and from a failed response of realtime."""
    assert code == of_body(dump(body), CHAT).error_code


def chunk(**members: object) -> dict[str, Any]:
    return {"choices": [], "id": "chatcmpl-1", "model": "gpt-4o-2024-08-06", "service_tier": "default", **members}


def choice(index: int = 0, finish_reason: str | None = None, **delta: object) -> dict[str, Any]:
    return {"delta": delta, "finish_reason": finish_reason, "index": index}


CHUNKS = [
    chunk(id="", model="", service_tier=None, prompt_filter_results=[]),
    chunk(choices=[choice(role="assistant")], usage=None),
    chunk(choices=[choice(content='"prompt_tokens": 5, "finish_reason":"stop"')], usage=None),
    chunk(choices=[choice(1, "length")], usage=None),
    chunk(choices=[choice(0, "stop")], usage=None),
    chunk(latency_checkpoint={"total_duration_ms": 293}, usage=CHAT_USAGE),
]


@pytest.mark.parametrize("spaced", [False, True])
def test_a_stream_of_a_chat(spaced: bool) -> None:
    """Usage, model, latency and the reason of each choice are read from the chunks that have them."""
    events = Events(CHAT)
    ends = [events.event(dump(each, spaced=spaced)) for each in CHUNKS]
    assert [False] * 5 + [True] == ends
    assert not events.event(b"[DONE]")
    expected = Reported(
        tokens=CHAT_TOKENS,
        metered=True,
        model="gpt-4o-2024-08-06",
        service_tier="default",
        id="chatcmpl-1",
        finish_reasons=("stop", "length"),
        latency={"total_duration_ms": 293.0},
    )
    assert expected == events.reported


def test_a_stream_that_is_cut() -> None:
    """Model and id are known from the first chunk with an id, the usage is not."""
    events = Events(CHAT)
    for each in CHUNKS[:3]:
        events.event(dump(each))
    assert Reported(model="gpt-4o-2024-08-06", service_tier="default", id="chatcmpl-1") == events.reported


def test_the_usage_so_far() -> None:
    """Some models report the usage so far in each chunk. It is not the usage of a stream that its client leaves early."""
    events = Events(CHAT)
    assert not events.event(b'{"id":"c","choices":[{"delta":{},"finish_reason":null}],"usage":{"prompt_tokens":3,"completion_tokens":1}}')
    assert Reported(id="c") == events.reported
    assert events.event(b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":9}}')
    assert Tokens(3, output=9) == events.reported.tokens


def test_chunks_with_text_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first chunk with an id a chunk without usage and reason is not parsed."""
    events = Events(CHAT)
    events.event(dump(CHUNKS[1]))
    monkeypatch.setattr(usage, "members", None)
    assert not events.event(dump(CHUNKS[2]))
    assert not events.event(dump(CHUNKS[2], spaced=True))


def test_the_first_chunks_are_parsed_a_few_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without ids is not parsed for ever."""
    events = Events(CHAT)
    for _ in range(usage.FIRST_EVENTS):
        events.event(b'{"choices":[{"delta":{"content":""},"finish_reason":null}]}')
    monkeypatch.setattr(usage, "members", None)
    assert not events.event(b'{"choices":[{"delta":{"content":""},"finish_reason":null}]}')


def test_an_error_in_a_stream_of_a_chat() -> None:
    """The error's code is read."""
    events = Events(CHAT)
    assert not events.event(b'{"error":{"message":"","code":"429"}}')
    assert "429" == events.reported.error_code


def typed(name: str, **members: object) -> dict[str, Any]:
    return {"type": name, "sequence_number": 1, **members}


@pytest.mark.parametrize("name", ["response.completed", "response.incomplete", "response.failed"])
def test_a_stream_of_a_response(name: str) -> None:
    """The last event has the whole response, with its usage; the first one says which response it is."""
    events = Events(RESPONSES)
    for each in (
        typed("response.created", response=EMPTY_RESPONSE),
        typed("response.output_text.delta", delta='"response" "response.completed" "usage"'),
        typed("response.output_text.done", text="response.completed"),
        typed("response.output_item.done", item={"name": "response.completed", "arguments": "usage", "content": "response"}),
        typed("response.output_item.done", item={"name": "response.created"}, response={"id": "other"}, usage=None),
    ):
        assert not events.event(dump(each))
    assert Reported(id="resp_1", model="gpt-5.4") == events.reported
    assert events.event(dump(typed(name, response={**RESPONSE, "incomplete_details": {"reason": "max_output_tokens"}})))
    assert Reported(RESPONSE_TOKENS, True, "gpt-5.4", "priority", "resp_1", ("max_output_tokens",), status="completed") == events.reported


def test_events_of_a_response_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events before the end of a response are not parsed, not even those with the response so far."""
    events = Events(RESPONSES)
    monkeypatch.setattr(usage, "members", None)
    assert not events.event(dump(typed("response.in_progress", response=EMPTY_RESPONSE)))
    assert not events.event(dump(typed("response.output_text.delta", delta="response.completed")))


def test_a_response_without_an_object() -> None:
    """A last event without a response has no usage."""
    events = Events(RESPONSES)
    assert events.event(dump(typed("response.completed", response="", usage=None)))
    assert Reported() == events.reported


def test_an_error_event() -> None:
    """An error ends a stream of typed events: its code is read in both of its shapes."""
    for event in (typed("error", error={"code": "server_error"}), typed("error", code="server_error", message="")):
        events = Events(RESPONSES)
        assert not events.event(dump(event))
        assert "server_error" == events.reported.error_code


def test_each_response_of_a_websocket() -> None:
    """`reported` is about the last response alone."""
    events = Events(REALTIME)
    done = {"id": "resp_1", "status": "completed", "usage": REALTIME_USAGE}
    failed = {"id": "resp_2", "status": "failed", "status_details": {"error": {"code": "rate_limit"}}, "usage": None}
    assert events.event(dump(typed("response.done", response=done)))
    assert Reported(REALTIME_TOKENS, True, id="resp_1", status="completed") == events.reported
    assert not events.event(b'{"type":"input_audio_buffer.committed"}')
    assert events.event(dump(typed("response.done", response=failed)))
    assert Reported(id="resp_2", status="failed", error_code="rate_limit") == events.reported


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (IMAGES, "image_generation.completed"),
        (IMAGES, "image_edit.completed"),
        (TRANSCRIPTIONS, "transcript.text.done"),
        (SPEECH, "speech.audio.done"),
    ],
)
def test_streams_of_images_and_audio(call: Call, name: str) -> None:
    """The last event has the usage itself."""
    events = Events(call)
    assert not events.event(dump(typed("image_generation.partial_image", b64_json="usage")))
    assert events.event(dump(typed(name, usage={"input_tokens": 5, "output_tokens": 6, "total_tokens": 11})))
    assert Tokens(5, None, None, 6) == events.reported.tokens


# Large documents


@pytest.mark.parametrize("spaced", [False, True])
def test_a_large_body(spaced: bool) -> None:
    """The first and the last members of a large body are read, also if other objects have members of the same names."""
    item = {"id": "msg_1", "status": "completed", "text": '"usage":{"input_tokens":9}' * 12_000, "usage": {"input_tokens": 7}}
    body = {
        "id": "resp_1",
        "background": False,
        "model": "gpt-5.4",
        "output": [item],
        "status": "completed",
        "text": {"schema": {"usage": {"input_tokens": 3}}},
        "usage": RESPONSE_USAGE,
        "metadata": {"status": "failed", "id": "mine", "usage": "x"},
    }
    content = dump(body, spaced=spaced) + b"\n"
    assert len(content) > LARGE
    assert Reported(RESPONSE_TOKENS, True, "gpt-5.4", id="resp_1", status="completed") == of_body(content, RESPONSES)


def test_a_large_response_with_metadata() -> None:
    """The client's metadata, which follow the usage, do not hide it, however large OpenAI allows them to be, and whatever their names."""
    names = [
        "background",
        "error",
        "id",
        "latency_checkpoint",
        "model",
        "model_selection_details",
        "service_tier",
        "status",
        "type",
        "usage",
    ]
    metadata = dict.fromkeys((*names, "system_fingerprint", *map(str, range(5))), "é" * 512)
    body = {"id": "resp_1", "output": [{"text": "x" * LARGE}], "usage": RESPONSE_USAGE, "user": None, "metadata": metadata}
    assert RESPONSE_TOKENS == of_body(json.dumps(body).encode(), RESPONSES).tokens


def test_the_work_for_a_large_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members far from its end, each of which would be parsed to the end, are not all tried."""
    parsed: list[int] = []
    monkeypatch.setattr(usage, "_last", lambda text, *_: parsed.append(len(text)))
    members = ",".join(f'"id":{number}' for number in range(30))
    of_body(f'{{"output":"{"x" * LARGE}",{members},"usage":[{"1," * (usage.TAIL // 2 - 300)}1]}}'.encode(), RESPONSES)
    assert usage.TAIL < sum(parsed) <= usage.MOST_TRIED + usage.MOST_TRIES


@pytest.mark.parametrize("first", [False, True])
def test_a_large_event(first: bool) -> None:
    """The same for the response in an event, with the event's own members before or after it."""
    own = {"sequence_number": 9, "type": "response.completed"}
    response = {"response": {"id": "resp_1", "output": "x" * LARGE, "status": "completed", "usage": RESPONSE_USAGE, "user": {"id": "me"}}}
    events = Events(RESPONSES)
    assert events.event(dump({**own, **response} if first else {**response, **own}))
    assert Reported(RESPONSE_TOKENS, True, id="resp_1", status="completed") == events.reported


def test_a_large_image_event() -> None:
    """The usage of an event without a response is its own."""
    events = Events(IMAGES)
    assert events.event(dump({"b64_json": "A" * LARGE, "type": "image_generation.completed", "usage": RESPONSE_USAGE}))
    assert RESPONSE_TOKENS == events.reported.tokens


def test_embeddings_are_dense() -> None:
    """The numbers of embeddings are not parsed."""
    body = {"object": "list", "data": [{"embedding": [0.25] * 4000}], "model": "text-embedding-3", "usage": {"prompt_tokens": 8}}
    content = dump(body)
    assert usage.DENSE < len(content) < LARGE
    assert Reported(Tokens(8), True, "text-embedding-3") == of_body(content, EMBEDDINGS)


@pytest.mark.parametrize(
    "content",
    [
        b"x" * (LARGE + 1),
        b"[" * (LARGE + 1),
        b'{"id": ' + b"[" * LARGE,
        b'{"id": "x", ' + b"[" * LARGE,
        b'{"id": "x" ' + b" " * LARGE,
        b'{"a": ' + b'"id":' * LARGE,
        b'{"id": 1, "a":"' + b"x" * LARGE + b'", "usage": {"prompt_tokens": 5}, "id": ' + b"[" * 5000,
    ],
)
def test_a_large_body_that_is_not_valid(content: bytes) -> None:
    """Invalid large documents report no usage and take a bounded time."""
    assert of_body(content, CHAT).tokens is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**13) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CHAT_USAGE, *RESPONSE_USAGE, "a"]), inner, max_size=6),
    max_leaves=20,
)


@given(value=st.dictionaries(st.sampled_from(["usage", "error", "choices", "model", "latency_checkpoint", "response"]), json_values))
def test_any_document_can_be_read(value: dict[str, Any]) -> None:
    """Whatever Azure sends, reading it raises nothing and gives valid counts."""
    for told in (of_body(dump(value), CHAT), of_body(dump({**value, "x": "x" * LARGE}), RESPONSES)):
        tokens = told.tokens or Tokens()
        assert all(count is None or 0 <= count <= usage.MOST for count in tokens)
        assert (tokens.cached_input or 0) + (tokens.cache_write_input or 0) <= (tokens.input or 0)
    events = Events(RESPONSES)
    assert events.event(dump({"type": "response.completed", "response": {"usage": None, **value}}))


@given(members=st.permutations(["id", "model", "service_tier", "status", "system_fingerprint", "usage", "output"]))
def test_a_large_document_reads_like_a_small_one(members: list[str]) -> None:
    """The order of the members makes no difference."""
    body = {**RESPONSE, "system_fingerprint": "fp", "output": [{"id": "no"}]}
    small = {name: body[name] for name in members}
    large = {**small, "output": [{"id": "no", "text": "x" * LARGE}]}
    assert of_body(dump(small), RESPONSES) == of_body(dump({name: large[name] for name in members}), RESPONSES)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**13) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*CHAT_USAGE, *RESPONSE_USAGE, *RESPONSE, "cached_tokens", "audio_tokens", "choices", "finish_reason", "code"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from([*RESPONSE, "choices", "incomplete_details", "latency_checkpoint", "background"]), _VALUES))
def test_an_object_is_read_like_its_bytes(value: dict[str, Any]) -> None:
    """A body that was parsed already reports the same."""
    assert of_body(json.dumps(value).encode(), CHAT) == of_body(b"", CHAT, value)


def test_an_object_of_an_operation_without_usage() -> None:
    """It is not read."""
    assert NOTHING is of_body(b"", called("GET", "/v1/files"), RESPONSE)


SELECTION = {"model_router_details": {"mode": "cost"}}


def test_the_choice_of_the_model_router() -> None:
    """It is read from a body, from a chunk without choices, and from the response at the end of a stream of typed events."""
    body = json.dumps({"id": "c", "usage": {"prompt_tokens": 1}, "model_selection_details": SELECTION}).encode()
    assert SELECTION == of_body(body, CHAT).model_selection
    events = Events(CHAT)
    for number in range(usage.FIRST_EVENTS + 1):
        events.event(b'{"choices":[{"index":0,"delta":{"content":"%d"}}]}' % number)
    events.event(json.dumps({"choices": [], "model_selection_details": SELECTION}).encode())
    events.event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
    assert SELECTION == events.reported.model_selection
    events = Events(RESPONSES)
    events.event(json.dumps({"type": "response.completed", "response": {"usage": {}, "model_selection_details": SELECTION}}).encode())
    assert SELECTION == events.reported.model_selection
