"""Times for tests with a real server."""

from __future__ import annotations

import pytest

from azure_openai_proxy.accounting.shared import deadlines, link


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how fast the machine is."""
    monkeypatch.setattr(deadlines, "REPLY_TIMEOUT", 20.0)
    monkeypatch.setattr(link, "REPLY_TIMEOUT", 20.0)
    monkeypatch.setattr(link, "CONNECT_TIMEOUT", 20.0)
    monkeypatch.setattr(link, "TICK_INTERVAL", 0.02)
    monkeypatch.setattr(link, "RECONNECT_DELAYS", (0.02,))
