"""mitmproxy's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.config.confdir import check_confdir
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("way", ["new", "unwritable", "there", "unreadable"])
def test_a_folder_for_the_ca(way: str, tmp_path: Path) -> None:
    """It must be one that can be written, unless a CA is there that can be read."""
    if way == "there":
        (tmp_path / "mitmproxy-ca.pem").touch()
    if way == "unreadable":
        (tmp_path / "mitmproxy-ca.pem").mkdir()
    (tmp_path / "file").touch()
    confdir = {"new": tmp_path / "a" / "b", "unwritable": tmp_path / "file" / "x"}.get(way, tmp_path)
    if way.startswith("un"):
        with pytest.raises(SettingsError, match="confdir"):
            check_confdir(str(confdir))
    else:
        check_confdir(str(confdir))
        assert confdir.is_dir()
