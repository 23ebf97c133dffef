"""What the fast path does to objects shared by all connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.net.http import url
from mitmproxy.test import taddons, tutils

from azure_openai_proxy.mitmproxy_patches import fastpath

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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


STOCK = url.parse_authority
HOSTS = st.sampled_from(["localhost", "127.0.0.1", "[::1]", "münchen.example", "a b", "", "x" * 300, "api.openai.com"])
PORTS = st.sampled_from(["", ":443", ":0", ":99999", ":x"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def remembering() -> AsyncIterator[None]:
    with taddons.context() as context:
        fastpath.enable(context.master, on=True)
        yield
        fastpath.enable(context.master, on=False)
        assert STOCK is url.parse_authority


def parsed(parse: Any, authority: str | bytes, *, check: bool) -> object:
    try:
        return parse(authority, check=check)
    except ValueError:
        return ValueError


@given(host=HOSTS | st.text(), port=PORTS, check=st.booleans(), raw=st.booleans())
def test_authorities(remembering: None, host: str, port: str, check: bool, raw: bool) -> None:
    """Every authority is parsed, or refused, as by mitmproxy, the second time too."""
    authority = (host + port).encode("utf-8", "surrogateescape") if raw else host + port
    for _ in range(2):
        assert parsed(STOCK, authority, check=check) == parsed(url.parse_authority, authority, check=check)


def test_long_ones_are_not_remembered(remembering: None) -> None:
    """A client's text takes a bounded part of the memory."""
    before = fastpath._remembered.cache_info().currsize
    assert ("x" * 200 + "." + "y" * 60, None) == url.parse_authority("x" * 200 + "." + "y" * 60, check=False)
    assert before == fastpath._remembered.cache_info().currsize
