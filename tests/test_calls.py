"""recognise: request → Call."""

from collections.abc import Mapping

import pytest
from azure_openai_proxy.calls import Call, UnknownOperation, recognise
from azure_openai_proxy.errors import BadRequest

CHAT = "/v1/chat/completions"


def recognised(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = {}) -> Call:  # noqa: B006 - never written
    call = recognise(method, path, headers, body)
    assert call is not None
    return call


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model": "gpt-4o"}', "gpt-4o", False),
        (b'{"model": "gpt-4o", "stream": true}', "gpt-4o", True),
        (b'{"model": "gpt-4o", "stream": 1}', "gpt-4o", False),
        (b'{"model": "first", "model": "last"}', "last", False),
        (b'{"mod\\u0065l": "gpt-4o"}', "gpt-4o", False),
        (b'{"messages": [{"model": "inner"}], "model": "gpt-4o"}', "gpt-4o", False),
    ],
)
def test_the_model_is_read_from_the_body(body: bytes, model: str, stream: bool) -> None:
    """As JSON parsers read it: the last of a repeated name counts, and only the top level."""
    call = recognised("POST", CHAT, body)
    assert (model, stream) == (call.model, call.stream)


def test_the_model_is_read_from_the_path() -> None:
    """GET /v1/models/{model}."""
    assert "gpt-4o" == recognised("GET", "/v1/models/gpt-4o").model


def test_an_operation_without_a_model() -> None:
    """The list of models names none."""
    assert recognised("GET", "/v1/models").model is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"not json", "not valid JSON"),
        (b'{"model": "gpt-4o"', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"n": ' + b"1" * 10_000 + b"}", "not valid JSON"),
        (b'["model"]', "not an object"),
        (b'"model"', "not an object"),
        (b"null", "not an object"),
        (b"{}", "must provide a model"),
        (b'{"model": null}', "must provide a model"),
        (b'{"model": 3}', "must be a string, not int"),
        (b'{"model": ["gpt-4o"]}', "must be a string, not list"),
        (b'{"model": ""}', "name a model"),
        (b'{"model": ".."}', "name a model"),
    ],
)
def test_a_body_that_names_no_model_is_refused(body: bytes, says: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(BadRequest, match=says):
        recognise("POST", CHAT, {}, body)


def test_a_compressed_body_is_refused() -> None:
    """Azure takes none, and reading one unbounded would let a small request fill the memory."""
    with pytest.raises(BadRequest, match="gzip"):
        recognise("POST", CHAT, {"content-encoding": "gzip"}, b"\x1f\x8b")


def test_an_operation_nobody_knows_is_named() -> None:
    """Under /v1, so a client of the API asks."""
    with pytest.raises(UnknownOperation, match="DELETE /v1/nothing/here"):
        recognise("DELETE", "/v1/nothing/here", {}, b"")


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/nothing", "/v1"])
def test_a_path_outside_the_api(path: str) -> None:
    """It is nobody's operation."""
    assert recognise("GET", path, {}, b"") is None
