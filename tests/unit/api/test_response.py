"""Translation of Azure's streams and JSON bodies into OpenAI's shape."""

import gzip
import json
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.api.response import ResponseStream, json_body

DONE = b"data: [DONE]\n\n"
SAFE = '{"hate":{"filtered":false,"severity":"safe"}}'
FILTER = f'"content_filter_results":{SAFE}'
REST = '"created":1785610058,"id":"chatcmpl-E8","model":"gpt-5.4-mini-2026-03-17","obfuscation":"zRj","object":"chat.completion.chunk"'

# A stream as Azure sends it: filter results for the prompt first, then in each chunk; usage and latencies last.
PROMPT = f'{{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{{"prompt_index":0,{FILTER}}}]}}'
ROLE = (
    f'{{"choices":[{{"content_filter_results":{{}},"delta":{{"content":"","refusal":null,"role":"assistant"}},"finish_reason":null,'
    f'"index":0}}],{REST},"usage":null}}'
)
HI = f'{{"choices":[{{{FILTER},"delta":{{"content":"Hi"}},"finish_reason":null,"index":0}}],{REST},"usage":null}}'
STOP = f'{{"choices":[{{"content_filter_results":{{}},"delta":{{}},"finish_reason":"stop","index":0}}],{REST},"usage":null}}'
USAGE = f'{{"choices":[],"latency_checkpoint":{{"engine_tbt_ms":3}},{REST},"usage":{{"completion_tokens":11,"total_tokens":34}}}}'
CAPTURE = [PROMPT, ROLE, HI, STOP, USAGE, "[DONE]"]

CLEAN_ROLE = (
    f'{{"choices":[{{"delta":{{"content":"","refusal":null,"role":"assistant"}},"finish_reason":null,"index":0}}],{REST},"usage":null}}'
)
CLEAN_HI = f'{{"choices":[{{"delta":{{"content":"Hi"}},"finish_reason":null,"index":0}}],{REST},"usage":null}}'
CLEAN_STOP = f'{{"choices":[{{"delta":{{}},"finish_reason":"stop","index":0}}],{REST},"usage":null}}'
CLEAN_USAGE = f'{{"choices":[],{REST},"usage":{{"completion_tokens":11,"total_tokens":34}}}}'
CLEAN = [CLEAN_ROLE, CLEAN_HI, CLEAN_STOP, CLEAN_USAGE, "[DONE]"]

# A stream with the asynchronous filter.
ASYNC = (
    f'{{"id":"","object":"","created":0,"model":"","choices":[{{"index":0,"finish_reason":null,{FILTER},'
    '"content_filter_offsets":{"check_offset":44,"start_offset":44,"end_offset":198}}],"usage":null}'
)


MESSAGE = '{"role":"assistant","content":null,"refusal":null}'
# A chunk without filter members, which some deployments send at the beginning and in between.
EMPTY = '{"id":"","object":"","created":0,"model":"","choices":[]}'
NULL_DELTA = (
    '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"gpt-4o","choices":[{"index":0,"delta":null,"finish_reason":"stop"}]}'
)


def sse(*data: str) -> bytes:
    return "".join(f"data: {text}\n\n" for text in data).encode()


def run(*pieces: bytes, end: bool = True, normalize: bool = True, encoding: str | None = None, done: bool = True) -> bytes:
    stream = ResponseStream(normalize=normalize, encoding=encoding, done=done)
    out = [part for piece in filter(None, pieces) for part in stream(piece)] + (stream(b"") if end else [])
    assert b"" not in out
    return b"".join(out)


def one(data: str, *before: str) -> bytes:
    """Return the output for one event after others."""
    head = run(sse(*before), end=False)
    return run(sse(*before), sse(data), end=False)[len(head) :]


def test_capture() -> None:
    """Azure's stream becomes OpenAI's: no empty first chunk, no filter results and latencies; usage and role stay."""
    assert sse(*CLEAN) == run(sse(*CAPTURE))


def test_openais_own_stream_passes() -> None:
    """OpenAI's own stream passes as the same objects."""
    stream = ResponseStream(normalize=True, encoding=None)
    for data in [CLEAN_ROLE, CLEAN_HI, CLEAN_STOP, CLEAN_USAGE, ": comment"]:
        chunk = sse(data)
        assert stream(chunk)[0] is chunk
    two = sse(CLEAN_HI, CLEAN_HI)
    assert stream(two)[0] is two


@pytest.mark.parametrize("normalize", [True, False])
def test_each_event_is_reported(normalize: bool) -> None:
    """Each complete event is reported once, for any chunks, and the stream is unchanged."""
    items: list[bytes] = []
    stream = ResponseStream(normalize=normalize, encoding=None, done=False, items=items.append)
    event = '{"type":"response.output_item.done","item":{"id":"fc_1"}}'
    text = b": comment\n\n" + sse('{"type":"response.created"}', event)
    assert text == b"".join(part for at in range(len(text)) for part in stream(text[at : at + 1]))
    assert [b'{"type":"response.created"}', event.encode()] == [item for item in items if item]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_every_event_is_reported_if_wanted(size: int) -> None:
    """Events that differ in their text only are reported too, in runs and alone; the stream is the same as without."""
    items: list[bytes] = []
    events = [HI.replace("Hi", f"word {number}") for number in range(200)]
    text = sse(*events)
    every = ResponseStream(normalize=True, encoding=None, items=items.append, every=True)
    some = ResponseStream(normalize=True, encoding=None)
    sent = [b"".join(part for at in range(0, len(text), size) for part in stream(text[at : at + size])) for stream in (every, some)]
    assert sent[0] == sent[1]
    assert events == [item.decode() for item in items if item]


def test_each_event_goes_out_when_it_is_whole() -> None:
    """An event is forwarded when it is complete, and not later."""
    stream = ResponseStream(normalize=True, encoding=None)
    event = sse(HI)
    assert [] == stream(event[:-1])
    assert [sse(CLEAN_HI)] == stream(event[-1:])


@pytest.mark.parametrize(
    ("chunk", "expected"),
    [
        # dropped
        (PROMPT, ""),
        ('{"id":"","object":"","created":0,"model":"","prompt_annotations":[{"prompt_index":0}],"choices":[],"usage":null}', ""),
        ('{"choices":[],"latency_checkpoint":{}}', ""),
        (ASYNC, ""),
        ('{"choices":[{"index":0}]}', ""),
        (EMPTY, ""),
        (EMPTY.replace(":", ": "), ""),
        ('{"choices":[]}', ""),
        ('{"choices":null}', ""),
        ('{"choices":[null]}', ""),
        (f'{{"choices":[],{REST},"service_tier":"default","system_fingerprint":null,"usage":null,"moderation":null}}', ""),
        ('{"choices":[{"index":0,"delta":null,"finish_reason":null}]}', ""),
        # null is replaced where OpenAI has a value
        (NULL_DELTA, NULL_DELTA.replace("null", "{}")),
        (NULL_DELTA.replace(":", " :  "), NULL_DELTA.replace("null", "{}")),
        (
            '{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":null,"finish_reason":"stop"}]}',
            '{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{},"finish_reason":"stop"}]}',
        ),
        ('{"choices":null,"usage":{"total_tokens":3}}', '{"choices":[],"usage":{"total_tokens":3}}'),
        ('{"usage":{"total_tokens":3}}', '{"usage":{"total_tokens":3},"choices":[]}'),
        ('{"choices":null,"x":"_filter"}', '{"choices":[],"x":"_filter"}'),
        # other members are kept
        ('{"choices":[],"prompt_filter_results":[],"usage":{"total_tokens":3}}', '{"choices":[],"usage":{"total_tokens":3}}'),
        (
            '{"choices":[{"delta":{"content":"x"}},{"index":1,"content_filter_results":{}}]}',
            '{"choices":[{"delta":{"content":"x"}}]}',
        ),
        ('{"choices":[{"index":0,"content_filter_results":{}}],"usage":{"total_tokens":3}}', '{"choices":[],"usage":{"total_tokens":3}}'),
        (
            '{"choices":[{"index":0,"finish_reason":"content_filter","content_filter_result":{"error":{"code":"content_filter_error"}}}]}',
            '{"choices":[{"index":0,"finish_reason":"content_filter","delta":{}}]}',
        ),
        # Azure's members are removed
        (
            '{"choices":[{"delta":{},"content_filter_raw":[],"content_filters":1}],"content_filter_results":{}}',
            '{"choices":[{"delta":{}}]}',
        ),
        ('{"choices":[{"delta":{}}],"model":"gpt-35-turbo-16k"}', '{"choices":[{"delta":{}}],"model":"gpt-3.5-turbo-16k"}'),
        # values are kept
        (
            '{"choices":[{"delta":{"content":"é😀\\ud83d"},"content_filter_results":{}}],"n":123456789012345678901234567890}',
            '{"choices":[{"delta":{"content":"\\u00e9\\ud83d\\ude00\\ud83d"}}],"n":123456789012345678901234567890}',
        ),
        ('{"choices":[{"delta":{"content":"é😀"},"content_filter_results":{}}]}', '{"choices":[{"delta":{"content":"é😀"}}]}'),
    ],
)
def test_changed_chunks(chunk: str, expected: str) -> None:
    """Azure's members are removed and chunks without other members are dropped; order and values stay."""
    assert (sse(expected) if expected else b"") == one(chunk)


@pytest.mark.parametrize(
    "data",
    [
        CLEAN_USAGE,
        CLEAN_HI.replace("null,", '"content_filter",', 1),  # the finish_reason of this name
        '{"choices":[{"delta":{"content":"content_filter_results, gpt-35-turbo and \\"error\\""}}]}',
        '{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{\\"content_filter_results\\":1}"}}]}}]}',
        '{"choices":[{"delta":{"x":{"content_filter_results":1}}}]}',
        '{"choices":["_filter",7]}',
        '{"choices":[],"citations":["u"]}',
        '{"choices":[],"usage":{}}',
        '{"choices":[],"moderation":{"input":{"type":"moderation_results"}},"object":"chat.completion.chunk"}',
        '{"choices":[{"delta":{"content":"\\"delta\\":null"}}]}',
        '{"model":35,"x":"gpt-35-turbo"}',
        '{"model":"my-gpt-35-turbo"}',
        '{"error":null,"choices":[{"delta":{}}]}',
        '{ "choices": [ { "delta": {} } ], "spaced": "content_filter" }',
        "not json _filter",
        '["_filter"]',
        '"content_filter_results"',
        '{"choices":[{"delta":{},"content_filter_results":{}}],"n":NaN}',  # cannot be serialized
        "",
    ],
)
def test_chunks_that_pass(data: str) -> None:
    """Chunks without Azure's members, with similar text, or with invalid JSON pass unchanged."""
    assert sse(data) == one(data)


def test_comments_and_keep_alives_pass() -> None:
    """Comments and keep-alive lines pass, because they keep the client connected."""
    assert b": ping\n\nevent: x\n\n\n" == run(b": ping\n\nevent: x\n\n\n")


def test_other_fields_stay_with_a_changed_event() -> None:
    """An event's other fields, comments and line ends are kept when its data changes."""
    event = f"id: 7\r\nevent: chunk\r\ndata: {HI}\r\n:c\r\n\r\n".encode()
    assert f"id: 7\r\nevent: chunk\r\ndata: {CLEAN_HI}\r\n:c\r\n\r\n".encode() == run(event)


@pytest.mark.parametrize(
    "before",
    [
        '{"object":"text_completion","choices":[{"text":"a","index":0}]}',
        '{"choices":[{"text":"a"}]}',
        '{"object":"text_completion","choices":[]}',
    ],
)
def test_completions_get_a_text(before: str) -> None:
    """In a stream of completions a choice without content gets a `text`."""
    ended = '{"choices":[{"finish_reason":"content_filter","text":""}]}'
    assert sse(ended) == one('{"choices":[{"finish_reason":"content_filter"}]}', before)
    for null in (
        '{"choices":[{"finish_reason":"content_filter","text":null}]}',
        '{"choices": [{"finish_reason": "content_filter", "text": null}]}',
    ):
        assert sse(ended) == one(null, before)
    assert b"" == one('{"choices":[{"index":0,"text":null,"finish_reason":null}]}', before)
    assert b"" == one(EMPTY, before)


@pytest.mark.parametrize(
    "end",
    [
        b"",
        DONE,
        DONE + DONE,
        b"data: [DONE]",
        b"data: [DONE]\n",
        b"data: [DONE]\r",
        b"data: [DONE]\r\n\r\n",
        b"data:[DONE]\n\n",
        b"data:  [DONE] \n\n",
        b"event: done\ndata: [DONE]\n\n",
        b"data: [DON",
        b": ping",
        DONE + b"data: {}\n\n",
        DONE + b": ping",
    ],
)
def test_one_done(end: bytes) -> None:
    """A stream that ends regularly has one [DONE], for every form of Azure's."""
    assert sse(CLEAN_HI, CLEAN_STOP) + DONE == run(sse(CLEAN_HI, CLEAN_STOP) + end)


def test_done_is_not_held_back() -> None:
    """[DONE] is forwarded when it arrives, because clients close the connection then, and nothing follows it."""
    stream = ResponseStream(normalize=True, encoding=None)
    assert [DONE] == stream(DONE)
    assert [] == stream(sse(HI))
    assert [] == stream(b"")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", b""),
        (sse(CLEAN_HI), sse(CLEAN_HI)),
        (sse(CLEAN_HI) + b'data: {"cho', sse(CLEAN_HI) + b'data: {"cho'),
        (b'{"a": "stream": "it is none"}', b'{"a": "stream": "it is none"}'),
        (sse(CLEAN_HI)[:-1], sse(CLEAN_HI)),
        (sse(HI)[:-2], sse(CLEAN_HI)),
        (DONE, DONE),
    ],
)
def test_without_a_finish_reason(body: bytes, expected: bytes) -> None:
    """Without a finish_reason no [DONE] is added; a complete last event gets its blank line and an incomplete one stays."""
    assert expected == run(body)


@pytest.mark.parametrize("stop", [CLEAN_STOP, CLEAN_STOP.replace(":", ": "), STOP, '{"choices":[{"finish_reason":"length"}]}'])
def test_a_finish_reason_is_seen(stop: str) -> None:
    """A finish_reason is detected in an unchanged chunk, in a changed one, and in one without its blank line."""
    assert run(sse(stop)).endswith(DONE)
    assert run(sse(stop)[:-2]).endswith(DONE)


def test_a_cut_stream_gets_no_done() -> None:
    """A truncated stream gets no [DONE], because mitmproxy does not call the end for it."""
    assert sse(CLEAN_STOP) == run(sse(STOP), end=False)


@pytest.mark.parametrize(
    ("event", "type", "code"),
    [
        (b'data: {"error":{"code":"429","message":"token rate limit"}}\n\n', "tokens", "rate_limit_exceeded"),
        (
            b'data: {"error":{"message":"m","type":null,"param":null,"code":"content_filter"}}\n\n',
            "invalid_request_error",
            "content_filter",
        ),
        (b'data: {"error":"overloaded"}\n\n', "server_error", None),
        (b'event: error\ndata: {"code":"500","message":"m"}\n\n', "server_error", None),
        (b'event: error\ndata: {"error":{"message":"m"}}\n\n', "server_error", None),
        (b"event: error\ndata: overloaded\n\n", "server_error", None),
        (b"event: error\ndata:\n\n", "server_error", None),
        (b'data: {"error":{"message":"m"}}', "server_error", None),
    ],
)
def test_an_error_inside_a_stream(event: bytes, type: str, code: str | None) -> None:
    """An error event gets OpenAI's shape, keeps its other fields, and no [DONE] follows."""
    for end in (b"", DONE):
        if end and not event.endswith(b"\n\n"):
            continue
        out = run(sse(CLEAN_STOP) + event + end)
        assert out.startswith(sse(CLEAN_STOP))
        assert b"[DONE]" not in out
        assert out.endswith(b"\n\n")
        error = json.loads(out.removeprefix(sse(CLEAN_STOP)).split(b"data: ")[-1])["error"]
        assert ["message", "type", "param", "code"] == list(error)
        assert (type, code) == (error["type"], error["code"])
        assert error["message"]
        assert (b"event: error\n" in event) == (b"event: error\n" in out)


def test_no_secret_in_an_error_event() -> None:
    """A key in an error event is masked."""
    stream = ResponseStream(normalize=True, encoding=None, secrets=["0123456789"])
    assert b"bad key [key]" in stream(sse('{"error":{"message":"bad key 0123456789"}}'))[0]


def test_typed_events_pass() -> None:
    """A typed stream gets no [DONE], and its own error events are unchanged."""
    events = sse('{"type":"response.created","choices":1}', '{"finish_reason":"stop"}')
    events += b'event: error\ndata: {"type":"error","code":"x","message":"m","param":null}\n\n' + DONE + b": after\n\n"
    assert events == run(events, done=False)
    assert events + b"data: x" == run(events + b"data: x", done=False)


def test_filter_results_are_removed_from_typed_events() -> None:
    """Filter results are removed from the response in a typed event, and the event keeps its name."""
    event = b'event: response.created\ndata: {"type":"response.created","response":{"id":"r"%s,"output":[]}}\n\n'
    assert event % b"" == run(event % b',"content_filters":[{"blocked":false}]', done=False)


def test_a_whole_error_in_a_stream_of_typed_events() -> None:
    """Azure's error shape is translated in a typed stream too."""
    assert b'"type":"server_error"' in run(sse('{"error":{"message":"m"}}'), done=False)


NESTED = '{"type":"error","sequence_number":2,"error":{"type":"too_many_requests","code":"rate_limit_exceeded","message":"slow down"}}'
FAILED = '{"type":"response.failed","sequence_number":3,"response":{"id":"r","error":%s,"output":[]}}'


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        # the responses API: as both send it, and as OpenAI's reference documents it
        (
            f"event: error\ndata: {NESTED}\n\n",
            {
                "type": "error",
                "sequence_number": 2,
                "error": {"message": "slow down", "type": "too_many_requests", "param": None, "code": "rate_limit_exceeded"},
            },
        ),
        (
            'event: error\ndata: {"type":"error","sequence_number":2,"code":429,"message":"slow down KEY0123"}\n\n',
            {"type": "error", "sequence_number": 2, "code": "rate_limit_exceeded", "message": "slow down [key]", "param": None},
        ),
        (
            'event: error\ndata: {"sequence_number":2,"code":"x","message":"m"}\n\n',
            {"type": "error", "sequence_number": 2, "code": "x", "message": "m", "param": None},
        ),
        (
            f"event: response.failed\ndata: {FAILED % '{"code":"429","message":"KEY0123"}'}\n\n",
            {
                "type": "response.failed",
                "sequence_number": 3,
                "response": {"id": "r", "error": {"code": "rate_limit_exceeded", "message": "[key]"}, "output": []},
            },
        ),
        (
            f"data: {FAILED % '"broken"'}\n\n",
            {
                "type": "response.failed",
                "sequence_number": 3,
                "response": {"id": "r", "error": {"code": "server_error", "message": "broken"}, "output": []},
            },
        ),
        # images and audio
        (
            'data: {"error":{"code":"content_filter","message":"m"}}\n\n',
            {"type": "error", "error": {"message": "m", "type": "invalid_request_error", "param": "prompt", "code": "content_filter"}},
        ),
        # assistants
        (
            'event: error\ndata: {"code":"500","message":"m"}\n\n',
            {"message": "m", "type": "server_error", "param": None, "code": None},
        ),
        # invalid JSON
        (
            "event: error\ndata: overloaded\n\n",
            {"type": "error", "error": {"message": "overloaded", "type": "server_error", "param": None, "code": None}},
        ),
    ],
)
def test_an_error_in_a_stream_of_typed_events(event: str, expected: dict[str, Any]) -> None:
    """A typed error keeps its members, gets OpenAI's, has no key, and later events follow."""
    stream = ResponseStream(normalize=True, encoding=None, done=False, secrets=["KEY0123"])
    out = b"".join(stream(event.encode() + b"data: {}\n\n"))
    before = event.partition("data: ")[0]
    assert out.startswith(before.encode() + b"data: ")
    assert out.endswith(b"\n\ndata: {}\n\n")
    assert expected == json.loads(out.split(b"data: ")[1])


@pytest.mark.parametrize(
    "data",
    [
        FAILED % '{"code":"server_error","message":"m"}',
        FAILED % "null",
        '{"type":"error","error":{"message":"m","type":"t","param":null,"code":null}}',
        '{"type":"response.mcp_call.failed","item":{"error":"m"}}',
        '{"type":"response.created","response":"error","error":null}',
    ],
)
def test_typed_errors_that_pass(data: str) -> None:
    """Typed errors in OpenAI's shape pass unchanged."""
    assert sse(data) == run(sse(data), done=False)


@pytest.mark.parametrize(
    ("before", "done", "expected"),
    [
        (b"", True, b'data: {"error":{"message":"m"}}\n\n'),
        (b"", False, b'event: error\ndata: {"type":"error","error":{"message":"m"}}\n\n'),
        (
            sse('{"type":"response.created","sequence_number":7}') + b'data: {"sequence_number":8',
            False,
            b'event: error\ndata: {"type":"error","sequence_number":8,"error":{"message":"m"}}\n\n',
        ),
    ],
)
def test_the_event_that_ends_a_broken_stream(before: bytes, done: bool, expected: bytes) -> None:
    """The last event of an interrupted stream has the stream's error shape and the next sequence number."""
    stream = ResponseStream(normalize=True, encoding=None, done=done)
    stream(before)
    assert expected == stream.failure({"message": "m"})


@pytest.mark.parametrize(
    "text",
    [
        b'{"type":"response.done","response":{"error":null}}',
        b'{"type":"error","error":{"type":"t","code":null,"message":"m","param":null,"event_id":"e"}}',
        b'"error"',
        b'{"error":',
        b"{}",
        b'{"error":{"message":1e999,"type":"t"},"x":NaN}',
    ],
)
def test_frames_that_pass(text: bytes) -> None:
    """A frame in OpenAI's shape, or one that cannot be parsed or serialized, is returned as the same object."""
    assert openai_response.frame(text) is text


def test_a_frame_with_a_status() -> None:
    """An error frame's type follows from its status, and filter results are removed."""
    text = b'{"type":"error","status":401,"error":{"message":"no"},"content_filter_results":{}}'
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    assert {"type": "error", "status": 401, "error": error} == json.loads(openai_response.frame(text))


def test_too_long_an_event_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event over the limit passes without being buffered, and the stream is no longer reported as clean."""
    monkeypatch.setattr("azure_openai_proxy.formats.sse.LONGEST", 10)
    stream = ResponseStream(normalize=True, encoding=None)
    body = b"data: " + b"x" * 50
    assert [body[:-3]] == stream(body)
    assert not stream.clean
    assert body[-3:] + b"\n\n" + sse(CLEAN_HI) == b"".join(stream(b"\n\n" + sse(HI)))


def test_deep_nesting_passes() -> None:
    """An event that is nested too deep to parse passes unchanged."""
    assert sse("[" * 100_000 + "_filter") == run(sse("[" * 100_000 + "_filter"))


def bare_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


@pytest.mark.parametrize("normalize", [True, False])
def test_compressed(normalize: bool) -> None:
    """A compressed stream is decompressed, with and without normalisation."""
    expected = CLEAN if normalize else CAPTURE
    assert sse(*expected) == run(gzip.compress(sse(*CAPTURE)), normalize=normalize, encoding="gzip")


def test_an_unknown_encoding_is_left_alone() -> None:
    """A stream with an unknown encoding passes unchanged."""
    assert b"\x00\xff" == run(b"\x00\xff", encoding="rot13")


@pytest.mark.parametrize("normalize", [True, False])
def test_broken_compression(normalize: bool) -> None:
    """Invalid compressed data ends the stream with an error event and without [DONE]."""
    body = gzip.compress(sse(CLEAN_STOP))
    for broken in ([body[:-8] + b"\0" * 8], [body[:-8]], [b"plain"], [b"plain", body]):
        out = run(*broken, normalize=normalize, encoding="gzip")
        error = json.loads(out[out.index(b'{"error"') :])["error"]
        assert ("server_error", "upstream_error") == (error["type"], error["code"])
        assert b"[DONE]" not in out


def test_broken_after_the_end() -> None:
    """Invalid compressed data after [DONE] is ignored."""
    body = gzip.compress(sse(*CLEAN))
    assert sse(*CLEAN) == run(body[:-8], encoding="gzip")


def test_not_normalised() -> None:
    """Without normalisation the same objects pass."""
    stream = ResponseStream(normalize=False, encoding=None)
    chunk = b"data: half an ev"
    assert stream(chunk)[0] is chunk
    assert [] == stream(b"")


EVENTS = st.lists(
    st.sampled_from(
        [
            sse(data)
            for data in [
                *CAPTURE,
                *CLEAN,
                ASYNC,
                EMPTY,
                NULL_DELTA,
                NESTED,
                FAILED % NESTED,
                '{"error":{"message":"m"}}',
                '{"choices":[{"finish_reason":"stop"}]}',
            ]
        ]
    )
    | st.sampled_from(
        [
            b": ping\n\n",
            b": ping\n",
            b"data: x\r\n\r\n",
            b"event: error\n",
            b"data: [DONE]",
            b"\n",
            b"\r",
            HI.encode(),
            b"data: ",
            b"data: a\r",
        ]
    )
    | st.binary(max_size=4).filter(
        lambda noise: b"\xef" not in noise
    ),  # a byte order mark changes its meaning if the first event is dropped
    max_size=8,
).map(b"".join)


@given(body=EVENTS, cuts=st.lists(st.integers(0, 3000), max_size=12), normalize=st.booleans(), compress=st.booleans(), done=st.booleans())
def test_any_chunking_gives_the_same_stream(body: bytes, cuts: list[int], normalize: bool, compress: bool, done: bool) -> None:
    """The output does not depend on the chunks."""
    sent = gzip.compress(body) if compress else body
    encoding = "gzip" if compress else None
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    pieces = [sent[start:end] for start, end in pairwise(edges)]
    expected = run(sent, normalize=normalize, encoding=encoding, done=done)
    assert expected == run(*pieces, normalize=normalize, encoding=encoding, done=done)
    if not normalize:
        assert body == expected


@given(body=EVENTS, done=st.booleans())
def test_normalising_twice_changes_nothing(body: bytes, done: bool) -> None:
    """Normalising twice is the same as normalising once."""
    once = run(body, done=done)
    assert once == run(once, done=done)


NAMES = st.sampled_from(
    [*openai_response._AZURE_MEMBERS, "choices", "delta", "text", "finish_reason", "usage", "model", "error", "object", "data"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])) | st.just("gpt-35-turbo"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=15,
)


@example(value={"object": [], "choices": []})
@given(value=JSON)
def test_any_json_is_survived(value: Any) -> None:
    """No value raises an exception, and the output has no members of Azure's at the known places."""
    body = json.dumps(value)
    json_body(body.encode())
    out = run(sse(body))
    for data in out.split(b"data: ")[1:]:
        chunk = json.loads(data) if b"[DONE]" not in data and b"NaN" not in data and b"Infinity" not in data else {}
        if isinstance(value, dict):
            assert "error" in chunk or openai_response._AZURE_MEMBERS.isdisjoint(chunk)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            f'{{"choices": [{{{FILTER}, "index": 0, "message": {{"content": "é"}}}}], "id": "x", "prompt_filter_results": []}}',
            '{"choices":[{"index":0,"message":{"content":"é"}}],"id":"x"}',
        ),
        ('{"model":"gpt-35-turbo","object":"list","data":[]}', '{"model":"gpt-3.5-turbo","object":"list","data":[]}'),
        ('{"data":[{"url":"u","content_filter_results":{}}, 1]}', '{"data":[{"url":"u"},1]}'),
        ('{"id":"\\ud83d","latency_checkpoint":{}}', '{"id":"\\ud83d"}'),
        ('{"choices":null,"object":"chat.completion"}', '{"choices":[],"object":"chat.completion"}'),
        ('{"choices" :\n\tnull}', '{"choices":[]}'),
        ('{"choices":[{"index":0,"message":null}]}', f'{{"choices":[{{"index":0,"message":{MESSAGE}}}]}}'),
        (
            '{"choices":[{"index":0,"finish_reason":"content_filter","content_filter_results":{}},7]}',
            f'{{"choices":[{{"index":0,"finish_reason":"content_filter","message":{MESSAGE}}},7]}}',
        ),
        ('{"object":"text_completion","choices":[{"text":null}]}', '{"object":"text_completion","choices":[{"text":""}]}'),
        (
            '{"choices":[{"text": null},{"finish_reason":"content_filter"}]}',
            '{"choices":[{"text":""},{"finish_reason":"content_filter","text":""}]}',
        ),
    ],
)
def test_json_body(body: str, expected: str) -> None:
    """A complete response loses Azure's additions at the top level, in choices and in data, and gets OpenAI's required members."""
    assert expected.encode() == json_body(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{ "choices": [] }',
        b'{ "choices": [{"message": {"content": "_filter"}, "finish_reason": "content_filter"}] }',
        b'{ "choices": [{"text": "_filter", "finish_reason": "content_filter"}] }',
        b'{"choices":[7,{"index":0}],"message":null}',
        b'{"message":null,"content_filter":1}',
        b'{"choices":[{"message":{"content":"\\"message\\":null"}}]}',
        b'{"metadata":{"content_filter_results":1}}',
        b'{"choices":[{"message":{"content":"content_filter_results"}}]}',
        b"_filter",
        b'["content_filter_results"]',
        b'{"content_filter_results":1,"n":NaN}',
        b"\xff_filter",
    ],
)
def test_json_body_that_passes(body: bytes) -> None:
    """An unchanged or invalid body is returned as the same object."""
    assert json_body(body) is body


def test_exported_functions() -> None:
    """This module exports all functions for translating a response."""
    exported = {"error_body", "frame", "headers", "json_body", "large_frame", "large_json_body", "mask", "read_json_body", "suspect"}
    assert {"ResponseStream", *exported} == set(openai_response.__all__)


@pytest.mark.parametrize("normalize", [True, False])
def test_whether_every_event_is_known_to_have_no_error(normalize: bool) -> None:
    """A stream is reported as clean only if it was examined and has no possible error."""
    stream = ResponseStream(normalize=normalize, encoding=None)
    stream(b'data: {"choices":[{"index":0,"delta":{"content":"\\"error\\""}}]}\n\n')
    assert normalize == stream.clean
    stream(b'data: {"error": {\n\n')
    assert not stream.clean


@pytest.mark.parametrize(
    "kind, choice",
    [
        (
            "chat.completion",
            {"index": 0, "message": {"role": "assistant", "content": "", "refusal": None}, "logprobs": None, "finish_reason": "stop"},
        ),
        ("text_completion", {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}),
    ],
)
def test_a_response_without_choices(kind: str, choice: dict[str, Any]) -> None:
    """Clients read the first choice: it is an empty text."""
    body = b'{"object":"%b","choices":[],"usage":{"completion_tokens":3}}' % kind.encode()
    assert [choice] == json.loads(json_body(body))["choices"]
    assert [choice] == json.loads(json_body(body.replace(b'":[', b'": [')))["choices"]


@pytest.mark.parametrize("body", [b'{"object":"list","choices":[]}', b'{"choices":[],"data":[]}'])
def test_another_response_without_choices(body: bytes) -> None:
    """It is no chat, and stays as it is."""
    assert body == json_body(body)


def test_the_choice_of_the_model_router() -> None:
    """It reaches the client, also in a chunk without choices beside the filter's results."""
    chunk = b'data: {"choices":[],"prompt_filter_results":[],"model_selection_details":{"model_router_details":{"mode":"cost"}}}\n\n'
    out = b"".join(ResponseStream(normalize=True, encoding=None)(chunk))
    assert {"choices": [], "model_selection_details": {"model_router_details": {"mode": "cost"}}} == json.loads(out[6:])
