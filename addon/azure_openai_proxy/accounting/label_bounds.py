"""Bounds on the values of metric labels, which clients and upstreams can choose freely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure_openai_proxy.formats import quoting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .metric_names import Label

__all__ = ["OTHER", "LabelBounds", "exceeds"]

OTHER = "other"
LONGEST = 120
FIXED = frozenset({"type", "gen_ai.token.type", "gen_ai.token.modality", "gen_ai.provider.name", "limit"})
"""Labels whose few values are the proxy's own. They are not bounded."""


def exceeds(values: Iterable[object], raw: Iterable[Label]) -> bool:
    """Whether one of the values was replaced by `other`. A backend or a client may have that name itself."""
    return any(value == OTHER != name for value, name in zip(values, raw, strict=True))


class LabelBounds:
    """Admits at most `limit` values of each label; all further ones become `other`.

    A failed call adds values only to the first half, because made-up model names fail: the rest is for names that work. So does a call
    that its client left before the response.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: dict[str, dict[str | int, str]] = {}

    def values(self, labels: Sequence[str], raw: Sequence[Label], *, failed: bool = False) -> tuple[str, ...]:
        """The values to use: short, printable and known; "" for None."""
        return tuple(self._value(label, value, failed=failed) for label, value in zip(labels, raw, strict=True))

    def _value(self, label: str, raw: Label, *, failed: bool) -> str:
        if raw is None or raw == "":
            return ""
        known = self._known.setdefault(label, {})
        value = raw[:LONGEST] if isinstance(raw, str) else raw
        found = known.get(value)
        if found is None:
            most = (self.limit + 1) // 2 if failed else self.limit
            if len(known) >= most and label not in FIXED:
                return OTHER
            found = known[value] = quoting.line(str(value))
        return found
