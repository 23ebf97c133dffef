"""Recognition of a client's request."""

import dataclasses
import json

import pytest

from azure_openai_proxy.api import large_bodies
from azure_openai_proxy.api.large_bodies import LargeBody
from azure_openai_proxy.api.operation import Call, Details, Wanted, may_stream_upload, reaches_azure, recognise
from azure_openai_proxy.api.response_items import Item
from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.formats import json_scan

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def recognised(method: str, path: str, body: bytes = b"", headers: dict[str, str] = JSON, query: str = "") -> Call:
    call = recognise(method, path, headers, body, query)
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
    """The model is the last top-level `model` of the body, also if the content type is not JSON, as with `curl -d`."""
    call = recognised("POST", CHAT, body, {"content-type": "application/x-www-form-urlencoded"})
    assert (model, stream) == (call.model, call.stream)


def test_a_model_elsewhere_in_the_body_is_checked() -> None:
    """It may be written into a path, like any other."""
    for name in ("\\ud800", "\\r\\n", "../a"):
        with pytest.raises(BadRequest, match="`model`"):
            recognised("POST", "/v1/evals", b'{"testing_criteria": [{"model": "%b"}]}' % name.encode(), JSON)


FORM = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "body", "model"),
    [
        ("GET", "/v1/models/ft%3Agpt", "", {}, b"", "ft:gpt"),
        ("GET", "/v1/models", "", {}, b"", None),
        ("GET", "/v1/models/org/name", "", {}, b"", "org/name"),
        ("GET", "/v1/models/org%2Fname", "", {}, b"", "org/name"),
        ("GET", "/v1/chat/completions/models/org/name/2", "", {}, b"", "org/name/2"),
        ("DELETE", "/openai/v1/models/org/name", "", {}, b"", "org/name"),
        ("POST", "/v1/engines/gpt-4o/embeddings", "", JSON, b"{}", "gpt-4o"),
        ("WS", "/v1/realtime", "model=gpt-realtime", {}, b"", "gpt-realtime"),
        ("WS", "/openai/realtime", "deployment=rt&api-version=x", {}, b"", "rt"),
        ("WS", "/v1/realtime", "model=rt&Model=other", {}, b"", "other"),
        ("WS", "/openai/realtime", "Deployment=rt", {}, b"", "rt"),
        ("WS", "/v1/realtime", "call_id=1", {}, b"", None),
        ("WS", "/v1/responses", "", {}, b"", None),
        ("POST", "/v1/audio/transcriptions", "", {"content-type": "multipart/form-data; boundary=b"}, FORM, "whisper-1"),
        ("POST", "/v1/audio/transcriptions", "", {"content-type": "multipart/form-data; boundary=c"}, FORM, None),
        ("POST", "/v1/images/edits", "", JSON, b'{"model": "gpt-image-1"}', "gpt-image-1"),
        ("POST", "/v1/realtime/client_secrets", "", JSON, b'{"session": {"model": "gpt-realtime"}}', "gpt-realtime"),
        (
            "POST",
            "/v1/realtime/client_secrets",
            "",
            JSON,
            b'{"session": {"audio": {"input": {"transcription": {"model": "stt"}}}, "model": "gpt-realtime"}}',
            "gpt-realtime",
        ),
        ("POST", "/v1/realtime/client_secrets", "", JSON, b'{"session": {"audio": {"input": {"transcription": {"model": "stt"}}}}}', "stt"),
        ("POST", "/v1/evals", "", JSON, b'{"testing_criteria": [{"model": "judge"}]}', "judge"),
        ("POST", "/v1/evals", "", JSON, b'{"model": "none of ours"}', None),
        ("POST", "/v1/fine_tuning/jobs", "", JSON, b'{"model": "gpt-4.1-2025-04-14"}', None),
        ("POST", "/v1/responses", "", JSON, b'{"prompt": {}}', None),
        ("POST", "/v1/something/new", "", JSON, b'{"model": "gpt-9"}', "gpt-9"),
        ("POST", "/v1/something/new", "", {"content-type": "text/plain"}, b'{"model": "gpt-9"}', "gpt-9"),
        ("POST", "/v1/something/new", "", {"content-type": "text/plain"}, b"model=gpt-9", None),
        ("POST", "/v1/something/new", "", {"content-type": "application/octet-stream"}, b"{ no JSON", None),
        ("POST", "/v1/responses", "", {"content-type": "application/x-www-form-urlencoded"}, b'{"model": "gpt-9"}', "gpt-9"),
        ("POST", "/v1/responses", "", {"content-type": "Application/JSON; charset=UTF-8"}, b' \n{"model": "gpt-9"}', "gpt-9"),
        ("POST", "/v1/responses", "", {}, b'\xef\xbb\xbf{"model": "gpt-9"}', "gpt-9"),
        ("POST", CHAT, "", {}, b'\xef\xbb\xbf \r\n{"model": "gpt-9"}', "gpt-9"),
        ("POST", "/v1/audio/transcriptions", "", {"content-type": "multipart/form-data; boundary=b"}, b'{"model": "gpt-9"}', "gpt-9"),
        ("POST", "/v1/something/new", "", JSON, b"", None),
        ("POST", "/openai/deployments/d%2F1/chat/completions", "", JSON, b'{"model": "ignored"}', "d/1"),
        ("POST", "/openai/v1/responses", "", JSON, b'{"model": "d"}', "d"),
        ("GET", "/openai/files", "", {}, b"", None),
        ("GET", "/v1/organization/users", "", {}, b"", None),
    ],
)
def test_the_model_is_at_the_place_of_the_row(
    method: str, path: str, query: str, headers: dict[str, str], body: bytes, model: str | None
) -> None:
    """The model is read from the body, the path, the query, a form or a nested place, depending on the operation."""
    assert model == recognised(method, path, body, headers, query).model


@pytest.mark.parametrize(
    ("path", "native", "below"),
    [
        ("/v1/chat/completions", "", "/chat/completions"),
        ("//v1/chat/completions", "", "/chat/completions"),
        ("/chat/completions", "", "/chat/completions"),
        ("/openai/v1/chat/completions", "v1", "/chat/completions"),
        ("/openai/deployments/d/chat/completions", "dated", "/chat/completions"),
        ("/openai/batches", "dated", "/batches"),
        ("/v1/v1/chat/completions", "", "/chat/completions"),
        ("/api/v1/chat/completions", "", "/chat/completions"),
        ("/openai/v1/v1/chat/completions", "v1", "/chat/completions"),
        ("/openai/v1/openai/v1/responses", "v1", "/responses"),
        ("/v1/openai/v1/responses", "v1", "/responses"),
        ("/openai/openai/v1/responses", "v1", "/responses"),
        ("/v1/chat/completions/chat/completions", "", "/chat/completions"),
        ("/v1/chat/completions/v1/chat/completions", "", "/chat/completions"),
        ("/v1/responses/responses", "", "/responses"),
        ("/chat/completions/embeddings", "", "/embeddings"),
        ("/openai/deployments/d/chat/completions/chat/completions", "dated", "/chat/completions"),
        ("/openai/deployments/e/chat/completions/openai/deployments/d/chat/completions", "dated", "/chat/completions"),
        ("/v1/chat/completions/chatcmpl-1", "", "/chat/completions/chatcmpl-1"),
        ("/v1/responses/compact", "", "/responses/compact"),
        ("/api/v1/anything/new", "", "/anything/new"),
    ],
)
def test_the_api_a_client_speaks(path: str, native: str, below: str) -> None:
    """OpenAI's API is recognised with any base URL, and so are both of Azure's own forms."""
    call = recognised("POST", path, b'{"model": "d"}')
    assert (native, below) == (call.native, call.path)


@pytest.mark.parametrize(
    ("path", "body", "stream"),
    [
        ("/v1/engines/gpt-4o/completions", b'{"stream": true}', True),
        ("/openai/deployments/d/chat/completions", b'{"stream": true}', True),
        ("/openai/deployments/d/chat/completions", b'{"stream": false}', False),
        ("/openai/deployments/d/chat/completions", b'{"stream": true', False),
        ("/v1/responses", b'{"model": "gpt-4o", "stream": true}', True),
    ],
)
def test_the_stream_flag(path: str, body: bytes, stream: bool) -> None:
    """The stream flag is read also if the model is not in the body; an invalid body is left to Azure."""
    assert stream == recognised("POST", path, body).stream


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
        (b'{"model": "  "}', "name a model"),
        (b'{"model": "a/../b"}', "name a model"),
        (rb'{"model": "a\\.\\b"}', "name a model"),
        (rb'{"model": "\ud800"}', "characters that are not printable"),
        (rb'{"model": "gpt-4o\r\n"}', "characters that are not printable"),
        (b'{"model": "%b"}' % (b"m" * 1025), "has 1,025 characters, more than 1,024"),
    ],
)
def test_a_body_that_names_no_model_is_refused(body: bytes, says: str) -> None:
    """A body without a valid model is refused with an error that names the fault."""
    with pytest.raises(BadRequest, match=says):
        recognise("POST", CHAT, JSON, body)


@pytest.mark.parametrize(
    ("content_type", "form"),
    [
        ("multipart/form-data; boundary=b", FORM.removesuffix(b"--b--\r\n") + FORM.replace(b"whisper-1", b"other-1")),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=a; name=model\r\n\r\nx\r\n" + FORM),
        ("multipart/form-data; boundary=b; boundary=c", FORM),
    ],
    ids=["two models", "two names", "two boundaries"],
)
def test_a_form_with_several_models_is_refused(content_type: str, form: bytes) -> None:
    """Azure could use another model than the one that was checked, counted and mapped."""
    with pytest.raises(BadRequest, match="must have one `model`"):
        recognise("POST", "/v1/audio/transcriptions", {"content-type": content_type}, form)


def test_the_longest_model() -> None:
    """A model of 1,024 characters is accepted."""
    call = recognise("POST", CHAT, JSON, b'{"model": "%b"}' % (b"m" * 1024))
    assert call
    assert "m" * 1024 == call.model


def test_a_body_whose_type_is_json_must_be_json() -> None:
    """A body with a JSON content type, in any letter case, must be JSON, with or without a required model."""
    with pytest.raises(BadRequest, match="not valid JSON"):
        recognise("POST", "/v1/responses", {"content-type": "APPLICATION/JSON"}, b"{")


@pytest.mark.parametrize("path", ["/v1/engines/%2E%2E/embeddings", "/openai/deployments/%2e%2e/chat/completions"])
def test_a_deployment_cannot_change_the_path(path: str) -> None:
    """A deployment that consists of dots is refused in every spelling, because it would change the path."""
    with pytest.raises(BadRequest, match="segment of dots"):
        recognise("POST", path, JSON, b"{}")


def test_a_compressed_body_is_refused() -> None:
    """A compressed body is refused here: Azure accepts none, and decompression has to be limited."""
    with pytest.raises(BadRequest, match="gzip"):
        recognise("POST", CHAT, {"content-encoding": "gzip"}, b"\x1f\x8b")


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/nothing/here", "/v1", "/openai"])
def test_a_path_outside_the_api(path: str) -> None:
    """A path outside the API is not recognised."""
    assert recognise("GET", path, {}) is None


def test_an_operation_has_a_name() -> None:
    """An operation's name for messages has the method and the path with /v1."""
    assert "DELETE /v1/nothing/here" == recognised("DELETE", "/v1/nothing/here").operation


@pytest.mark.parametrize(
    ("method", "path", "kind", "on"),
    [
        ("POST", "/v1/files", "multipart/form-data; boundary=b", True),
        ("POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=b", True),
        ("POST", "/openai/deployments/d/audio/transcriptions", "Multipart/Form-Data; boundary=b", True),
        ("PUT", "/v1/anything/new", "application/octet-stream", True),
        ("PUT", "/v1/anything/new", "audio/wav", True),
        ("POST", "/v1/responses", "application/json", False),
        ("POST", "/v1/responses", "Application/JSON; charset=utf-8", False),
        ("POST", "/v1/responses", "application/x-www-form-urlencoded", False),
        ("POST", "/v1/responses", "text/plain;charset=UTF-8", False),
        ("POST", "/v1/responses", "", False),
        ("POST", "/v1/chat/completions", "", False),
        ("POST", "/v1/moderations", "multipart/form-data; boundary=b", False),
    ],
)
def test_goes_on(method: str, path: str, kind: str, on: bool) -> None:
    """A large body can be forwarded before it is complete, unless JSON in it names the model or the proxy answers."""
    assert on == may_stream_upload(method, path, {"content-type": kind})


@pytest.mark.parametrize(
    ("method", "path", "reaches"),
    [
        ("POST", "/v1/responses", True),
        ("POST", "/chat/completions", True),
        ("GET", "/v1/files", True),
        ("WS", "/v1/realtime", True),
        ("POST", "/openai/deployments/d/embeddings", True),
        ("POST", "/v1/nothing/known", True),
        ("POST", "/nothing/known", False),
        ("OPTIONS", "/v1/responses", False),
        ("GET", "/v1/models", False),
        ("POST", "/v1/edits", False),
        ("GET", "/", False),
        ("GET", "/openai", False),
    ],
)
def test_reaches_azure(method: str, path: str, reaches: bool) -> None:
    """The proxy itself answers preflights, health checks, unknown paths and unsupported operations."""
    assert reaches == reaches_azure(method, path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b', "stream": true, "stream_options": {"include_usage": true}', True),
        (b', "stream": true, "stream_options": {"include_usage": false}', False),
        (b', "stream": true', False),
        (b', "stream_options": {"include_usage": true}', False),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/openai/deployments/d/chat/completions"])
def test_whether_a_client_asks_for_the_usage(path: str, options: bytes, expected: bool) -> None:
    """The usage of a stream is requested by its options, in a body of any size."""
    body = b'{"model": "m"%b}' % options
    assert expected == recognised("POST", path, body).asks_usage
    large = LargeBody(body, json_scan.outline(body, every=True))
    assert expected == getattr(recognise("POST", path, JSON, body, large=large), "asks_usage", None)


_ASKED = (
    b'{"model":"m","prompt_cache_key":"k","previous_response_id":"r","service_tier":"flex","reasoning":{"effort":"low"},"background":true}'
)
_DETAILS = Details("k", "r", "flex", "low", background=True)


@pytest.mark.parametrize(
    ("path", "body", "details"),
    [
        ("/v1/responses", _ASKED, _DETAILS),
        (CHAT, b'{"model":"m","reasoning_effort":"high","stream":true}', Details(reasoning_effort="high")),
        (CHAT, b'{"model":"m","reasoning":"high","service_tier":7,"prompt_cache_key":"","background":1}', Details()),
        (CHAT, b'{"model":"m","service_tier":"%b"}' % (b"x" * 300), Details()),
        ("/openai/deployments/d/chat/completions", b'{"service_tier":"flex"}', Details(service_tier="flex")),
        ("/openai/deployments/d/chat/completions", b'{"service_tier":', Details()),
        ("/openai/deployments/d/audio/transcriptions", b"--form", Details()),
        ("/v1/models", b"", Details()),
    ],
)
def test_details_of_the_body(path: str, body: bytes, details: Details) -> None:
    """They are read if they are needed, each if it is valid, and not otherwise."""
    method = "POST" if body else "GET"
    call = recognise(method, path, JSON, body, details=True)
    without = recognise(method, path, JSON, body)
    assert call
    assert without
    assert (details, None) == (call.details, without.details)


async def test_details_of_a_large_body() -> None:
    """They are found without parsing the body."""
    body = _ASKED.replace(b"{", b'{"input":"' + b"x" * json_scan.LARGE + b'",', 1)
    large = await large_bodies.read(json_scan.Turns(), body, "model", "stream")
    call = recognise("POST", "/v1/responses", JSON, body, large=large, details=True)
    assert call
    assert _DETAILS == call.details


@pytest.mark.parametrize(
    "method, path, found",
    [
        ("POST", "/v1/chat/completions", b"prompt\0k"),
        ("POST", "/v1/completions", b"prompt\0k"),
        ("POST", "/v1/responses", b"prompt\0k"),
        ("POST", "/v1/engines/m/chat/completions", b"prompt\0k"),
        ("POST", "/openai/deployments/d/chat/completions", b"prompt\0k"),
        ("WS", "/v1/responses", b"session_id\0i"),
        ("WS", "/v1/realtime", None),
        ("POST", "/v1/embeddings", None),
        ("POST", "/v1/images/generations", None),
        ("POST", "/v1/audio/speech", None),
        ("GET", "/v1/responses/resp_123", None),
    ],
)
def test_sessions(method: str, path: str, found: bytes | None) -> None:
    """The session is identified for operations whose prompts Azure caches, on request only."""
    headers = {"content-type": "application/json"}
    body = b"" if method in ("WS", "GET") else b'{"model":"m","prompt_cache_key":"k"}'
    call = recognise(method, path, headers, body, wanted=Wanted(((b"session_id", b"i"),)))
    assert call
    assert found == call.session
    call = recognise(method, path, headers, body, wanted=Wanted(((b"session_id", b"i"),), sessions=False))
    assert call
    assert call.session is None
    call = recognise(method, path, headers, body)
    assert call
    assert (None, None) == (call.session, call.items)


def test_items() -> None:
    """The items of earlier responses are found in the input of a Responses request."""
    body = b'{"model":"m","input":[{"type":"item_reference","id":"rs_1"}]}'
    call = recognise("POST", "/v1/responses", {}, body, wanted=Wanted((), sessions=False))
    assert call
    assert (Item(0, "reference", "rs_1"),) == call.items
    call = recognise("POST", "/v1/chat/completions", {}, b'{"model":"m"}', wanted=Wanted(()))
    assert call
    assert call.items is None


def test_naming() -> None:
    """A call with another model is the same call otherwise."""
    call = recognise("POST", "/openai/deployments/a/chat/completions", {}, b"{}", details=True)
    assert call
    call = dataclasses.replace(call, beta=True, session=b"s", tier="flex", items=(Item(0, "whole"),))
    assert dataclasses.replace(call, model="m", stream=True, asks_usage=True, details=None) == call.naming(
        "m", stream=True, asks_usage=True, details=None, session=b"s", tier="flex", items=(Item(0, "whole"),)
    )
    assert all(getattr(call, field.name) for field in dataclasses.fields(call) if field.name not in ("stream", "asks_usage", "values"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/openai/deployments/m/chat/completions"])
def test_the_tier(path: str) -> None:
    """A service tier with a price of its own is known; another value is the deployment's own tier."""
    for value, tier in (("flex", "flex"), ("priority", "priority"), ("ultrafast", "ultrafast"), ("auto", ""), ("x", ""), (7, "")):
        body = json.dumps({"model": "m", "service_tier": value}).encode()
        call = recognise("POST", path, {"content-type": "application/json"}, body)
        assert call
        assert tier == call.tier
