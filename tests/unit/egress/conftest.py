"""Fast garbage collections."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _frozen(frozen: None) -> None:
    """Each test ends with a complete collection."""
