"""The usage of a stream whose client did not ask for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azure_openai_proxy.api import stream_usage
from azure_openai_proxy.api.large_bodies import LargeBody
from azure_openai_proxy.api.response import ResponseStream
from azure_openai_proxy.api.stream_usage import addition, is_requested, without_usage
from azure_openai_proxy.formats import json_edit, json_scan, sse
from azure_openai_proxy.formats.sse import Event

USAGE = {"completion_tokens": 11, "prompt_tokens": 23, "total_tokens": 34}
SAFE = {"hate": {"filtered": False, "severity": "safe"}}


def event(data: bytes) -> Event:
    return Event(b"data: %b\n\n" % data, data)


# The request


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stream_options": {"include_usage": True}}, True),
        ({"stream_options": {"include_usage": 1}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": []}, False),
        ({"stream_options": None}, False),
        ({}, False),
    ],
)
def test_a_client_that_asks(options: dict[str, Any], expected: bool) -> None:
    """Only `true` asks for the usage."""
    assert expected == is_requested(options)


def added(content: bytes, large: LargeBody | None = None) -> bytes:
    span = addition(content, large)
    return json_edit.edited(content, [span] if span else [])


ADDED = b'"stream_options":{"include_usage":true}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"model": 1.0,\n "stream": true}', b"{" + ADDED + b',"model": 1.0,\n "stream": true}'),
        (b'\xef\xbb\xbf \n{"stream":true}', b"\xef\xbb\xbf \n{" + ADDED + b',"stream":true}'),
        (b'{"m":"stream_options","stream":true}', b"{" + ADDED + b',"m":"stream_options","stream":true}'),
        (b'{"m":{"stream_options":1},"stream":true}', b"{" + ADDED + b',"m":{"stream_options":1},"stream":true}'),
        (b'{"m":"\\u00e9","stream":true}', b"{" + ADDED + b',"m":"\\u00e9","stream":true}'),
        # the client's own options stay
        (b'{"stream_options": null , "a":1}', b'{"stream_options": {"include_usage": true} , "a":1}'),
        (b'{"stream_options": {"include_usage":false}}', b'{"stream_options": {"include_usage": true}}'),
        (b'{"stream_options":{"x":[1]}}', b'{"stream_options":{"x": [1], "include_usage": true}}'),
        (b'{"stream\\u005foptions":{}}', b'{"stream\\u005foptions":{"include_usage": true}}'),
        (b'{"stream_options":1,"stream_options":{}}', b'{"stream_options":1,"stream_options":{"include_usage": true}}'),
    ],
)
def test_the_option_is_added(content: bytes, expected: bytes) -> None:
    """The option is added to the client's own, and all other bytes stay as they are."""
    assert expected == added(content)
    assert expected == added(content, LargeBody(content, json_scan.outline(content, every=True)))
    assert json.loads(expected.removeprefix(json_edit.BOM))["stream_options"]["include_usage"]


@pytest.mark.parametrize("padding", [b" " * stream_usage.LONGEST_OPTIONS, b'"x":"%b",' % (b"x" * stream_usage.LONGEST_OPTIONS)])
def test_long_options_are_replaced(padding: bytes) -> None:
    """A client cannot hide its usage by padding."""
    content = b'{"stream_options":{%b"include_usage":false},"stream":true}' % padding
    assert b'{"stream_options":{"include_usage":true},"stream":true}' == added(content)


@pytest.mark.parametrize(
    "content",
    [
        b'{"stream_options":{"include_usage":true}}',
        b'{"stream\\u005foptions":{"include_usage":true}}',
        b'{"stream_options":[]}',
        b'{"stream_options":"no"}',
        b'{"stream_options":',
        b'["stream_options"]',
    ],
)
def test_nothing_is_added(content: bytes) -> None:
    """Where the client asks for the usage, or its options are not valid, the request stays as it is."""
    assert addition(content) is None


def test_nothing_is_added_to_a_large_body_that_is_not_valid() -> None:
    """A large body that is not JSON stays as it is."""
    assert addition(b"{", LargeBody(b"{", None, "it ends too early")) is None


# The events


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"choices":[{}],"usage":null}', b'{"choices":[{}]}'),
        (b'{"choices":[{}],"usage":null,"obfuscation":"x","n":1}', b'{"choices":[{}],"obfuscation":"x","n":1}'),
        (b'{"choices":[{}], "usage": null }', b'{"choices":[{}] }'),
        (b'{\n  "choices": [],\n  "usage": null\n}', b'{\n  "choices": []\n}'),
        (b'{ "usage" : null , "choices":[{}]}', b'{ "choices":[{}]}'),
        (b'{"usage":null}', b"{}"),
        (b'{"choices":[{}],"usage":{"total_tokens":1},"x":[1]}', b'{"choices":[{}],"x":[1]}'),  # with text: only the usage goes
        (b'{"choices":[{"usage":null}],"x":{"usage":null}}', None),  # not the chunk's own
        (b'{"choices":[{"text":",\\"usage\\":null}"}],"id":"\\"usage\\""}', None),
        (b'{"usage"', None),
        (b'["usage"]', None),
        (b'{"choices":[{"x":"' + b"x" * json_scan.LARGE + b'"}], "usage":null}', None),
    ],
)
def test_a_chunk_without_its_usage(data: bytes, expected: bytes | None) -> None:
    """The chunk's own member is removed with one comma; everything else stays, and so does what is not such a chunk."""
    assert event(data if expected is None else expected) == without_usage(event(data))


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[],"usage":{"total_tokens":1}}',
        b'{"usage": {}, "choices": [ ]}',
        b'{"usage":{"total_tokens":1}}',
        b'{"choices":null,"usage":{"total_tokens":1}}',
    ],
)
def test_the_chunk_of_the_usage(data: bytes) -> None:
    """A chunk without choices is only sent for its usage."""
    assert without_usage(event(data)) is None


def test_an_event_with_other_fields() -> None:
    """An event that is not only data keeps all its other bytes."""
    raw = b'id: 1\r\ndata:{"choices":[{}],\r\ndata:  "usage": null\r\ndata: }\r\n\r\n'
    (found,) = sse.Decoder().feed(raw)
    assert b'id: 1\r\ndata:{"choices":[{}]\r\ndata: }\r\n\r\n' == getattr(without_usage(found), "raw", None)


# Whole streams

TEXT = st.text(max_size=8) | st.sampled_from(['"usage":null', ',"usage":null}', "}]}", "\\", "data: [DONE]", "\u2028"])
DELTA = st.fixed_dictionaries({"content": TEXT}) | st.fixed_dictionaries(
    {}, optional={"role": st.just("assistant"), "refusal": st.none(), "tool_calls": st.just([{"function": {"arguments": "{"}, "index": 0}])}
)
FILTER = st.sampled_from([{}, {"content_filter_results": {}}, {"content_filter_results": SAFE}])
ASYNC = {"content_filter_results": SAFE, "content_filter_offsets": {"check_offset": 44, "start_offset": 44, "end_offset": 198}}
ENDS = st.sampled_from([None, None, "stop"])


def choice(filters: dict[str, Any], content: dict[str, Any], reason: str | None, index: int) -> dict[str, Any]:
    return {**filters, **content, "finish_reason": reason, "index": index, "logprobs": None}


CHAT_CHOICE = st.builds(choice, FILTER, DELTA.map(lambda delta: {"delta": delta}), ENDS, st.integers(0, 2)) | st.just(
    {"index": 0, "finish_reason": None, **ASYNC}
)
TEXT_CHOICE = st.builds(choice, FILTER, TEXT.map(lambda text: {"text": text}), ENDS, st.integers(0, 2))
HEAD = {"created": 1785610058, "id": "chatcmpl-E8", "model": "gpt-5.4-mini-2026-03-17"}
REST = st.fixed_dictionaries(
    {"object": st.sampled_from(["chat.completion.chunk", "text_completion"])},
    optional={
        "obfuscation": st.just("zRj"),
        "service_tier": st.just("default"),
        "system_fingerprint": st.none(),
        "x": st.just([{"usage": 1}]),
    },
)


def chunks(choices: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    several = st.lists(choices, max_size=1) | st.lists(choices, max_size=3)
    one = st.builds(lambda choices, rest: {"choices": choices, **HEAD, **rest}, several, REST)
    prompt = st.just({"choices": [], "id": "", "model": "", "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}]})
    return st.lists(one | prompt | st.just({"error": {"message": "no", "code": "429"}}), min_size=1, max_size=8)


STREAM = chunks(CHAT_CHOICE) | chunks(TEXT_CHOICE)


def sent(values: list[Any], *, spaced: bool, pretty: bool, line: str, done: bool) -> bytes:
    """Write a stream: compact as Azure does, with spaces, or over several lines."""
    texts = [json.dumps(value, separators=None if spaced or pretty else (",", ":"), indent=1 if pretty else None) for value in values]
    texts += ["[DONE]"] if done else []
    return "".join("".join(f"data: {part}{line}" for part in text.split("\n")) + line for text in texts).encode()


def passed(stream: ResponseStream, content: bytes, sizes: list[int]) -> bytes:
    out: list[bytes] = []
    at = 0
    for size in sizes:
        out += stream(content[at : at + size]) if content[at : at + size] else []
        at += size
    return b"".join(out + (stream(content[at:]) if content[at:] else []) + stream(b""))


@example(
    values=[{"choices": [choice({"content_filter_results": SAFE}, {"delta": {"content": str(n)}}, None, 0)], **HEAD} for n in range(5)],
    places=[99],
    spaced=False,
    pretty=False,
    line="\n",
    done=True,
    normalize=True,
    sizes=[],
)
@given(
    values=STREAM,
    places=st.lists(st.integers(0, 99), min_size=1),
    spaced=st.booleans(),
    pretty=st.booleans(),
    line=st.sampled_from(["\n", "\r\n", "\r"]),
    done=st.booleans(),
    normalize=st.booleans(),
    sizes=st.lists(st.integers(1, 200), max_size=30),
)
def test_the_client_sees_no_difference(
    values: list[dict[str, Any]],
    places: list[int],
    spaced: bool,
    pretty: bool,
    line: str,
    done: bool,
    normalize: bool,
    sizes: list[int],
) -> None:
    """With `include_usage` the client gets the same bytes as without it, for each way to write a chunk and each way to split the stream."""
    with_usage = []
    for number, value in enumerate(values):
        members = list(value.items())
        if "error" not in value and "prompt_filter_results" not in value:
            members.insert(min(places[number % len(places)], len(members)), ("usage", None))
        with_usage.append(dict(members))
    with_usage.append({"choices": [], **HEAD, "latency_checkpoint": {"engine_ttft_ms": 28}, "usage": USAGE})
    expected = sent(values, spaced=spaced, pretty=pretty, line=line, done=done)
    azures = sent(with_usage, spaced=spaced, pretty=pretty, line=line, done=done)
    # Each event as a read of its own, as Azure sends them: most events then take the fast path.
    sizes = sizes or [len(one) for one in azures.split(b"\n\n")[:-1] for one in (one + b"\n\n",)]
    reported: list[bytes] = []
    stream = ResponseStream(normalize=normalize, encoding=None, items=reported.append, hide_usage=True)
    plain = ResponseStream(normalize=normalize, encoding=None)
    assert passed(plain, expected, []) == passed(stream, azures, sizes)
    if not any("error" in value for value in values):
        assert any(b"prompt_tokens" in one for one in reported)


def test_most_chunks_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as Azure writes them lose filter results and usage without a parser: those with text, tool calls, and the last one."""
    stream = ResponseStream(normalize=True, encoding=None, hide_usage=True)

    def azures(delta: str, end: str = "null", start: str = "") -> bytes:
        return f'data: {{"choices":[{{{start}"delta":{delta},"finish_reason":{end},"index":0}}],"id":"c","usage":null}}\n\n'.encode()

    def clients(delta: str, end: str = "null") -> bytes:
        return f'data: {{"choices":[{{"delta":{delta},"finish_reason":{end},"index":0}}],"id":"c"}}\n\n'.encode()

    assert [clients('{"role":"assistant"}')] == stream(azures('{"role":"assistant"}'))
    monkeypatch.setattr("azure_openai_proxy.api.response._object", None)
    monkeypatch.setattr(json_scan, "outline", None)
    for start in ("", '"content_filter_results":{},'):
        assert [clients('{"content":"a"}')] == stream(azures('{"content":"a"}', start=start))
        monkeypatch.setattr(stream._events, "feed", None)
        assert [clients('{"content":"b"}')] == stream(azures('{"content":"b"}', start=start))
        monkeypatch.undo()
        monkeypatch.setattr("azure_openai_proxy.api.response._object", None)
        monkeypatch.setattr(json_scan, "outline", None)
        assert [clients('{"tool_calls":[{"index":0}]}')] == stream(azures('{"tool_calls":[{"index":0}]}', start=start))
        assert [clients("{}", '"stop"')] == stream(azures("{}", '"stop"', start=start))


def test_a_chunk_of_usage_with_an_error_is_examined() -> None:
    """A stream with a hidden chunk that may have an error is not clean."""
    stream = ResponseStream(normalize=True, encoding=None, hide_usage=True)
    stream(b'data: {"choices":[],"usage":{"total_tokens":1}}\n\n')
    assert stream.clean
    stream(b'data: {"choices":[],"usage":{"total_tokens":1},"error":null}\n\n')
    assert not stream.clean


def test_a_compressed_stream_that_breaks() -> None:
    """A stream that is not translated gives what it has, and the error."""
    stream = ResponseStream(normalize=False, encoding="gzip", hide_usage=True)
    assert stream(b"no gzip")[0].startswith(b'\n\ndata: {"error"')


def test_a_usage_before_the_text() -> None:
    """A member before the text is removed from each chunk as well."""
    stream = ResponseStream(normalize=True, encoding=None, hide_usage=True)
    for text in (b"a", b"b", b"c"):
        chunk = b'{"choices":[{"delta":{"content":"%b"},"finish_reason":null,"index":0}],"id":"c"}' % text
        assert [b"data: %b\n\n" % chunk] == stream(b'data: {"usage":null,%b\n\n' % chunk[1:])


def test_a_stream_that_is_not_translated() -> None:
    """The usage is removed from it also where nothing reads its events."""
    stream = ResponseStream(normalize=False, encoding=None, hide_usage=True)
    assert [b': c\n\ndata: {"choices":[{}]}\n\n'] == stream(b': c\n\ndata: {"choices":[{}],"usage":null}\n\n')
