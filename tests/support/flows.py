"""Flows as clients send them, and the hooks of the addon that a request passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mitmproxy import http
from mitmproxy.proxy import mode_specs
from mitmproxy.test import tflow

from azure_openai_proxy.client_leg import interface

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from azure_openai_proxy.addon import AzureOpenAIProxy

__all__ = ["CHAT", "ask", "gateways", "request_with_keys", "somebody_elses", "status"]


CHAT = b'{"model":"gpt-4o"}'


def gateways(method: str = "POST", path: str = "/v1/chat/completions", body: bytes = CHAT, **headers: str) -> http.HTTPFlow:
    request = http.Request.make(method, f"http://localhost:8080{path}", body)
    request.headers.update({"authorization": "Bearer client", **headers})
    flow = tflow.tflow(req=request)
    flow.client_conn.proxy_mode = mode_specs.ProxyMode.parse("regular")
    flow.server_conn.address = None
    return flow


def somebody_elses() -> http.HTTPFlow:
    flow = gateways()
    flow.metadata[interface.ABSOLUTE_FORM] = True
    flow.request.host = "other.example"
    return flow


def ask(addon: AzureOpenAIProxy, flow: http.HTTPFlow) -> http.HTTPFlow:
    if judging := addon.requestheaders(flow):
        cast("Coroutine[None, None, None]", judging).close()  # where it goes is the guard's matter
    addon.request(flow)
    return flow


def request_with_keys(addon: AzureOpenAIProxy, flow: http.HTTPFlow) -> http.Request:
    sent = addon.registry.request_with_keys(flow)
    assert isinstance(sent, http.Request)
    return sent


def status(flow: http.HTTPFlow) -> int:
    assert flow.response
    return flow.response.status_code
