"""Marks of tests that depend on more than this project."""

from __future__ import annotations

import pytest

__all__ = ["BROWSER", "KERNEL", "THREADS", "second_try"]

BROWSER = "Chromium cancels requests when a network interface appears or disappears, as those of other tests do"
THREADS = "threads of the WebSocket client share one TLS object, which Python 3.13.0 does not always survive"
KERNEL = "the kernel hands over connections a moment after it was told to"


def second_try(reason: str) -> pytest.MarkDecorator:
    """Run the test once more if it fails. A fault of this project fails twice; `reason` says what else may fail."""
    assert reason
    return pytest.mark.flaky(reruns=1)
