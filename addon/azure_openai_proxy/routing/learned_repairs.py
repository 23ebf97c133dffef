"""The repairs that worked, by what Azure rejects them for: a deployment, an operation and an API version."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .repair_changes import Change

__all__ = ["Key", "Learned"]


class Key(NamedTuple):
    """Scope of a learned repair: Azure rejects parameters per deployment, operation and api-version."""

    backend: str
    deployment: str
    operation: str = ""
    version: str = ""  # the client's own form and api-version, where it has one
    scope: bytes = b""  # of the client's own key: behind a gateway it may select another resource


class Learned:
    """LRU map from a `Key` to the repairs that worked."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._known: OrderedDict[Key, tuple[Change, ...]] = OrderedDict()
        self.publish: Callable[[Key], None] | None = None  # gets each key whose repairs changed, for other replicas

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Key) -> tuple[Change, ...]:
        known = self._known.get(key)
        if known is None:
            return ()
        self._known.move_to_end(key)
        return known

    def add(self, key: Key, changes: Iterable[Change]) -> None:
        before = self._known.get(key, ())
        self.learn(key, changes)
        if self.publish is not None and len(self._known.get(key, ())) > len(before):
            self.publish(key)

    def learn(self, key: Key, changes: Iterable[Change]) -> None:
        """Add repairs, also those that another replica knows, without publishing them."""
        kept = dict.fromkeys([*self._known.get(key, ()), *changes])
        if not kept:
            return
        self._known[key] = tuple(kept)[-64:]
        self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def clear(self) -> None:
        self._known.clear()

    def all(self) -> dict[Key, tuple[Change, ...]]:
        return dict(self._known)
