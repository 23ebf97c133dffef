"""Where a request goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from azure_openai_proxy.api.backend import Backend, parse_endpoint
from azure_openai_proxy.gateway.ingress import Upstream
from support.exchanges import asking, chat, exchange


@pytest.mark.parametrize(
    ("version", "authority", "sent"), [("HTTP/2.0", "", "azure.example"), ("HTTP/1.1", "api.openai.com", ""), ("HTTP/1.1", "", "")]
)
@pytest.mark.parametrize("mode", ["azure", "openai"])
def test_azure_gets_a_host_and_no_whole_url(version: str, authority: str, sent: str, mode: Literal["azure", "openai"]) -> None:
    """An HTTP/2 client may send no authority, and one in a tunnel the whole URL or no Host."""
    asked = exchange(mode=mode)
    base = parse_endpoint("http://azure.example")[0]
    asked.settings = replace(asked.settings, backends=(Backend(name="b", base=base, apiversion="v1"),), passthrough_endpoint=base)
    request = asking("POST", "/v1/chat/completions", chat())
    request.http_version, request.authority = version, authority
    request.headers.pop("host", None)
    if mode == "azure":
        asked.request(request)
    else:
        asked.forward_unchanged(request)
    assert (sent, None if sent else "azure.example") == (request.authority, request.headers.get("host"))


def test_behind_another_proxy_the_request_is_prepared_for_it() -> None:
    """Once it is known where it goes."""
    asked = exchange()
    asked.upstream = Upstream(connects=False, authorization=b"Basic x")
    asked.settings = replace(asked.settings, backends=(Backend(name="b", base=parse_endpoint("http://azure.example")[0], apiversion="v1"),))
    request = asking("POST", "/v1/chat/completions", chat())
    asked.request(request)
    assert "azure.example" == request.authority
    handed = exchange(mode="openai")
    handed.upstream = Upstream(connects=True, authorization=None)
    handed.forward_unchanged(request)
    assert "" == request.authority
