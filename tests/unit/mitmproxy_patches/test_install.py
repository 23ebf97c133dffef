"""Installing the patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure_openai_proxy.mitmproxy_patches import compat
from support.patched_proxy import HttpPolicy, Proxy

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_another_mitmproxy(confdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a mitmproxy whose internals differ nothing is patched."""
    monkeypatch.setitem(vars(compat.HTTP), "usable", False)
    with Proxy(confdir, HttpPolicy()) as proxy, proxy.dial() as client:
        assert b"<html>" in client.ask(b"GET /echo HTTP/x\r\n\r\n").body
