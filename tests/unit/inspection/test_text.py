"""Formatting of bodies with bounded lengths."""

from __future__ import annotations

import json

import pytest

from azure_openai_proxy.inspection import text as readable_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x" * 300, '"' + "x" * 200 + '… (300 characters)"'),
        ("data:image/png;base64,AAAA", '"[image/png, 3 bytes]"'),
        ({"a": {"b": [1, None]}}, '{"a": {"b": [1, null]}}'),
        ([1] * 52, "[" + "1, " * 50 + '"… 2 more"]'),
        ([[[[[[[[[[[[[[[1]]]]]]]]]]]]]]], "[" * 13 + '"…"' + "]" * 13),
    ],
)
def test_json_in_one_line(value: object, expected: str) -> None:
    """In one line of JSON strings are truncated, data URLs are described, and depth is limited."""
    assert expected == readable_text.compact(value)


@pytest.mark.parametrize(("count", "expected"), [(999, "999 bytes"), (12_345, "12.3 kB"), (5_000_000, "5.0 MB")])
def test_sizes_are_for_people(count: int, expected: str) -> None:
    """Sizes have three digits and a unit."""
    assert expected == readable_text.size(count)


@pytest.mark.parametrize(
    ("body", "heavy"),
    [
        (b"[" + b"1," * 400_000 + b"1]", False),  # small
        (b"[" + b"1," * 600_000 + b"1]", True),
        (b'["' + b'","' * 500_000 + b'"]', True),
        (b"[" + b"[]," * 400_000 + b"1]", True),
        (b"[" + b"{}," * 400_000 + b"1]", True),
        (b'{"image":"' + b"A" * 20_000_000 + b'"}', False),
        (b'{"image":"' + b"A" * 40_000_000 + b'"}', True),
    ],
    ids=["small", "numbers", "strings", "lists", "objects", "image", "too large"],
)
def test_what_is_not_parsed(body: bytes, heavy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large body with many values, or a very large one; an image is one value."""
    parsed: list[bytes] = []
    monkeypatch.setattr(json, "loads", parsed.append)
    if heavy:
        with pytest.raises(ValueError, match="it is not parsed"):
            readable_text.load(body)
        assert [] == parsed
    else:
        readable_text.load(body)
        assert [body] == parsed


def test_parameters_that_are_off_are_omitted() -> None:
    """Parameters that are false or null are omitted."""
    told = readable_text.parameters({"stream": True, "store": False, "user": None, "n": 2, "stop": "a\nb", "long": "x" * 300})
    assert f'stream, n 2, stop "a\\nb", long {"x" * 200}…' == told


def test_a_page_begins_with_its_first_heading() -> None:
    """A heading has its own line, after a blank line except for the first."""
    assert "── a\none\n\n── b\ntwo" == readable_text.page([("a", "one"), ("b", "two"), ("", "")])


def test_data_urls() -> None:
    """A data URL is described by its own type, plain base64 by the given type, and other text is not described."""
    assert ["a/b, 3 bytes", "data, 3 bytes", "audio, 3 bytes", ""] == [
        readable_text.encoded("data:a/b;base64,AAAA"),
        readable_text.encoded("data:;base64,AAAA"),
        readable_text.encoded("AAAA", "audio"),
        readable_text.encoded("AAAA"),
    ]


def test_the_output_is_bounded() -> None:
    """Headings, names and the number of parameters are limited, because a client controls them."""
    told = readable_text.parameters({f"{'x' * 10_000}{number}": True for number in range(5000)})
    assert told.endswith(", … 4,800 more")
    assert len(told) < 50_000
    assert len(readable_text.page([("h" * 10_000, "")])) < 400


def test_only_the_beginning_of_a_data_url_is_searched() -> None:
    """Only a limited prefix is matched as a data URL, because backtracking over a long one would take quadratic time."""
    assert "" == readable_text.encoded("data:a/" + "a" * 400 + ";base64,AAAA")


def test_control_characters_are_shown() -> None:
    """Line ends of all systems are kept as line ends, and other control characters are escaped."""
    assert "a\nb\tc\\x1b[2J?" == readable_text.clean("a\r\nb\tc\x1b[2J\ud83d")
