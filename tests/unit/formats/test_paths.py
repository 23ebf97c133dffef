"""A home directory is found as in a shell, and a missing one is no exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from azure_openai_proxy.formats.paths import expanded


@pytest.mark.parametrize(
    ("path", "found"),
    [("~/key", "{home}/key"), ("~nobody-has-this-name/key", "~nobody-has-this-name/key"), ("a~/key", "a~/key"), (Path("/key"), "/key")],
)
def test_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str | Path, found: str) -> None:
    """`~` is the user's home directory; a user who does not exist leaves the path as it is."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert Path(found.format(home=tmp_path)) == expanded(path)
