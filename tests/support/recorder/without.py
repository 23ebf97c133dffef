"""For a mitmdump under test: the modules named by WITHOUT are not installed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_MISSING = tuple(os.environ["WITHOUT"].split(","))


class _Missing:
    """Finds these modules first, and says that they do not exist."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> Any:
        if any(name == missing or name.startswith(f"{missing}.") for missing in _MISSING):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Missing())
