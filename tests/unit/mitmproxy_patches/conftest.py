"""A proxy for the tests of a module, with and without the fast path."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest
from mitmproxy import certs
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client, ConnectionState
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context

from azure_openai_proxy.mitmproxy_patches import install
from support.patched_proxy import HttpPolicy, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module", autouse=True)
def _frozen(frozen: None) -> None:
    """Each proxy ends with a complete collection."""


@pytest.fixture(scope="session", autouse=True)
def _key_read_once() -> Iterator[None]:
    """To read the key of mitmproxy's CA takes 40 ms, because it is checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certs, "load_pem_private_key", functools.cache(certs.load_pem_private_key))
        yield


@pytest.fixture(scope="module")
def shared(confdir: Path) -> Iterator[Proxy]:
    with Proxy(confdir, HttpPolicy()) as proxy:
        yield proxy


@pytest.fixture(params=[True, False], ids=["shortcuts", "no shortcuts"])
def proxy(shared: Proxy, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    shared.policy.hooks.clear()
    shared.policy.requests.clear()
    shared.policy.fast_path = request.param
    install.set_fast_path(shared._master, on=request.param)
    yield shared
    install.set_fast_path(shared._master, on=False)


@pytest.fixture
def context() -> Context:
    """That of a client that is connected."""
    options = Options()
    Proxyserver().load(options)  # its options
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0, state=ConnectionState.OPEN)
    return Context(client, options)
