"""The check of files before they are opened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.config import regular_file

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file(tmp_path: Path) -> None:
    """A file is opened, also by a link to it."""
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with regular_file.opened(tmp_path / name) as file:
            assert b"content" == file.read()


def test_a_directory(tmp_path: Path) -> None:
    """A directory has the same message on all systems."""
    with pytest.raises(IsADirectoryError) as raised:
        regular_file.opened(tmp_path)
    assert "it is a directory" == raised.value.strerror


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_pipe(tmp_path: Path) -> None:
    """A pipe is refused before it is opened, which would wait for its writer."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is not a regular file") as raised:
        regular_file.opened(tmp_path / "pipe")
    assert "it is not a regular file" == raised.value.strerror
