"""A working directory and a mitmproxy without servers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

from support.configuration import Mitmproxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # raised by libraries of mitmproxy's addons
    from mitmproxy.test import taddons


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a directory for mitmproxy's configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    return tmp_path


@pytest.fixture
def mitmproxy() -> Iterator[Mitmproxy]:
    with taddons.context(loadcore=False) as context:
        yield Mitmproxy(context)
