"""The difference of two bodies as one replaced range, so that a flow need not contain both bodies."""

from __future__ import annotations

from typing import NamedTuple

from azure_openai_proxy.formats.sequences import common_prefix, common_suffix

__all__ = ["Splice"]


class Splice(NamedTuple):
    """The difference of two bodies that are equal except for one range: its position and its old bytes."""

    start: int
    tail: int  # equal bytes at the end
    old: bytes

    @classmethod
    def between(cls, old: bytes, new: bytes) -> Splice | None:
        """The difference of two bodies; None if they are equal."""
        if old == new:
            return None
        start = common_prefix(old, new)
        tail = common_suffix(old, new, min(len(old), len(new)) - start)
        return cls(start, tail, old[start : len(old) - tail])

    def undo(self, new: bytes) -> bytes:
        """Restore the old body. If the user has edited `new` since, the result is an approximation."""
        return new[: self.start] + self.old + new[max(self.start, len(new) - self.tail) :]
