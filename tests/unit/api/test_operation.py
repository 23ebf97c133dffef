"""Recognition of a client's request."""

import pytest

from azure_openai_proxy.api.operation import Call, may_stream_upload, reaches_azure, recognise
from azure_openai_proxy.errors import BadRequest

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
    ],
)
def test_a_body_that_names_no_model_is_refused(body: bytes, says: str) -> None:
    """A body without a valid model is refused with an error that names the fault."""
    with pytest.raises(BadRequest, match=says):
        recognise("POST", CHAT, JSON, body)


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
