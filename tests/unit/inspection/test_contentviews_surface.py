"""The content views of every request and response of the simulator, called through mitmproxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from mitmproxy import contentviews
from mitmproxy import http as proxied
from mitmproxy.contentviews import Contentview, Metadata
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.inspection import contentviews as contentviews_module
from azure_simulator import Simulator
from azure_simulator.operations import OPERATIONS
from unit.api.test_azure_surface import ask, case, place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from azure_simulator.calls import Operation

# Texts that the views of a request and its response must show. For all other operations the views only must not be empty.
LOOKED_FOR = {
    "POST chat/completions": ("hi", "You said: hi"),
    "POST completions": ("hi", "You said: hi"),
    "POST responses": ("hi", "You said: hi"),
    "POST embeddings": ("hi", "embedding"),
    "POST audio/transcriptions": ("hello.wav", ""),
    "POST audio/translations": ("hello.wav", ""),
    "POST images/generations": ("a corgi", "image"),
    "POST images/edits": ("a corgi", "image"),
    "POST files": ("hello.wav", "file"),
    "POST videos": ("a corgi", "video"),
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        Simulator() as azure,
        httpx.Client(base_url=f"{azure.http_url}/openai", headers={"api-key": azure.key}, trust_env=False, timeout=10) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with taddons.context() as context:
        contentviews_module.register(context.options)
        yield


def seen(row: Operation, client: httpx.Client) -> proxied.HTTPFlow:
    """An OpenAI flow with its request and response."""
    form = "v1" if row.api.v1 else max(row.api.versions)
    answer = ask(client, row, place(row, form))
    asked = answer.request
    flow = tflow.tflow(
        req=proxied.Request.make(asked.method, str(asked.url), asked.read(), proxied.Headers(asked.headers.raw)),
        resp=proxied.Response.make(answer.status_code, answer.content, {"content-type": answer.headers.get("content-type", "")}),
    )
    flow.metadata = {"azure_openai_operation": case(row)}
    return flow


@pytest.mark.parametrize("row", OPERATIONS, ids=case)
def test_every_kind_is_shown(row: Operation, client: httpx.Client) -> None:
    """No view fails or is empty for a non-empty body, and the default view shows the expected texts."""
    flow = seen(row, client)
    assert flow.response
    ours: tuple[tuple[proxied.Message, Contentview], ...] = (
        (flow.request, contentviews_module.ConversationView()),
        (flow.response, contentviews_module.ResponseView()),
    )
    looked_for = LOOKED_FOR.get(case(row), ("", ""))
    for (message, view), words in zip(ours, looked_for, strict=True):
        body = message.content or b""
        metadata = Metadata(flow=flow, http_message=message)
        chosen = view.render_priority(body, metadata) > 1
        text = view.prettify(body, metadata)
        shown = contentviews.prettify_message(message, flow)
        assert (bool(body), True) == (bool(text.strip()) and bool(body), words in text), text
        assert not chosen or (view.name, text) == (shown.view_name, shown.text)
        assert not words or chosen
