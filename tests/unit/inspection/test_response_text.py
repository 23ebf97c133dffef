"""The text of responses of every operation, and of arbitrary bytes."""

from __future__ import annotations

import json
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azure_openai_proxy.inspection import response_text
from azure_openai_proxy.inspection.response_text import Chunk, render
from support.examples import examples
from support.samples import ANSWERS, chunk, events


@pytest.mark.parametrize(("content_type", "body", "looked_for"), ANSWERS.values(), ids=ANSWERS)
def test_each_response_shows_its_output(content_type: str, body: bytes, looked_for: list[str]) -> None:
    """The text of each kind of response contains its output and the members that the proxy drops."""
    shown = render(body, content_type, azure_body=body)
    assert [] == [text for text in looked_for if text not in shown]


def test_gaps_are_bars() -> None:
    """The gaps between chunks are bars, the longest gap the highest bar."""
    shown = render(b"{}", chunks=[Chunk(0.5, 1), Chunk(0.6, 1), Chunk(1.6, 1), Chunk(1.7, 1)])
    assert "── chunks\nfirst after 0.50 s, 3 more in 1.20 s, the longest gap 1.00 s\n▂█▂" in shown


def test_one_chunk_has_no_gaps() -> None:
    """A single chunk is shown with its time only."""
    assert render(b"{}", chunks=[Chunk(0.25, 1)]).endswith("first after 0.25 s")


def test_chunks_that_came_at_once_are_flat() -> None:
    """Gaps of zero are flat bars and cause no division by zero."""
    assert render(b"{}", chunks=[Chunk(0.25, 1)] * 3).endswith("▁▁")


def test_many_gaps_share_bars() -> None:
    """The bars of a long stream fit into one line."""
    shown = render(b"{}", chunks=[Chunk(at / 10, 1) for at in range(200)])
    assert "each bar: the longest of 4 gaps" in shown


def test_the_middle_of_a_huge_stream_is_left_out() -> None:
    """The start and the end of a huge stream are shown, with the size of the omitted part."""
    body = events(*[chunk({"content": f"word {number} " * 20}) for number in range(20_000)], chunk({}, "stop"))
    shown = render(body, "text/event-stream", azure_body=body)
    assert "in the middle of this stream are not shown" in shown
    assert "stop · gpt-4o-2024-11-20" in shown
    assert "only the first 2.1 MB were compared" in shown


def test_an_unchanged_response_lists_nothing() -> None:
    """An unchanged response has no list of dropped members."""
    assert [] == list(response_text.dropped(b'{"a": 1}'))
    assert [] == list(response_text.dropped(events({"choices": [{"delta": {"content": "a"}}]})))


def test_changes_are_listed() -> None:
    """A replaced model name and a chunk without its only choice are listed."""
    listed = dict(response_text.dropped(b'{"model": "gpt-35-turbo", "choices": [{"content_filter_results": {}}]}'))
    assert (
        'model: "gpt-35-turbo"\nchoices[].content_filter_results: {}'
        == listed["sent by Azure and dropped by the proxy"].replace("\n\n", "\n")
        or listed
    )


def test_two_whole_events() -> None:
    """Two dropped events are counted in the plural."""
    body = events({"choices": [], "prompt_filter_results": [1]}, {"choices": [], "prompt_filter_results": [1]})
    assert "2 whole events" in render(b"{}", "text/event-stream", azure_body=body)


def test_too_deep_to_be_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A RecursionError is reported; the depth at which Python raises it depends on its version."""

    def deep(*_: object) -> NoReturn:
        raise RecursionError

    monkeypatch.setattr(response_text, "_whole", deep)
    assert "This nests too deeply to be shown." == render(b"{}")


def test_too_deep_to_show() -> None:
    """Nesting that Python can parse but not traverse recursively is reported."""
    assert "nests too deeply" in render(b'{"choices":[{"message":' + b'{"content":' * 50_000)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 2}, "stop · 2 tokens"),
        ({"output_tokens": 3}, "stop · 3 tokens"),
        ({"prompt_tokens": 2, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}}, "stop · 2 + 3 tokens (cached 1)"),
        ({"prompt_tokens": "2"}, "stop"),
        ({}, "stop"),
        (None, "stop"),
    ],
)
def test_usage(usage: object, expected: str) -> None:
    """Known tokens are shown under the names of both APIs, and unknown ones are not shown as 0."""
    assert render(json.dumps({"choices": [{"finish_reason": "stop", "message": {}}], "usage": usage}).encode()).endswith(expected)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A sample that is truncated, with parts moved, doubled or overwritten."""
    content_type, body, _ = draw(st.sampled_from([*ANSWERS.values()]))
    changed = bytearray(body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body)
    for _ in range(draw(st.integers(0, 6))):
        at, until = sorted((draw(st.integers(0, len(changed))), draw(st.integers(0, len(changed)))))
        new = draw(
            st.sampled_from([b"", b'"', b"{", b"[]", b"null", b"3", b"\xff", b"\\u", b"\n\n", b"data: ", bytes(changed[at:until]) * 2])
        )
        changed[at : min(until, at + 30)] = new
    return draw(st.sampled_from([content_type, "", "text/event-stream"])), bytes(changed)


@settings(max_examples=examples(1000), deadline=None)
@given(mutated())
def test_no_body_is_too_broken(sample: tuple[str, bytes]) -> None:
    """Mutated and truncated response bodies yield a text that can be encoded as UTF-8."""
    content_type, body = sample
    assert isinstance(render(body, content_type, azure_body=body).encode(), bytes)


def test_a_usage_that_the_client_did_not_ask_for() -> None:
    """The tokens of a stream from which the proxy removed the usage are shown, and so is what it removed."""
    text = chunk({"content": "a"})
    azure_body = events(text | {"usage": None}, {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}})
    shown = render(events(text), "text/event-stream", azure_body=azure_body)
    assert "2 + 3 tokens" in shown
    assert "1 whole event\n" in shown
    assert "\nusage: {" in shown


@pytest.mark.parametrize("last", [b'data: ["usage"]\n\n', b'data: {"usage"\n\n', b'data: {"usage"'])
def test_a_usage_that_cannot_be_read(last: bytes) -> None:
    """It is not shown."""
    assert "tokens" not in render(b'data: {"choices":[]}\n\n', "text/event-stream", azure_body=last)
