"""Finding and replacing strings in a JSON body."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.formats.json_edit import Span, is_object, json_strings, rename, replace

MODEL = ("model",)


def replaced(body: bytes, *places: str) -> bytes:
    return replace(body, json_strings(body, places or MODEL), lambda _: b"X")


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"model":"a"}', b'{"model":X}'),
        (b'{ "model"\n:\r\n\t"a" , "n" : 1.0 }', b'{ "model"\n:\r\n\tX , "n" : 1.0 }'),
        (b'{"model":"a","model":"b"}', b'{"model":"a","model":X}'),
        (b'{"model":"a","model":3}', b'{"model":"a","model":3}'),
        (b'{"model":"a","model":["b"]}', b'{"model":"a","model":["b"]}'),
        (b'{"model":null,"x":"y"}', b'{"model":null,"x":"y"}'),
        (b'{"mod\\u0065l":"a\\"b"}', b'{"mod\\u0065l":X}'),
        (b'{"x":{"model":"a"},"model":"b","y":["model",{"model":"c"}]}', b'{"x":{"model":"a"},"model":X,"y":["model",{"model":"c"}]}'),
        (b'{"x":"{\\"model\\":1","model":"b"}', b'{"x":"{\\"model\\":1","model":X}'),
        (b'{"x":"model","model":"model"}', b'{"x":"model","model":X}'),
        (b'{"x":"\\\\","model":"b"}', b'{"x":"\\\\","model":X}'),
        (b'["model","a"]', b'["model","a"]'),
        (b'"model"', b'"model"'),
        (b"{}", b"{}"),
    ],
)
def test_only_the_top_levels_model_is_found(body: bytes, after: bytes) -> None:
    """Only the model at the top level is replaced; the last one if it is repeated. All other bytes stay."""
    assert after == replaced(body)


@pytest.mark.parametrize(
    ("place", "body", "after"),
    [
        (
            "session.model",
            b'{"session":{"model":"a","x":{"model":"b"}},"model":"c"}',
            b'{"session":{"model":X,"x":{"model":"b"}},"model":"c"}',
        ),
        ("tests.*.model", b'{"tests":[{"model":"a"},{"x":1},{"model":"b"}]}', b'{"tests":[{"model":X},{"x":1},{"model":X}]}'),
        ("tests.*.model", b'{"tests":{"model":"a"}}', b'{"tests":{"model":"a"}}'),
        ("a.b.c", b'{"a":{"b":{"c":"d"}},"b":{"c":"e"},"c":"f"}', b'{"a":{"b":{"c":X}},"b":{"c":"e"},"c":"f"}'),
    ],
)
def test_a_model_may_be_named_deeper_down(place: str, body: bytes, after: bytes) -> None:
    """A place is a path of member names, with `*` for the items of a list."""
    assert after == replaced(body, place)


def test_several_places_at_once() -> None:
    """Strings at several places are found, with their text."""
    spans = json_strings(b'{"model":"a","session":{"model":"\\u00fc"}}', ("model", "session.model"))
    assert ["a", "ü"] == [span.text for span in spans]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text(), JSON), st.text(), st.booleans(), st.sampled_from([None, 2]))
def test_any_json_keeps_its_meaning(members: dict[str, object], model: str, ascii: bool, indent: int | None) -> None:
    """After a replacement any document parses to the same value, except for its model."""
    body = json.dumps(members | {"model": model}, ensure_ascii=ascii, indent=indent).encode()
    spans = json_strings(body, MODEL)
    assert [model] == [span.text for span in spans]
    assert members | {"model": "new"} == json.loads(replace(body, spans, lambda _: b'"new"'))


def test_replace_without_spans() -> None:
    """Without spans the content is unchanged."""
    assert b"abc" == replace(b"abc", [], lambda _: b"X")
    assert b"aXc" == replace(b"abc", [Span(1, 2, "b")], lambda _: b"X")


def test_rename_replaces_only_different_names() -> None:
    """Only strings with a different new name are replaced; without any the same object is returned."""
    body = b'{"model":"a","response":{"model":"b"}}'
    assert b'{"model":"a","response":{"model":"c"}}' == rename(body, ("model", "response.model"), lambda name: {"b": "c"}.get(name, name))
    assert rename(body, ("model",), lambda name: name) is body


@pytest.mark.parametrize(
    ("content", "is_one"),
    [
        (b"{", True),
        (b" \t\r\n{}", True),
        (b"\xef\xbb\xbf{", True),
        (b"\xef\xbb\xbf\n{", True),
        (b"", False),
        (b"[{}]", False),
        (b"--b\r\n{", False),
        (b" " * 10_000 + b"x{", False),
    ],
)
def test_is_object(content: bytes, is_one: bool) -> None:
    """An object is recognised after white space and a byte order mark."""
    assert is_one == is_object(content)
