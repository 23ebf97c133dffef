"""Check that private parts of mitmproxy, h11 and asyncio are imported in `mitmproxy_patches/` only.

`mitmproxy.proxy.layers` counts as private: its modules have no documented API. ruff's SLF001 reports private attributes.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).resolve().parents[1] / "addon" / "azure_openai_proxy"
PATCHES = "mitmproxy_patches"
GUARDED = ("asyncio", "h11", "mitmproxy")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each imported name with its line, wherever in the module it is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def is_private(name: str) -> bool:
    top, *parts = name.split(".")
    private = any(part.startswith("_") and not part.startswith("__") for part in parts)
    return top in GUARDED and (private or name.startswith("mitmproxy.proxy.layers"))


def violations(package: Path = PACKAGE) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside.parts[0] != PATCHES:
            names = imported(ast.parse(path.read_text(encoding="utf-8")))
            found += [f"{inside}:{line}: {name} is private: use it in {PATCHES}/ only" for line, name in names if is_private(name)]
    return found


if __name__ == "__main__":
    lines = violations()
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(bool(lines))
