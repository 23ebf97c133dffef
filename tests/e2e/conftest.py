"""Every test here runs a real mitmdump; the marks say what else it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MARKS = {
    "browser": (
        "test_browser.py",
        "test_browser_origins.py",
        "test_inspector_actions.py",
        "test_inspector_browser.py",
        "test_mitmweb_browser.py",
    ),
    "root": ("test_image.py", "test_ways_network.py"),
    "slow": ("test_accounts.py", "test_bench.py", "test_image.py", "test_large_bodies.py", "test_memory.py", "test_surface.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)
            for mark, files in MARKS.items():
                if item.path.name in files:
                    item.add_marker(getattr(pytest.mark, mark))


@pytest.fixture(scope="session")
def _one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA that has issued no certificate of a test."""
    from azure_simulator import tls

    ca, _ = tls.make(tmp_path_factory.mktemp("unused"), ["unused.invalid"])
    return ca


@pytest.fixture(autouse=True)
def _cheap_clients(_one_certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let httpx load one CA for each client, not all of certifi's, which takes 40 ms. Only in this process: the proxy is not affected."""
    import certifi

    monkeypatch.setattr(certifi, "where", lambda: str(_one_certificate))
