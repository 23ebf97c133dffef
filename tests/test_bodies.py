"""Where a body names its model."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.bodies import Span, form_field, json_strings, replace

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
    """Whatever stands around it, and of a repeated name the last; not another byte changes."""
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
    """Members joined by dots, `*` for the items of a list."""
    assert after == replaced(body, place)


def test_several_places_at_once() -> None:
    """Spans come with the text they stand for."""
    spans = json_strings(b'{"model":"a","session":{"model":"\\u00fc"}}', ("model", "session.model"))
    assert ["a", "ü"] == [span.text for span in spans]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("model"), inner),
)


@given(st.dictionaries(st.text(), JSON), st.text(), st.booleans(), st.sampled_from([None, 2]))
def test_any_json_keeps_its_meaning(members: dict[str, object], model: str, ascii: bool, indent: int | None) -> None:
    """Parsed, it is the same but for its model."""
    body = json.dumps(members | {"model": model}, ensure_ascii=ascii, indent=indent).encode()
    spans = json_strings(body, MODEL)
    assert [model] == [span.text for span in spans]
    assert members | {"model": "new"} == json.loads(replace(body, spans, lambda _: b'"new"'))


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/mpeg\r\n\r\n\r\n--x model\r\n'
    b"\r\n--b\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper-1\r\n--b--\r\n"
)


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=b", 'Multipart/Form-Data; charset=x; Boundary="b"'])
def test_a_forms_field_is_found(content_type: str) -> None:
    """By its name, and not by what a file holds or is called."""
    field = form_field(FORM, content_type, "model")
    assert field is not None
    assert (b"whisper-1", "whisper-1") == (FORM[field.start : field.end], field.text)


def test_text_before_the_first_boundary_counts_for_nothing() -> None:
    """RFC 2046 allows some."""
    assert form_field(b"preamble\r\n" + FORM, "multipart/form-data; boundary=b", "model") is not None


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (FORM, "multipart/form-data"),
        (FORM, "multipart/form-data; boundary=other"),
        (FORM[: FORM.index(b"whisper") + 3], "multipart/form-data; boundary=b"),
        (FORM.replace(b"name=model", b"name=other"), "multipart/form-data; boundary=b"),
        (FORM.replace(b"name=model", b"nothing"), "multipart/form-data; boundary=b"),
        (b"--b", "multipart/form-data; boundary=b"),
        (b"", "multipart/form-data; boundary=b"),
    ],
)
def test_a_form_without_the_field(body: bytes, content_type: str) -> None:
    """Or one that ends before the field does."""
    assert form_field(body, content_type, "model") is None


def test_replace_without_spans() -> None:
    """The same bytes."""
    assert b"abc" == replace(b"abc", [], lambda _: b"X")
    assert b"aXc" == replace(b"abc", [Span(1, 2, "b")], lambda _: b"X")
