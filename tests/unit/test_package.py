"""The package that is built and installed from this repository."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

import azure_openai_proxy
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_the_wheel(tmp_path: Path) -> None:
    """The wheel has the script, every module, the marker of a typed package, and the command."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (path,) = tmp_path.glob("*.whl")
    with ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (entry_points,) = (wheel.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    modules = {str(file.relative_to(ROOT / "addon")) for file in (ROOT / "addon").rglob("*.py")}
    assert {"azure_openai.py", "azure_openai_proxy/py.typed", *modules} <= names
    assert "azure-openai-proxy = azure_openai_proxy.cli.command:main" in entry_points


@pytest.mark.slow
def test_the_command_is_installed_in_the_clone() -> None:
    """`make` installs the package editable: the command in the environment runs this repository's code, without an endpoint."""
    command = [f"{sys.prefix}/bin/azure-openai-proxy", "doctor", "--help"]  # faster than the help of all, which imports mitmproxy
    assert "azure-openai-proxy doctor" in subprocess.run(command, check=False, capture_output=True, text=True).stdout
    assert (ROOT / "addon" / "azure_openai_proxy" / "__init__.py").samefile(azure_openai_proxy.__file__)


def test_the_fast_path_is_reached_by_one_call() -> None:
    """No module imports the fast path; `install` loads it by its name, and `compat` checks it. So it can be deleted alone."""
    package = ROOT / "addon" / "azure_openai_proxy"
    naming: list[str] = []
    for path in sorted(package.rglob("*.py")):
        source = path.read_text()
        if "fastpath" in path.parts or "fastpath" not in source:
            continue
        nodes = list(ast.walk(ast.parse(source)))
        docstrings = {
            ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        imported += [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
        assert [] == [name for name in imported if name and "fastpath" in name]
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)} - docstrings
        naming += [path.stem for text in texts if "fastpath" in text]
    assert ["compat", "install"] == naming
