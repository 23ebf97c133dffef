"""The fast removal of filter results gives the same result as the parser for any input."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azure_openai_proxy.api import filter_stripping
from azure_openai_proxy.api import response as openai_response

TEXT = st.one_of(
    st.text(max_size=12), st.sampled_from(["content_filter_results", "}]}", '{"', '"},{"', "\\", '\\"', "\u2028", "error", "_filter"])
)
PLAIN = st.one_of(TEXT, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))
ANY = st.recursive(PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=8)
FILTER = st.dictionaries(
    st.sampled_from(["hate", "violence"]), st.one_of(ANY, st.just({"filtered": False, "severity": "safe"})), max_size=2
)
DELTA = st.one_of(
    st.fixed_dictionaries({"content": TEXT}),
    st.fixed_dictionaries({}, optional={"content": PLAIN, "role": TEXT, "tool_calls": ANY}),
    st.just({"tool_calls": [{"function": {"arguments": '{"a"'}, "index": 0}]}),
    st.none(),
)
REST = st.fixed_dictionaries(
    {}, optional={"finish_reason": st.sampled_from([None, "stop"]), "index": st.integers(0, 1), "logprobs": ANY, "text": TEXT}
)
CHOICE = st.tuples(
    st.one_of(st.just({}), FILTER.map(lambda found: {"content_filter_results": found})),
    st.one_of(st.just({}), DELTA.map(lambda found: {"delta": found})),
    REST,
).map(lambda parts: parts[0] | parts[1] | parts[2])
TAIL = st.fixed_dictionaries(
    {},
    optional={
        "created": st.integers(),
        "id": TEXT,
        "model": st.sampled_from(["gpt-4o", "gpt-35-turbo", "gpt-35-turbo-16k"]),
        "usage": ANY,
        "error": ANY,
        "prompt_filter_results": ANY,
        "latency_checkpoint": ANY,
        "choices": ANY,
    },
)
CHUNK = st.builds(lambda choices, tail: {"choices": choices} | tail, st.lists(CHOICE, max_size=2) | st.none(), TAIL)


def written(value: Any, *, spaced: bool, ascii_only: bool) -> bytes:
    return json.dumps(value, separators=None if spaced else (",", ":"), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


SENT = st.builds(written, CHUNK, spaced=st.booleans(), ascii_only=st.booleans())
# Combinations of parts of two chunks, including repeated names and invalid JSON.
SPLICED = st.builds(
    lambda one, other, a, b: one[: a % (len(one) + 1)] + other[b % (len(other) + 1) :], SENT, SENT, st.integers(0), st.integers(0)
)
FIRST = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'


def read(chunk: bytes) -> Any:
    return json.loads(chunk.decode())


def by_parser(chunk: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    with monkeypatch.context() as patch:
        patch.setattr(filter_stripping, "_CHUNK", re.compile(rb"(?!)"))
        stream = openai_response.ResponseStream(normalize=True, encoding=None)
        stream(FIRST)
        return b"".join(stream(b"data: " + chunk + b"\n\n"))


@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":""},"delta":null}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":""}}],"choices":[{"content_filter_results":{}}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":"\xff"}}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":"\\ud83d"}}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":"\\q"}}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{"hate":01},"delta":{"content":""}}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":"a\nb"}}]}')
@example(chunk=b'{"choices":[{"content_filter_results":{},"delta":{"content":""}}],"\\u0065rror":"no"}')
@given(chunk=st.one_of(SENT, SPLICED))
def test_as_the_parser(chunk: bytes) -> None:
    """A stream has the same JSON values with and without the fast path, and unparsed chunks pass unchanged."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = by_parser(chunk, monkeypatch)
    stream = openai_response.ResponseStream(normalize=True, encoding=None)
    stream(FIRST)
    first = b"".join(stream(b"data: " + chunk + b"\n\n"))
    again = b"".join(stream(b"data: " + chunk + b"\n\n"))  # with the pattern of the first event, if there is one
    for actual in (first, again):
        if expected != actual:
            assert read(expected.removeprefix(b"data: ")) == read(actual.removeprefix(b"data: "))


@given(chunk=st.one_of(SENT, SPLICED))
def test_only_json_is_cut(chunk: bytes) -> None:
    """A matched chunk is valid JSON, and only the filter results of its one choice are removed."""
    found = filter_stripping.without_filter(chunk)
    if found:
        before = json.loads(chunk.decode(), object_pairs_hook=list)
        after = json.loads(found.content.decode(), object_pairs_hook=list)
        if found.content is not chunk:
            assert "content_filter_results" == before[0][1][0][0][0]
            del before[0][1][0][0]
        assert before == after


@given(one=CHUNK, text=TEXT, other=st.one_of(SENT, SPLICED))
def test_the_pattern(one: dict[str, Any], text: str, other: bytes) -> None:
    """An event that matches the pattern of another one has the same result without the pattern."""
    one["choices"] = [{"content_filter_results": {}, "delta": {"content": text}, "index": 0}]
    found = filter_stripping.without_filter(written(one, spaced=False, ascii_only=True))
    if found and found.pattern:
        for chunk in (other, written(one | {"id": "another"}, spaced=False, ascii_only=False)):
            by_pattern = found.pattern.cut(b"data: " + chunk + b"\n\n")
            if by_pattern is not None:
                closer = filter_stripping.without_filter(chunk)
                assert closer
                assert b"data: " + closer.content + b"\n\n" == by_pattern


CHOICES = b'{"choices":[{"content_filter_results":{"hate":{"filtered":false}},"delta":%b,"index":0}],"id":"1"}'


def test_the_pattern_of_a_stream() -> None:
    """Events that differ only in their text share a pattern; without filter results the same object is returned."""
    found = filter_stripping.without_filter(CHOICES % b'{"content":"a"}')
    assert found
    assert found.pattern
    assert b'{"choices":[{"delta":{"content":"a"},"index":0}],"id":"1"}' == found.content
    event = b"data: " + CHOICES % '{"content":"ä\\"\\u00e4"}'.encode() + b"\n\n"
    assert 'data: {"choices":[{"delta":{"content":"ä\\"\\u00e4"},"index":0}],"id":"1"}\n\n'.encode() == found.pattern.cut(event)
    for other in (b'{"content":"\xff"}', b'{"content":1}', b'{"role":"a"}', b'{"content":"a"},"x":"b"'):
        assert found.pattern.cut(b"data: " + CHOICES % other + b"\n\n") is None
    assert found.pattern.cut(event + event) is None
    plain = filter_stripping.without_filter(found.content)
    assert plain
    assert plain.content is found.content
    assert plain.pattern
    assert plain.pattern.cut(same := b"data: " + found.content + b"\n\n") is same


def test_several_events_at_once() -> None:
    """As many as match the pattern are cut at once, each as alone; an event that is not complete waits."""
    chunks = [CHOICES % b'{"content":"%b"}' % text for text in (b"a", b"", "ä\\n".encode())]
    found = filter_stripping.without_filter(chunks[0])
    assert found
    pattern = found.pattern
    assert pattern
    events = [b"data: " + chunk + b"\n\n" for chunk in chunks]
    cut = [pattern.cut(event) or b"" for event in events]
    run = b"".join(events)
    for rest in (b"", b"data: [DONE]\n\n", events[0][:-1], events[0][:-3], b"data: " + CHOICES.replace(b'"1"', b'"2"')):
        assert (b"".join(cut), len(run) + 3) == pattern.cut_all(b"\n\n\n" + run + rest, 3)
    for other in (
        b"data: x\n\n" + run,
        run + b"data: " + CHOICES % b'{"content":1}' + b"\n\n",
        events[0].replace(b"a", b"\xff"),
        events[0][:-1],
    ):
        assert pattern.cut_all(other, 0) is None
    plain = filter_stripping.without_filter(found.content)
    assert plain
    assert plain.pattern
    assert (b"".join(cut), len(b"".join(cut))) == plain.pattern.cut_all(b"".join(cut), 0)


EVENT = st.one_of(
    st.sampled_from([b"a", b"b", "ä".encode(), b"\\n", b'"', b"\xff"]).map(lambda text: b"data: " + CHOICES % b'{"content":"%b"}' % text),
    st.sampled_from(
        [b"data: [DONE]", b": comment", b"", b"data: {}", b"data: " + CHOICES % b'{"role":"a"}', b'event: x\ndata: {"error":1}']
    ),
    st.just(b"data: " + CHOICES.replace(b'"1"', b'"2"') % b'{"content":"c"}'),
)


@given(events=st.lists(EVENT, max_size=12), end=st.sampled_from([b"\n\n", b"\r\n\r\n"]), cuts=st.lists(st.integers(0, 3000), max_size=3))
def test_many_events_in_one_read(events: list[bytes], end: bytes, cuts: list[int]) -> None:
    """A stream that arrives in a few large reads has the same result as one that arrives event by event."""
    streams = [openai_response.ResponseStream(normalize=True, encoding=None) for _ in range(2)]
    whole = [FIRST, *(event + end for event in events)]
    data = b"".join(whole)
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    one_by_one = b"".join(b"".join(streams[0](event)) for event in whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_response, "MANY", 0)
        at_once = b"".join(b"".join(streams[1](data[start:stop])) for start, stop in itertools.pairwise(edges))
    assert one_by_one == at_once
    assert b"".join(streams[0](b"")) == b"".join(streams[1](b""))


@pytest.mark.parametrize(
    "delta", [b'{"tool_calls":[{"function":{"arguments":"{"},"index":0}]}', b'{"role":"assistant","content":null}', b"{}"]
)
def test_other_deltas(delta: bytes) -> None:
    """A delta without text is stripped and gives no pattern."""
    found = filter_stripping.without_filter(CHOICES % delta)
    assert found
    assert found.content == b'{"choices":[{"delta":%b,"index":0}],"id":"1"}' % delta
    assert found.pattern is None
