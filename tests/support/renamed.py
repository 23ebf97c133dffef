"""A copy of a package in which an attribute has another name, as a new version of it might."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

__all__ = ["copy_package"]

_ALSO_WORDS = frozenset({"buf", "window"})
"""Attributes whose names are also variables or modules: only `.name` and members of a class are renamed."""


def copy_package(name: str, attribute: str, folder: Path) -> int:
    """A copy of the package in which the attribute has another name; how many times it had the old one."""
    spec = find_spec(name)
    assert spec
    assert spec.origin
    shutil.copytree(Path(spec.origin).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__", "web"))
    use = re.compile(rf"(?m)((?:\.|^    |def )){attribute}\b" if attribute in _ALSO_WORDS else rf"(\b){attribute}\b")
    total = 0
    for source in (folder / name).rglob("*.py"):
        text, count = use.subn(rf"\1renamed_{attribute}", source.read_text())
        if count:
            source.write_text(text)
        total += count
    return total
