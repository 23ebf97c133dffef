"""The request for Azure, and the next one after a failure."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.errors import BadRequest, Failure
from azure_openai_proxy.routing.decisions import GIVE_UP, Retry
from support.exchanges import answering, asking, chat, exchange, two_backends

if TYPE_CHECKING:
    from mitmproxy import http


def test_a_request_becomes_azures() -> None:
    """Server, path, key and length; the client's own key stays behind."""
    request = asking("POST", "/v1/chat/completions", chat())
    assert exchange(token="configured").request(request) is None
    assert "https://r.openai.azure.com/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21" == request.url
    assert ("configured", "r.openai.azure.com") == (request.headers["api-key"], request.headers["host"])
    assert "authorization" not in request.headers
    assert str(len(chat())) == request.headers["content-length"]


def test_a_chunked_body_gets_a_length() -> None:
    """It was read whole, so its length is known."""
    request = asking("POST", "/v1/chat/completions", chat(), **{"transfer-encoding": "chunked"})
    del request.headers["content-length"]
    exchange().request(request)
    assert (None, str(len(chat()))) == (request.headers.get("transfer-encoding"), request.headers["content-length"])


def test_a_request_without_a_body_gets_none() -> None:
    """A GET with a length would look odd to some."""
    request = asking("GET", "/v1/files")
    exchange().request(request)
    assert "content-length" not in request.headers


def test_a_client_of_azures_keeps_its_deployments() -> None:
    """Unless they are mapped explicitly: the default mapping is for OpenAI's names."""
    path = "/openai/deployments/whisper-1/chat/completions?api-version=2024-06-01"
    request = asking("POST", path, chat())
    exchange().request(request)
    assert path == request.path
    request = asking("POST", path, chat())
    exchange(mapping="whisper-1=w").request(request)
    assert path.replace("whisper-1", "w") == request.path


def test_a_request_that_cannot_be_sent_is_not_azures() -> None:
    """A header that the flow hides is seen at the last check; the answer is the proxy's own."""
    asked = exchange()
    with pytest.raises(BadRequest, match="value contains control"):
        asked.request(asking("GET", "/v1/files", None, **{"ocp-apim-subscription-key": "a\x01b"}))
    assert asked.from_azure is None


def uploading(length: str | None, start: bytes, *, path: str = "/v1/audio/transcriptions") -> http.Request:
    request = asking("POST", path, None, **{"content-type": "multipart/form-data; boundary=b"})
    if length is not None:
        request.headers["content-length"] = length
    asked = exchange(mapping="whisper-1=w")
    asked.settings = replace(asked.settings, backends=(replace(asked.settings.backends[0], apiversion="v1"),))
    assert asked.may_stream_upload(request)
    assert asked.request(request, start) is None
    assert asked.streamed
    return request


FIELD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b\r\n'


@pytest.mark.parametrize(
    ("length", "start", "path", "sent"),
    [
        ("1000", FIELD, "/v1/audio/transcriptions", "992"),
        ("1000", FIELD[:9], "/v1/audio/transcriptions", None),
        ("1000", FIELD, "/v1/files", "1000"),
        (None, FIELD, "/v1/audio/transcriptions", None),
    ],
)
def test_a_body_that_goes_on_has_the_length_that_it_will_have(length: str | None, start: bytes, path: str, sent: str | None) -> None:
    """Or none, if it is unknown."""
    request = uploading(length, start, path=path)
    assert (sent, True) == (request.headers.get("content-length"), bool(request.stream))


def test_a_request_sent_again() -> None:
    """It is the other backend's in every respect, and its answer says so."""
    asked = two_backends()
    request = asking("POST", "/v1/chat/completions", chat(stream=True))
    asked.request(request)
    assert isinstance(asked.next_attempt(request, answering(503, b"")), Retry)
    assert ("second.example", "second-key", "second.example") == (request.host, request.headers["api-key"], request.headers["host"])
    response = answering(200, b"", "text/event-stream")
    peek = asked.hold_mode(response)
    assert isinstance(peek, Peek)
    peek.feed(b'data: {"choices":[{}],"id":"chatcmpl-1"}\n\n')
    asked.response_head(response)
    assert ("second", "2") == (response.headers["x-azure-openai-proxy-backend"], response.headers["x-azure-openai-proxy-attempts"])
    asked.finish()
    asked.broke_off(Failure(502, "upstream_error", "cut"))
    exchange().broke_off(Failure(502, "upstream_error", "cut"))
    assert asked.attempts
    assert ["503", "upstream_error"] == [attempt.cause for attempt in asked.attempts.tried]


def test_a_client_without_a_key_for_the_other() -> None:
    """Then the first one's failure is its answer."""
    asked = two_backends(keyless=True)
    request = asking("POST", "/v1/chat/completions", chat())
    del request.headers["authorization"]
    asked.request(request)
    assert GIVE_UP is asked.next_attempt(request, answering(503, b""))


def test_a_token_of_entra_id() -> None:
    """It goes to Azure and is masked in whatever Azure says."""
    asked = exchange()
    (backend,) = asked.settings.backends
    asked.settings = replace(asked.settings, backends=(replace(backend, entra="cli"),))
    asked.shared.tokens.token = lambda _: "token-of-entra"  # type: ignore[method-assign, assignment]
    request = asking("POST", "/v1/chat/completions", chat())
    asked.request(request)
    assert ("Bearer token-of-entra", None) == (request.headers["authorization"], request.headers.get("api-key"))
    assert "token-of-entra" in asked.keys.secrets


def test_another_model_in_the_body_is_mapped() -> None:
    """The models that a body names beside the request's own have deployments of their own."""
    asked = exchange(mapping="gpt-4o=prod,gpt-4o-transcribe=ears")
    session = {"type": "realtime", "model": "gpt-4o", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
    request = asking("POST", "/v1/realtime/client_secrets", json.dumps({"session": session}).encode())
    asked.request(request)
    assert b'"gpt-4o-transcribe"' not in (request.content or b"")
    assert b'"ears"' in (request.content or b"")
