"""The text of requests of every operation, and of arbitrary bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azure_openai_proxy.inspection.request_text import conversation
from support.examples import examples
from support.samples import REQUESTS


@pytest.mark.parametrize(("content_type", "body", "looked_for"), REQUESTS.values(), ids=REQUESTS)
def test_each_request_shows_its_content(content_type: str, body: bytes, looked_for: list[str]) -> None:
    """The text of each kind of request contains its messages, tools and parameters."""
    shown = conversation(body, content_type)
    assert [] == [text for text in looked_for if text not in shown]


def test_a_huge_text_is_cut() -> None:
    """A huge text is truncated, because a browser shows it slowly."""
    shown = conversation(b'{"messages":[' + b",".join([b'{"role":"user","content":"%s"}' % (b"x" * 100_000)] * 60) + b"]}")
    assert "… 80,000 more characters" in shown
    assert shown.endswith("… and more, which is not shown")
    assert len(shown) < 1_000_000


def test_half_an_emoji_is_shown_as_a_question_mark() -> None:
    """A lone surrogate is replaced, so that the text can be encoded as UTF-8."""
    assert "── user\n?!" in conversation(rb'{"messages":[{"role":"user","content":"\ud83d!"}]}')


def test_the_boundary_of_a_form() -> None:
    """It may have bytes that are not UTF-8. Without one the size is shown."""
    form = b"--\xff\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper-1\r\n--\xff--"
    assert "── model\nwhisper-1" in conversation(form, "multipart/form-data; boundary=\udcff")
    assert "A form without a boundary, 67 bytes" in conversation(form, "multipart/form-data")


def test_nothing_is_asked() -> None:
    """An empty object is shown as `{}`."""
    assert "{}" == conversation(b"{}").strip()


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A sample that is truncated, with parts moved, doubled or overwritten."""
    content_type, body, _ = draw(st.sampled_from([*REQUESTS.values()]).filter(lambda sample: len(sample[1]) < 20_000))
    changed = bytearray(body[: draw(st.integers(0, len(body)))] if draw(st.booleans()) else body)
    for _ in range(draw(st.integers(0, 6))):
        at, until = sorted((draw(st.integers(0, len(changed))), draw(st.integers(0, len(changed)))))
        new = draw(st.sampled_from([b"", b'"', b"{", b"[]", b"null", b"3", b"\xff", b"\\u", b"\r\n", bytes(changed[at:until]) * 2]))
        changed[at : min(until, at + 30)] = new
    return draw(st.sampled_from([content_type, "", "multipart/form-data; boundary=XX"])), bytes(changed)


@settings(max_examples=examples(1000), deadline=None)
@given(mutated())
def test_no_body_is_too_broken(sample: tuple[str, bytes]) -> None:
    """Mutated and truncated request bodies yield a text that can be encoded as UTF-8."""
    content_type, body = sample
    assert isinstance(conversation(body, content_type).encode(), bytes)
