"""A replayed flow is served like the request of a client of Azure's own API."""

from __future__ import annotations

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Entry, Mapper
from azure_openai_proxy.config import settings
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.inspection import request_replay

SETTINGS = settings.Settings(
    backends=(Backend(name="a", base=Base("https", "front.example", 443, "/apim"), token="k-0123", apiversion="v1"),),
    mapper=Mapper.parse("gpt-4o=prod,prod=other"),
)


def replayed() -> http.HTTPFlow:
    flow = tflow.tflow(req=http.Request.make("POST", "https://front.example/apim/openai/v1/x", b"", http.Headers(api_key="[key]")))
    flow.is_replay = "request"
    flow.metadata = {"azure_openai_deployment": "prod"}
    return flow


def test_only_replayed_azure_requests_count() -> None:
    """A flow counts only if it was sent to Azure and is being replayed."""
    ours, live, foreign = replayed(), replayed(), replayed()
    live.is_replay = None
    foreign.metadata = {}
    assert [True, False, False] == [request_replay.is_ours(flow) for flow in (ours, live, foreign)]


def test_its_masks_and_its_prefix_go() -> None:
    """Key masks and the backend's path prefix are removed, and a path without the prefix is unchanged."""
    flow = replayed()
    settings = request_replay.prepare(flow, SETTINGS)
    assert ("/openai/v1/x", False, "prod") == (flow.request.path, "api-key" in flow.request.headers, settings.mapper.configured("prod"))
    other = replayed()
    request_replay.prepare(other, Settings())
    assert "/apim/openai/v1/x" == other.request.path


def test_another_deployment() -> None:
    """For a resend every model is mapped to the chosen deployment."""
    flow = replayed()
    flow.metadata[request_replay.RESEND] = "new"
    assert (Entry("*", "new"),) == request_replay.prepare(flow, SETTINGS).mapper.entries


@pytest.mark.parametrize("deployment", ["new", None])
def test_errors_list_the_configured_models(deployment: str | None) -> None:
    """The chosen deployment is not one of them."""
    flow = replayed()
    flow.metadata[request_replay.RESEND] = deployment
    assert ["gpt-4o", "prod"] == request_replay.prepare(flow, SETTINGS).listed.names()
