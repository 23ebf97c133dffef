"""Responses that the proxy generates itself."""

import json

import pytest
from mitmproxy import http

from azure_openai_proxy.api import local_responses
from azure_openai_proxy.api.local_responses import unflagged_moderation
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.api.operation import recognise
from azure_openai_proxy.errors import BadRequest, NotFound


def asked(path: str, mapping: str = "gpt-4o=prod", method: str = "GET") -> object:
    call = recognise(method, path, {})
    assert call is not None
    response = local_responses.respond(call, Mapper.parse(mapping))
    assert 200 == response.status_code
    return json.loads(response.content or b"")


def test_models_are_the_configured_ones() -> None:
    """The configured models are listed in OpenAI's shape."""
    model = {"id": "gpt-4o", "object": "model", "created": 0, "owned_by": "azure-openai"}
    assert {"object": "list", "data": [model]} == asked("/v1/models")


def test_engines_are_models_in_the_older_shape() -> None:
    """The models are also listed in the shape of the first API."""
    engine = {"id": "gpt-4o", "object": "engine", "created": None, "owner": "azure-openai", "ready": True}
    assert {"object": "list", "data": [engine]} == asked("/v1/engines")
    assert engine == asked("/v1/engines/gpt-4o")


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-2024-08-06", "whisper-1"])
def test_a_model_that_the_mapping_covers(model: str) -> None:
    """A model is found by an entry, by a dated name's entry, and by the defaults."""
    assert {"id": model, "object": "model", "created": 0, "owned_by": "azure-openai"} == asked(f"/v1/models/{model}")


def test_a_listed_name_is_a_model() -> None:
    """The deployment of a catch-all entry is listed and found under its own name."""
    assert {"id": "rest", "object": "model", "created": 0, "owned_by": "azure-openai"} == asked("/v1/models/rest", "gpt*=rest")


def test_an_unknown_model() -> None:
    """The error for an unknown model names the configured ones."""
    with pytest.raises(NotFound, match="Configured models: gpt-4o") as error:
        asked("/v1/models/nothing")
    assert "model_not_found" == error.value.code


@pytest.mark.parametrize(
    ("path", "member"),
    [
        ("/v1/dashboard/billing/subscription", "hard_limit_usd"),
        ("/dashboard/billing/usage", "total_usage"),
        ("/dashboard/billing/credit_grants", "total_granted"),
    ],
)
def test_billing_probes_find_the_members_they_look_for(path: str, member: str) -> None:
    """Billing stubs have the members that web front ends require before they accept a key."""
    answer = asked(path)
    assert isinstance(answer, dict)
    assert 0 == answer[member]


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/v1/organization/users", "no GET /v1/organization/users. Instead: "),
        ("POST", "/v1/moderations", "Azure AI Content Safety"),
        ("POST", "/v1/vaults", "Azure OpenAI has no POST /v1/vaults.$"),
        ("GET", "/v1/dashboard/billing/nothing", "no GET /v1/dashboard/billing/nothing"),
    ],
)
def test_an_unsupported_operation_is_named(method: str, path: str, says: str) -> None:
    """The error for an unsupported operation names it and its alternative, if there is one."""
    with pytest.raises(NotFound, match=says) as error:
        asked(path, method=method)
    assert "unsupported_by_azure" == error.value.code


def test_the_root_and_unknown_paths_are_text() -> None:
    """The root and unknown paths are answered with plain text, for people."""
    assert [200, 404] == [response.status_code for response in (local_responses.welcome(), local_responses.not_found())]
    assert "/v1/models" in (local_responses.welcome().text or "")


def test_a_preflight_allows_the_requested_headers() -> None:
    """A preflight allows every requested header, and access to a private network."""
    request = http.Request.make("OPTIONS", "http://localhost/v1/chat/completions")
    request.headers["access-control-request-method"] = "POST"
    request.headers["access-control-request-headers"] = "authorization, x-stainless-lang"
    request.headers["access-control-request-private-network"] = "true"
    headers = local_responses.preflight(request).headers
    assert "POST" == headers["access-control-allow-methods"]
    assert "authorization, x-stainless-lang" == headers["access-control-allow-headers"]
    assert "true" == headers["access-control-allow-private-network"]
    assert "86400" == headers["access-control-max-age"]


def test_a_plain_options_request_allows_nothing_it_did_not_ask_for() -> None:
    """A plain OPTIONS request allows nothing."""
    headers = local_responses.preflight(http.Request.make("OPTIONS", "http://localhost/")).headers
    assert not [name for name in headers if name.startswith("access-control-allow")]


def test_cors_lets_a_page_read_every_header() -> None:
    """A page may read every header, including Azure's, and existing values of `vary` are kept."""
    response = http.Response.make(200, b"", {"x-request-id": "1", "vary": "accept-encoding", "access-control-allow-origin": "*"})
    local_responses.add_cors(response, "https://page.example")
    assert "https://page.example" == response.headers["access-control-allow-origin"]
    assert "accept-encoding, Origin" == response.headers["vary"]
    assert "x-request-id" in response.headers["access-control-expose-headers"]
    assert "access-control" not in response.headers["access-control-expose-headers"]


def test_without_an_origin_nothing_is_added() -> None:
    """A response without an origin gets no CORS headers."""
    response = http.Response.make(200)
    before = response.headers.fields
    local_responses.add_cors(response, None)
    assert before == response.headers.fields


@pytest.mark.parametrize(
    "given, results",
    [("hello", 1), (["a", "b", "c"], 3), ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], 1)],
)
def test_each_text_has_a_result_that_says_nothing(given: object, results: int) -> None:
    """Each text has an unflagged result in the SDK's type, and the id says that nothing was checked."""
    from openai.types import ModerationCreateResponse  # takes a second

    answer = ModerationCreateResponse.model_validate_json(
        unflagged_moderation(json.dumps({"input": given, "model": "m"}).encode()).content or b""
    )
    assert ([False] * results, "m", True) == ([result.flagged for result in answer.results], answer.model, "unchecked" in answer.id)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"input":""}', b'{"input":[]}', b'{"input":3}'])
def test_without_an_input_there_is_no_result(content: bytes) -> None:
    """A missing input is refused with OpenAI's error."""
    with pytest.raises(BadRequest, match="`input` is required"):
        unflagged_moderation(content)


@pytest.mark.parametrize(
    ("method", "path", "own"),
    [
        ("OPTIONS", "/v1/models", True),
        ("GET", "/healthz", True),
        ("HEAD", "/readyz", True),
        ("GET", "/?a=b", True),
        ("POST", "/", False),
        ("GET", "/v1/models", False),
        ("GET", "/nothing", False),
    ],
)
def test_pages_of_the_proxy(method: str, path: str, own: bool) -> None:
    """Preflights, health checks and the start page are no requests of the API."""
    assert own == local_responses.is_own_page(method, path)
