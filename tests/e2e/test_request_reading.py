"""How requests are read, on the wire: the model in a body of any content type, in a path, and below a client's base URL."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies

MAPPED = "gpt-4o=gpt-4.1"
TYPES = [
    "application/x-www-form-urlencoded",
    "text/plain;charset=UTF-8",
    "Application/JSON; Charset=UTF-8",
    "multipart/form-data; boundary=b",
    "",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "path, more", [("/v1/responses", {"input": "hello"}), ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_json_body_is_mapped_whatever_its_type(
    path: str, more: dict[str, object], kind: str, stream: bool, azure: Simulator, proxy: Proxies
) -> None:
    """`curl -d` and a page's fetch() send JSON as a form or as text; a large body is read as a small one is."""
    through = proxy(azure_openai_token=azure.key, azure_openai_apiversion="v1", azure_openai_model_mapper=MAPPED)
    for padding in ("", "x" * (1 << 20)) if "multipart" not in kind else ("",):  # a large form is sent on as it comes
        content = json.dumps({"user": padding, **more, "model": "gpt-4o", "stream": stream})
        headers = {"content-type": kind} if kind else {}
        httpx.post(through.url + path, content=content.encode(), headers=headers)
        assert "gpt-4.1" == json.loads(azure.requests[-1].body)["model"]


@pytest.mark.parametrize(
    "operation, more", [("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}), ("embeddings", {"input": "hi"})]
)
def test_a_legacy_path_with_a_model_in_the_body_sends_one_model(
    operation: str, more: dict[str, object], azure: Simulator, proxy: Proxies
) -> None:
    """The deployment for the model in the path, once: of two members Azure would take the last."""
    through = proxy(azure_openai_token=azure.key, azure_openai_apiversion="v1", azure_openai_model_mapper=MAPPED)
    httpx.post(f"{through.url}/v1/engines/gpt-4o/{operation}", json={"model": "gpt-4o", **more})
    members = json.loads(azure.requests[-1].body, object_pairs_hook=list)
    assert [("model", "gpt-4.1")] == [member for member in members if member[0] == "model"]


@pytest.mark.parametrize(
    "base",
    ["/v1/v1", "/api/v1", "/openai/v1/v1", "/v1/openai/v1", "/v1/chat/completions", "/openai/deployments/gpt-4o/chat/completions"],
)
@pytest.mark.parametrize("version", ["2024-10-21", "v1"])
def test_a_base_url_with_too_much_in_it_is_served(base: str, version: str, azure: Simulator, proxy: Proxies) -> None:
    """A prefix that the client adds once more, or an operation in it, leads to the operation at its end."""
    through = proxy(azure_openai_token=azure.key, azure_openai_apiversion=version, azure_openai_model_mapper=MAPPED)
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
    assert 200 == httpx.post(f"{through.url}{base}/chat/completions", json=body).status_code


def test_an_id_with_a_slash_works_as_its_encoded_form(azure: Simulator, proxy: Proxies) -> None:
    """Some clients do not encode the model's name in a path."""
    through = proxy(azure_openai_token=azure.key, azure_openai_model_mapper="org/name=gpt-4.1")
    answers = [httpx.get(f"{through.url}/v1/models/{name}") for name in ("org/name", "org%2Fname")]
    assert [(200, "org/name")] * 2 == [(answer.status_code, answer.json()["id"]) for answer in answers]


def test_a_path_that_azure_does_not_have_names_the_base_url(azure: Simulator, proxy: Proxies) -> None:
    """The error suggests checking the client's base URL."""
    answer = httpx.get(f"{proxy(azure_openai_token=azure.key).url}/v1/nothing/here")
    assert 404 == answer.status_code
    assert "the client's base URL" in answer.json()["error"]["message"]
