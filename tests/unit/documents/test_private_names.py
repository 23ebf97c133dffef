"""The check that keeps private names of mitmproxy in one subpackage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import private_names
import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "line, private",
    [
        ("from mitmproxy.proxy.layers import http", True),
        ("def f():\n    import mitmproxy.proxy.layers.http", True),
        ("from mitmproxy.proxy import layers", True),
        ("from mitmproxy.addons._x import y", True),
        ("from h11._readers import ChunkedReader", True),
        ("import asyncio\nx = asyncio._get_running_loop()", True),
        ("from mitmproxy.proxy import layer", False),
        ("from asyncio import __version__", False),
        ("from ._x import y", False),
    ],
)
def test_a_private_import_is_reported(line: str, private: bool, tmp_path: Path) -> None:
    """A private name is reported with its place in any module but those of `mitmproxy_patches`."""
    for folder in ("egress", "mitmproxy_patches"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text(line)
    assert private == bool(found := private_names.violations(tmp_path))
    assert all(each.startswith("egress/a.py:") for each in found)


@pytest.mark.parametrize(
    "folder, line, hidden",
    [
        ("egress", "from azure_openai_proxy.api.b import x", True),
        ("egress", "from azure_openai_proxy.api import b", True),
        ("egress", "from azure_openai_proxy.api import a", False),
        ("egress", "from azure_openai_proxy.api.a import x", False),
        ("egress", "from azure_openai_proxy.errors import x", False),
        ("api", "from azure_openai_proxy.api.b import x", False),
    ],
)
def test_a_module_outside_all_is_reported(folder: str, line: str, hidden: bool, tmp_path: Path) -> None:
    """A module that its subpackage does not list in `__all__` can be imported within the subpackage only."""
    package = tmp_path / "azure_openai_proxy"
    for name in ("api", "egress"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text('__all__ = ["a"]')
    (package / folder / "c.py").write_text(line)
    assert hidden == bool(private_names.hidden_imports(package))
