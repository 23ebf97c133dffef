"""Check that private parts of mitmproxy, h11 and asyncio are imported in `mitmproxy_patches/` only.

Also check that a subpackage imports from another one only the modules in its `__all__`.
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
    """Each imported name with its line, including imports inside functions."""
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


def public(subpackage: Path) -> list[str]:
    """The names in its `__all__`."""
    for node in ast.parse((subpackage / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def hidden_imports(package: Path = PACKAGE) -> list[str]:
    """Imports of a module of another subpackage that is not in its `__all__`. Those from the package itself are relative."""
    offered = {path.parent.name: public(path.parent) for path in package.glob("*/__init__.py")}
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            _, *parts = name.split(".") if name.startswith(f"{package.name}.") else [""]
            if len(parts) > 1 and parts[0] in offered and parts[0] != inside.parts[0] and parts[1] not in offered[parts[0]]:
                found.append(f"{inside}:{line}: {parts[0]}.{parts[1]} is not in the __all__ of {parts[0]}")
    return found


def violations(package: Path = PACKAGE) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        if inside.parts[0] != PATCHES:
            names = imported(ast.parse(path.read_text(encoding="utf-8")))
            found += [f"{inside}:{line}: {name} is private: use it in {PATCHES}/ only" for line, name in names if is_private(name)]
    return found


if __name__ == "__main__":
    lines = violations() + hidden_imports()
    print("\n".join(lines), end="\n" if lines else "")
    sys.exit(bool(lines))
