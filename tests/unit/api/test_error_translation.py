"""Translation of Azure's errors into OpenAI's shape."""

import html
import json
import re
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.api import error_translation, redaction
from azure_openai_proxy.api.error_translation import error_body, mask, shape

KEY = "0123456789abcdef"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["429", "content_filter", KEY]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["error", "message", "type", "param", "code", "innererror", "detail"]) | st.text(), inner)
    ),
    max_leaves=12,
)


def shaped(status: int, body: Any, requested: str | None = "gpt-4o", deployment: str | None = None) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    out = error_body(status, raw, requested=requested, models=["gpt-4.1", "o3"], secrets=[KEY], deployment=deployment)
    error = json.loads(out)["error"]
    assert ["message", "type", "param", "code"] == list(error)[:4]
    assert isinstance(error, dict)
    return error


FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True, "severity": "high"}}},
    }
}
TOKENS = "Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your current OpenAI S0 pricing tier."
CALLS = "Requests to the ChatCompletions_Create Operation have exceeded call rate limit of your current OpenAI S0 pricing tier."


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (401, {"code": "401", "message": "Access denied"}, ("invalid_request_error", None, "invalid_api_key")),
        (401, {"code": "Unauthorized", "type": "x", "message": "m"}, ("invalid_request_error", None, "invalid_api_key")),
        (403, {"code": "403", "message": "m"}, ("invalid_request_error", None, "insufficient_permissions")),
        (403, {"code": "AuthenticationTypeDisabled", "message": "m"}, ("invalid_request_error", None, "AuthenticationTypeDisabled")),
        (404, {"code": "DeploymentNotFound", "message": "m"}, ("invalid_request_error", None, "model_not_found")),
        (400, {"code": "unknown_model", "message": "m"}, ("invalid_request_error", None, "model_not_found")),
        (404, {"code": "404", "message": "Resource not found"}, ("invalid_request_error", None, "unknown_url")),
        (404, {"code": "not_found", "message": "No such file"}, ("invalid_request_error", None, "not_found")),
        (408, {"code": "Timeout", "message": "m"}, ("server_error", None, "Timeout")),
        (429, {"code": "429", "message": TOKENS}, ("tokens", None, "rate_limit_exceeded")),
        (429, {"code": "429", "message": CALLS}, ("requests", None, "rate_limit_exceeded")),
        (429, {"code": "too_many_requests", "type": "too_many_requests", "message": "m"}, ("requests", None, "rate_limit_exceeded")),
        (429, {"code": "rate_limit_exceeded", "type": "tokens", "message": "m"}, ("tokens", None, "rate_limit_exceeded")),
        (429, {"code": "insufficient_quota", "message": "m"}, ("insufficient_quota", None, "insufficient_quota")),
        (400, {"code": "contentFilter", "message": "m"}, ("invalid_request_error", "prompt", "content_filter")),
        (400, {"code": "400", "message": "m"}, ("invalid_request_error", None, None)),
        (400, {"code": 400, "message": "m"}, ("invalid_request_error", None, None)),
        (400, {"code": True, "message": "m", "param": 3}, ("invalid_request_error", None, None)),
        (400, {"code": "OperationNotSupported", "message": "m"}, ("invalid_request_error", None, "OperationNotSupported")),
        (
            400,
            {"code": "unsupported_parameter", "message": "m", "param": "max_tokens", "type": "invalid_request_error"},
            ("invalid_request_error", "max_tokens", "unsupported_parameter"),
        ),
        (500, {"code": "InternalServerError", "message": "m"}, ("server_error", None, "InternalServerError")),
        (503, {"code": "503", "message": "m"}, ("server_error", None, None)),
        (500, {"code": "content_filter", "message": "m"}, ("invalid_request_error", "prompt", "content_filter")),
    ],
)
def test_azures_own(status: int, error: dict[str, Any], expected: tuple[str, str | None, str | None]) -> None:
    """Type, param and code become those of OpenAI's SDKs; a code without an OpenAI equivalent stays."""
    out = shaped(status, {"error": error})
    assert expected == (out["type"], out["param"], out["code"])


def test_content_filter_keeps_the_inner_error() -> None:
    """The content filter's results reach the client unchanged."""
    assert FILTERED["error"] | {"type": "invalid_request_error"} == shaped(400, FILTERED)


def test_inner_error_names_the_content_filter() -> None:
    """A content filter error is also recognised by its inner error."""
    out = shaped(400, {"error": {"message": "m", "innererror": {"code": "ResponsibleAIPolicyViolation"}}})
    assert "content_filter" == out["code"]


@pytest.mark.parametrize(
    ("asked", "deployment", "expected"),
    [
        ("gpt-4o", None, "The model `gpt-4o` does not exist: Azure has no deployment for it."),
        ("gpt-4o", "prod", "The model `gpt-4o` does not exist: Azure has no deployment `prod`."),
        (None, None, "The model does not exist: Azure has no deployment for it."),
    ],
)
def test_no_such_deployment(asked: str | None, deployment: str | None, expected: str) -> None:
    """The message for an unknown deployment names the requested model, the deployment and the configured models."""
    error = {"error": {"code": "DeploymentNotFound", "message": "m"}}
    expected += " Configured models: gpt-4.1, o3. Azure said: m"
    assert expected == shaped(404, error, asked, deployment)["message"]


def test_no_models_configured() -> None:
    """Without configured models the message does not list any."""
    out = error_body(404, b'{"error":{"code":"DeploymentNotFound","message":"m"}}', requested="x", models=[], secrets=[])
    assert b"Configured" not in out


def test_wrong_path() -> None:
    """For an unknown path the message refers to the base URL and the proxy's configuration."""
    assert "api-version" in shaped(404, {"error": {"code": "404", "message": "Resource not found"}})["message"]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b'{"statusCode":401,"message":"Access denied due to missing key."}', "Access denied due to missing key."),
        (400, b'{"Message":"m"}', "m"),
        (422, b'{"detail":[{"loc":"body"}]}', '[{"loc": "body"}]'),
        (400, b'{"title":"t"}', "t"),
        (400, b'{"error":"text"}', "text"),
        (400, b'"text"', "text"),
        (400, b'{"error":{"message":{"a":1}}}', '{"a": 1}'),
        (500, b'{"error":{"message":null}}', "Azure answered 500 Internal Server Error and gave no reason."),
        (500, b'{"error":null}', "Azure answered 500 Internal Server Error and gave no reason."),
        (500, b"", "Azure answered 500 Internal Server Error and gave no reason."),
        (500, b" \r\n", "Azure answered 500 Internal Server Error and gave no reason."),
        (500, b"null", "Azure answered 500 Internal Server Error and gave no reason."),
        (500, b"[]", "Azure answered 500 Internal Server Error and gave no reason."),
        (500, b"[1]", "Azure answered 500 Internal Server Error: [1]"),
        (599, b"upstream\n failed", "Azure answered 599: upstream failed"),
        (502, b"\xff\xfe bad", "Azure answered 502 Bad Gateway: \ufffd\ufffd bad"),
        (
            502,
            b"<html><head><title>502</title><style>a{}</style></head>\n<body><h1>Bad &amp; gone</h1><!-- x --></body></html>",
            "Azure answered 502 Bad Gateway: 502 Bad & gone",
        ),
    ],
)
def test_other_shapes(status: int, body: bytes, message: str) -> None:
    """Errors of gateways in other shapes, in HTML or without a body have a message."""
    assert message == shaped(status, body)["message"]


def test_long_bodies_are_shortened() -> None:
    """A long text body is shortened in the message."""
    message = shaped(502, b"word " * 1000)["message"]
    assert message.endswith(" …")
    assert len(message) < 600


@pytest.mark.parametrize("depth", [3000, 200_000])
def test_deeply_nested_error(depth: int) -> None:
    """An error that is nested too deep to copy or parse is read as text."""
    body = b'{"error":{"message":"m","x":' + b"[" * depth + b"]" * depth + b"}}"
    assert shaped(500, body)["message"].startswith("Azure answered 500 Internal Server Error")


def test_numbers_only_python_reads() -> None:
    """NaN and infinities become null, because JSON parsers other than Python's refuse them."""
    out = error_body(400, b'{"error":{"message":"m","a":NaN,"b":[1e999,1.5]}}', requested=None, models=[], secrets=[])
    assert b'"a": null, "b": [null, 1.5]' in out


def test_without_a_status() -> None:
    """For an error inside a stream the status is taken from Azure's code."""
    assert ("tokens", "rate_limit_exceeded") == tuple(
        shape({"code": "429", "message": "token rate limit"})[name] for name in ("type", "code")
    )
    assert ("server_error", None) == tuple(shape({"code": "12", "message": "m"})[name] for name in ("type", "code"))
    assert "Azure ended the answer with an error." == shape(None)["message"]
    assert "requests" == shape({"code": "rate_limit_exceeded"})["type"]


@given(error=JSON)
def test_shape_twice_is_shape_once(error: Any) -> None:
    """Shaping an error in OpenAI's shape changes nothing."""
    once = shape(error)
    assert json.dumps(once) == json.dumps(shape(once))


@given(status=st.integers(400, 599), body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_shaped(status: int, body: bytes) -> None:
    """Any body becomes a readable error without the key."""
    error = shaped(status, body)
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert KEY not in json.dumps(error)


SECRET = 'a/b+c "d"&é<=%'


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower().replace("%c3%a9", "%c3%a9"),
        quote_plus(SECRET),
        html.escape(SECRET),
        json.dumps(SECRET)[1:-1],
        json.dumps(SECRET, ensure_ascii=False)[1:-1],
        json.dumps(SECRET)[1:-1].replace("/", "\\/"),
    ],
)
def test_mask_finds_every_form(form: str) -> None:
    """A secret is masked in plain form and in every escaped form."""
    assert "key=[key], again [key]." == mask(f"key={form}, again {form}.", ["zzzz", SECRET])


def test_mask_takes_the_longest() -> None:
    """A secret that is a prefix of another one does not leave the rest of it."""
    assert "[key] [key]" == mask("secret-long secret", ["secret", "secret-long"])


def test_mask_spares_short_secrets() -> None:
    """A secret that is too short to be a key is not masked, because it would match ordinary text."""
    assert "abc" == mask("abc", ["", "abc"])


@pytest.mark.parametrize(
    "body",
    [
        f'{{"error":{{"message":"key {KEY}","x":["{KEY}",{{"{KEY}":1}}],"code":"{KEY}","type":"{KEY}","param":"{KEY}"}}}}',
        f"<p>{KEY}</p>",
        f"plain {KEY}",
        "x" * 480 + f" {KEY}",
        " " * 16370 + "x " + KEY,
        f'["{KEY}"]',
    ],
)
def test_no_secret_in_any_body(body: str) -> None:
    """No part of a repeated key remains in the error."""
    out = error_body(400, body.encode(), requested=None, models=[], secrets=[KEY]).decode()
    assert KEY[:8] not in out


def test_no_secret_in_the_model() -> None:
    """A key that the client sends as the model is masked in the message."""
    out = error_body(404, b'{"error":{"code":"DeploymentNotFound","message":"m"}}', requested=KEY, models=[KEY], secrets=[KEY])
    assert KEY.encode() not in out


@pytest.mark.parametrize(
    "page",
    [
        "<script>" * 2000,
        "<style" * 2700,
        "<!--" * 4000,
        "<" * 16000,
        "</script" * 2000,
        "<script>" + "</script " + " " * 16000,
        "<!-- <script> -->" * 900,
    ],
)
def test_html_is_read_in_linear_time(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of searches is that of the opening tags and of the kinds of missing end tags."""
    searched = []

    class Counting:
        def __init__(self, pattern: re.Pattern[str]) -> None:
            self._pattern = pattern

        def search(self, text: str, at: int) -> re.Match[str] | None:
            found = self._pattern.search(text, at)
            searched.append((found.end() if found else len(text)) - at)
            return found

    monkeypatch.setattr(error_translation, "_HIDDEN_ENDS", {kind: Counting(end) for kind, end in error_translation._HIDDEN_ENDS.items()})
    shaped(502, page.encode())
    assert sum(searched) <= 4 * len(page)


def test_hidden_parts_of_html() -> None:
    """Scripts, styles and comments are removed; one without an end is kept as text."""
    page = b"<html><SCRIPT>a</script\n><style>b</style>one<!-- c -->two<script>three<script>four<!-- x -->"
    assert "Azure answered 502 Bad Gateway: one two three four" == shaped(502, page)["message"]


@pytest.mark.parametrize("text", ["x" * 300_000, "x y " * 75_000, "\x1b" * 60_000], ids=["a word", "words", "escapes"])
def test_a_long_error_is_short_for_the_client(text: str) -> None:
    """A long error is limited in its message, as JSON and in additional members."""
    for body in (text.encode(), {"error": {"message": text[:200_000]}}, {"error": {"message": "m", "details": [text]}}, {"error": text}):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        out = error_body(400, raw, requested=None, models=[], secrets=[KEY])
        assert len(out) <= 120_000
    for name in ("code", "type", "param"):
        assert 258 == len(shaped(400, {"error": {"message": "m", name: "x" * 1000}})[name])
    assert ["message", "type", "param", "code"] == list(shaped(400, {"error": {"message": "m", "details": ["x" * 100_000]}}))


@pytest.mark.parametrize("key", [KEY, "k" * 1000], ids=["short", "long"])
def test_the_forms_of_a_key_are_made_once(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of the same secrets are computed once, and not for each text of an error."""
    body = json.dumps({"error": {"message": "m", "details": [key] * 1000}}).encode()

    def masked() -> bytes:
        return error_body(400, body, requested=None, models=[], secrets=[key])

    first = masked()
    assert key.encode() not in first
    monkeypatch.setattr(redaction, "_forms", None)
    assert first == masked()
