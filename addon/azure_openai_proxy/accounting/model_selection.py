"""`model_selection_details` of a response of Azure's model router: which models it tried, and why. A bounded copy for usage records."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MEMBER", "bounded", "shown"]

MEMBER = "model_selection_details"
DEEPEST, MOST, LONGEST = 8, 16, 256
"""Levels, members of a level, and characters of a text."""
LARGEST = 200
"""Values in all."""
_NAME = re.compile(r"[A-Za-z_0-9]{1,64}")


def bounded(value: object) -> Mapping[str, Any] | None:
    """Return a copy of an untrusted value without long texts and deep levels; None if it is not an object."""
    left = [LARGEST]

    def copy(value: object, depth: int) -> Any:
        left[0] -= 1
        if isinstance(value, str):
            return value[:LONGEST] if value.isprintable() else None
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 53):
            return value
        if depth >= DEEPEST:
            return None
        if isinstance(value, dict):
            names = [name for name in list(value)[:MOST] if _NAME.fullmatch(name)]
            return {name: copy(value[name], depth + 1) for name in names if left[0] > 0}
        return [copy(item, depth + 1) for item in value[:MOST] if left[0] > 0] if isinstance(value, list) else None

    return copy(value, 0) if isinstance(value, dict) and value else None


def shown(value: Any, text: Callable[[str], str]) -> Any:
    """Return the value with each text as `text` shows it."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {name: shown(item, text) for name, item in value.items()}
    return [shown(item, text) for item in value] if isinstance(value, list) else value
