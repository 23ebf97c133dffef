"""A mapping of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Lru"]


class Lru[K, V]:
    """A mapping of bounded size, which drops the entry that was used least recently."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def get(self, key: K, default: V) -> V:
        if key not in self._values:
            return default
        self._values.move_to_end(key)
        return self._values[key]

    def add(self, key: K, value: V) -> bool:
        """Set the value. Return whether the key is new."""
        new = key not in self._values
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
        return new
