"""Addons that need not be called. tests/unit/client_leg/test_hook_index.py calls each of them with its option off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mitmproxy import http
from mitmproxy.addons import onboarding, save
from mitmproxy.test import taddons, tflow

from azure_openai_proxy.client_leg.idle_addons import is_idle, unless_foreign

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
        unless_foreign(addon, asked.append)(flow)
        assert [flow] * called == asked


def test_other_hooks() -> None:
    """They are called as they are."""
    assert print is unless_foreign(object(), print)
