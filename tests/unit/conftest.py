"""The addon in a mitmproxy without servers.

The process that distributes the tests imports this file too, so slow imports are in the fixtures.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from azure_openai_proxy.addon import AzureOpenAIProxy


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Of a test in a process of xdist, report the call and failures only: messages take a third of the time of a short test."""
    if not hasattr(item.config, "workerinput") or item.get_closest_marker("flaky"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


@pytest.fixture(scope="module")
def frozen() -> None:
    """Complete collections of garbage are fast: they need not look at what the tests of other modules have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory without a configuration file."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture
async def addon(empty: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AzureOpenAIProxy]:
    """The addon, loaded with an endpoint, in a mitmproxy without clients."""
    from mitmproxy import ctx
    from mitmproxy.addons.proxyauth import ProxyAuth
    from mitmproxy.addons.proxyserver import Proxyserver
    from mitmproxy.addons.tlsconfig import TlsConfig
    from mitmproxy.addons.upstream_auth import UpstreamAuth
    from mitmproxy.test import taddons

    from azure_openai_proxy.addon import AzureOpenAIProxy
    from azure_openai_proxy.config import runtime
    from azure_openai_proxy.egress.resolver import Resolver

    monkeypatch.chdir(empty)  # this repository has a configuration file, of comments alone, that takes long to parse
    addon = AzureOpenAIProxy(runtime.Runtime(environ={"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}, arguments=[]))
    addon.registry.pools.resolver = Resolver(lookup=lambda *_: [])
    with taddons.context(Proxyserver(), ProxyAuth(), UpstreamAuth(), TlsConfig(), addon):
        addon.configure(set(ctx.options.keys()))
        addon.started.set()
        yield addon
