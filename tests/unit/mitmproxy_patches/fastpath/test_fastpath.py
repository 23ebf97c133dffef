"""What the fast path does to objects shared by all connections."""

from __future__ import annotations

from mitmproxy.net.http import url
from mitmproxy.test import taddons

from azure_openai_proxy.client_leg import request_target
from azure_openai_proxy.mitmproxy_patches import fastpath


async def test_authorities() -> None:
    """mitmproxy parses a repeated authority once while the fast path is on."""
    with taddons.context() as context:
        fastpath.enable(context.master, on=True)
        during = url.parse_authority
        fastpath.enable(context.master, on=False)
    assert (request_target.parse_authority, request_target._parse) == (during, url.parse_authority)
