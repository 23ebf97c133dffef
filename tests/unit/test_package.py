"""What is built and installed from this repository."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING
from zipfile import ZipFile

import azure_openai_proxy
from support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


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


def test_the_command_is_installed_in_the_clone() -> None:
    """`make` installs the package editable: the command in the environment runs this repository's code, without an endpoint."""
    command = [f"{sys.prefix}/bin/azure-openai-proxy", "--help"]
    assert "azure-openai-proxy doctor" in subprocess.run(command, check=False, capture_output=True, text=True).stdout
    assert (ROOT / "addon" / "azure_openai_proxy" / "__init__.py").samefile(azure_openai_proxy.__file__)
