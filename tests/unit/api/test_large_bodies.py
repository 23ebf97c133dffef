"""Editing of large JSON bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.api import large_bodies
from azure_openai_proxy.api.large_bodies import LONG_MEMBER, MOST_ESCAPED, MOST_STRINGS, LargeBody, is_large
from azure_openai_proxy.formats import json_scan
from azure_openai_proxy.formats.json_edit import BOM, Span
from azure_openai_proxy.formats.json_scan import LARGE, MOST, Turns

json_scan._patterns()  # compiling takes longer than hypothesis's deadline
PLACES = ("model", "session.model")
IMAGE = "data:image/png;base64," + "A" * LARGE


def body(value: object) -> LargeBody:
    return of(json.dumps(value).encode())


def of(content: bytes) -> LargeBody:
    return asyncio.run(large_bodies.read(Turns(), content, *PLACES))


def changed(large: LargeBody, value: object) -> LargeBody:
    return large.changed(json.dumps(value).encode())


@pytest.mark.parametrize(
    "content, content_type, large",
    [
        (b"{" + b" " * LARGE, "", True),
        (b"[" + b" " * LARGE, "application/json", True),
        (b"{" + b" " * (LARGE - 1), "application/json", False),
        (b"--b" + b" " * LARGE, "Multipart/form-data; boundary=b", False),
        (b"{" + b" " * LARGE, "multipart/form-data; boundary=b", True),
    ],
)
def test_is_large(content: bytes, content_type: str, large: bool) -> None:
    """Bodies from a certain size on are read in slices, except forms that are not JSON."""
    assert large == is_large(content, content_type)


def test_members_of_the_root() -> None:
    """A member of the root is parsed; a large one gives an empty value of its type."""
    long = "x" * LONG_MEMBER
    large = body({"model": "m", "stream": True, "n": 1.5, "text": long, "list": [long], "object": {"a": long}})
    found = {name: large.value(name) for name in ("model", "stream", "n", "text", "list", "object", "none")}
    assert {"model": "m", "stream": True, "n": 1.5, "text": "", "list": [], "object": {}, "none": None} == found
    assert 0 == of(b'{"n":0.%b}' % (b"1" * LONG_MEMBER)).value("n")


def test_strings_at_places() -> None:
    """Strings are found at their places, except those that are too long for a name."""
    large = of(b'{"model":"a\\u0041","session":{"model":"%b"}}' % (b"x" * LONG_MEMBER))
    assert [Span(9, 18, "aA")] == large.strings(*PLACES)
    assert [] == of(b'{"model":3}').strings("model")


@pytest.mark.parametrize("content", [b"[],", b"", b"\xff", b'{"a":1}}'])
def test_invalid_json(content: bytes) -> None:
    """An invalid body has an error and no members."""
    large = of(content)
    assert large.error
    assert (None, [], {}) == (large.value("model"), large.strings("model"), large.parse())


MESSAGE = {"role": "developer", "content": [{"text": 'a"\\' * 99}]}
CHATS = st.fixed_dictionaries(
    {"model": st.sampled_from(["gpt-4o", "é", "x" * 200]), "messages": st.lists(st.sampled_from([MESSAGE, "y" * 500, 1, "z"]))},
    optional={"session": st.just({"model": "b" * 300}), "user": st.text(), "x" * 200: st.just("z" * 300)},
)


@given(CHATS, st.booleans(), st.booleans())
def test_a_change_leaves_the_rest(chat: dict[str, Any], escaped: bool, bom: bool) -> None:
    """After a change the long strings are unchanged, and the places are located again."""
    large = of((BOM if bom else b"") + json.dumps(chat, ensure_ascii=escaped).encode())
    short = large.parse()
    assert short.keys() == chat.keys()
    short.pop("user", None)
    again = changed(large, short | {"new": 1})
    wanted = {name: value for name, value in chat.items() if name != "user"} | {"new": 1}
    assert wanted == json.loads(again.content)
    assert {(one.text, json.loads(again.content[one.start : one.end])) for one in again.strings(*PLACES)} == {
        (text, text) for text in (chat["model"], chat.get("session", {}).get("model")) if text is not None
    }
    assert short | {"new": 1} == again.parse()
    assert json.loads(again.content)["new"] == again.value("new")


def test_an_image_is_not_parsed() -> None:
    """Only the short form is parsed, and the image is put back byte for byte."""
    content = json.dumps({"messages": [{"role": "user", "content": IMAGE}], "user": "u"}, indent=2).replace("image/", "image\\/").encode()
    large = of(content)
    short = large.parse()
    assert len(json.dumps(short)) < 200
    short["messages"][0]["role"] = "system"
    del short["user"]
    again = changed(large, short).content
    assert b"image\\/png" in again
    assert {"messages": [{"role": "system", "content": IMAGE}]} == json.loads(again)


@pytest.mark.parametrize("item", ["short", 1, "\\"])
def test_members_of_many_short_items_are_replaced_whole(item: object) -> None:
    """If many short items make the body large, members of the root are replaced, and others can be changed."""
    value = {"input": [item] * (MOST_STRINGS * 10), "user": "u", "model": "m"}
    large = body(value)
    short = large.parse()
    assert len(json.dumps(short)) < 200
    del short["user"]
    assert {"input": value["input"], "model": "m"} == json.loads(changed(large, short).content)


def test_a_client_cannot_write_a_placeholder() -> None:
    """A placeholder in a client's text is not replaced, because the prefix is random."""
    large, other = body({"a": IMAGE, "b": "c"}), body({"a": IMAGE, "b": "c"})
    assert large.parse()["a"] != other.parse()["a"]


@pytest.mark.parametrize(
    "value",
    [{f"n{number}": "short string" for number in range(MOST + MOST_STRINGS)}, {f"n{number}": "x" * 100 for number in range(9000)}, [IMAGE]],
    ids=["many names", "many members", "a list"],
)
def test_a_body_that_stays_large_is_not_parsed(value: object) -> None:
    """A body that is still large without its long strings, or is not an object, is not parsed."""
    assert {} == body(value).parse()


@pytest.mark.parametrize("texts", [["\\n" * MOST_ESCAPED], ["\\n" * (MOST_ESCAPED // 4)] * 3], ids=["one", "several"])
def test_strings_with_too_many_escapes_are_replaced_with_their_member(texts: list[str]) -> None:
    """Strings with too many escapes are replaced together with their member, because finding their ends takes too long."""
    content = b'{"input":["%b"],"user":"u"}' % '","'.join(texts).encode()
    large = of(content)
    short = large.parse()
    assert isinstance(short["input"], str)
    assert json.loads(content) == json.loads(changed(large, short).content)
