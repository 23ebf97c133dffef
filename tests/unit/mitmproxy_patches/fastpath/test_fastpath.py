"""What the fast path does to objects shared by all connections."""

from __future__ import annotations

import pytest
from mitmproxy.net.http import url
from mitmproxy.test import taddons, tutils

from azure_openai_proxy.client_leg import request_target
from azure_openai_proxy.mitmproxy_patches import fastpath


def test_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are not checked while trusted, and checked again afterwards; under -O there is nothing to leave out."""
    fastpath.trust(on=True)
    tutils.treq(port="a port")
    fastpath.trust(on=False)
    with pytest.raises(TypeError):
        tutils.treq(port="a port")
    monkeypatch.setattr(fastpath, "_check", None)
    fastpath.trust(on=True)
    with pytest.raises(TypeError):
        tutils.treq(port="a port")


async def test_authorities() -> None:
    """mitmproxy parses a repeated authority once while the fast path is on."""
    with taddons.context() as context:
        fastpath.enable(context.master, on=True)
        during = url.parse_authority
        fastpath.enable(context.master, on=False)
    assert (request_target.parse_authority, request_target._parse) == (during, url.parse_authority)
