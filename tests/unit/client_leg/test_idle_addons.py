"""Addons that need not be called. tests/unit/client_leg/test_hook_index.py calls each of them with its option off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mitmproxy import http
from mitmproxy.addons import onboarding, save, tlsconfig, update_alt_svc
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.client_leg.idle_addons import if_needed, is_idle

if TYPE_CHECKING:
    from pathlib import Path


def test_is_idle(tmp_path: Path) -> None:
    """An addon whose option is empty; others, and those whose option does not exist, are never idle."""
    with taddons.context() as context:
        addon = save.Save()
        assert not is_idle(addon, context.options)
        context.master.addons.add(addon)
        assert is_idle(addon, context.options)
        context.options.update(save_stream_file=str(tmp_path / "flows"))
        assert [False, False] == [is_idle(addon, context.options), is_idle(object(), context.options)]
        context.options.update(save_stream_file=None)


@pytest.mark.parametrize("host, called", [("mitm.it", True), ("mitm.it.example", False), ("api.openai.com", False)])
def test_mitmproxys_own_page(host: str, called: bool) -> None:
    """Its addon is called for its own host."""
    with taddons.context(addon := onboarding.Onboarding()):
        flow = tflow.tflow(req=http.Request.make("GET", f"http://{host}/"))
        flow.live = True
        asked: list[object] = []
        if_needed(addon, "request", asked.append)(flow)
        assert [flow] * called == asked


def test_other_hooks() -> None:
    """They are called as they are."""
    assert print is if_needed(object(), "request", print)
    assert print is if_needed(onboarding.Onboarding(), "response", print)


@pytest.mark.parametrize(
    "path, called",
    [("/v1/chat/completions", False), ("/openai/v1/files", False), ("/", True), ("/mitmproxy-1.crl", True), ("/v1/1.crl", True)],
)
def test_revoked_certificates(path: str, called: bool) -> None:
    """The addon that has a list of them is called for every path that may be its own."""
    flow, asked = tflow.tflow(req=http.Request.make("GET", f"http://localhost{path}")), list[object]()
    if_needed(tlsconfig.TlsConfig(), "request", asked.append)(flow)
    assert [flow] * called == asked


@pytest.mark.parametrize("name", ["alt-svc", "Alt-Svc", "date"])
def test_other_servers(name: str) -> None:
    """The addon that rewrites the header is called for responses that have it."""
    flow, asked = tflow.tflow(resp=http.Response.make(200, b"", {name: 'h3=":443"'})), list[object]()
    if_needed(update_alt_svc.UpdateAltSvc(), "responseheaders", asked.append)(flow)
    assert [flow] * (name != "date") == asked
