"""Every test here runs a real mitmdump; the marks say what else it needs."""

from __future__ import annotations

import pytest

MARKS = {
    "browser": ("test_browser.py", "test_browser_origins.py", "test_mitmweb_browser.py"),
    "root": ("test_image.py", "test_ways_network.py"),
    "slow": ("test_bench.py", "test_image.py", "test_large_bodies.py", "test_memory.py", "test_surface.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)
            for mark, files in MARKS.items():
                if item.path.name in files:
                    item.add_marker(getattr(pytest.mark, mark))
