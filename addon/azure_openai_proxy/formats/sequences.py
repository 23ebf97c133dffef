"""Equal beginnings and ends of two sequences, found by binary search, so that sequences of any length need few comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["common_prefix", "common_suffix"]


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return the number of equal items at the start."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_suffix(one: Sequence[Any], other: Sequence[Any], most: int) -> int:
    """Return the number of equal items at the end, at most `most`: those that are not in the common prefix."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle - 1
    return low
