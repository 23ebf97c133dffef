"""The options that change requests and responses, on a real mitmdump."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from support.processes import PATIENCE

if TYPE_CHECKING:
    from azure_simulator import Simulator
    from conftest import Proxies

OLD = "/openai/deployments/gpt-4o/chat/completions?api-version=2023-03-15-preview"
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)


def test_the_resource_s_deployments_are_listed(azure: Simulator, proxy: Proxies) -> None:
    """The list is fetched once, in the background, with the configured key; a client's request for it sends nothing to Azure."""
    through = proxy(azure_openai_token=azure.key, azure_openai_discover_models=True, azure_openai_model_mapper="mine=gpt-4o")
    assert "/openai/deployments?api-version=2023-03-15-preview" == azure.wait_for_request().path
    assert azure.wait_for_request().done.wait(PATIENCE)
    # The answer is on its way: a list that is not there yet has the configured names.
    names: list[str] = []
    while "gpt-4.1" not in names:
        names = [model.id for model in client(through.url, "x").models.list()]
        assert "mine" == names[0]
    assert "gpt-4.1" == client(through.url, "x").models.retrieve("gpt-4.1").id
    assert 1 == len(azure.requests)


def test_a_resource_that_lists_nothing_is_no_matter(azure: Simulator, proxy: Proxies) -> None:
    """One line in the log, and the configured names."""
    through = proxy(azure_openai_token="wrong", azure_openai_discover_models=True, azure_openai_model_mapper="only=gpt-4o")
    assert azure.wait_for_request().done.wait(PATIENCE)

    assert ["only"] == [model.id for model in client(through.url, "x").models.list()]


@pytest.mark.parametrize("replaced, status", [(("retired",), 200), ((), 404)])
def test_a_native_client_s_retired_version(replaced: tuple[str, ...], status: int, azure: Simulator, proxy: Proxies) -> None:
    """It becomes the configured one by the option alone."""
    through = proxy(azure_openai_replace_apiversions=",".join(replaced) or None)
    answer = httpx.post(through.url + OLD, json=CHAT, headers={"api-key": azure.key}, trust_env=False, timeout=PATIENCE)

    assert status == answer.status_code


def test_moderations_by_the_option(azure: Simulator, proxy: Proxies) -> None:
    """In the SDK's own types, without a request to Azure."""
    answer = client(proxy(azure_openai_moderations_unflagged=True).url, "x").moderations.create(input=["a", "b"])

    assert ([False, False], True, []) == ([result.flagged for result in answer.results], "unchecked" in answer.id, azure.requests)


def test_without_the_option_there_are_no_moderations(azure: Simulator, proxy: Proxies) -> None:
    """The client gets that error."""
    with pytest.raises(openai.NotFoundError, match="Azure OpenAI has no POST /v1/moderations"):
        client(proxy().url, "x").moderations.create(input="a")


def test_a_call_s_address_is_the_proxy_s(azure: Simulator, proxy: Proxies) -> None:
    """Realtime answers an SDP with the place of the call; the SDK's client goes on from there."""
    through = proxy(azure_openai_model_mapper="rt=gpt-realtime")
    files = {"sdp": (None, "v=0"), "session": (None, '{"type":"realtime","model":"rt"}')}
    answer = httpx.post(
        f"{through.url}/v1/realtime/calls", files=files, headers={"authorization": f"Bearer {azure.key}"}, trust_env=False, timeout=PATIENCE
    )

    assert answer.is_success
    assert "gpt-realtime" in azure.wait_for_request().body.decode()
    assert answer.headers["location"].removeprefix(through.url).startswith("/v1/realtime/calls/")
