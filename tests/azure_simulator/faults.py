"""Which requests are to be answered otherwise, and how.

A fault is a function from the answer Azure would give to the one it gives instead. Several apply in the order given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .answers import Answer
from .calls import Call

__all__ = ["Fault", "Faults"]

type Fault = Callable[[Answer, Call], Answer]


@dataclass(slots=True)
class _Rule:
    faults: tuple[Fault, ...]
    when: Callable[[Call], bool] | None
    deployment: str | None
    left: int | None  # None: for ever

    def meets(self, call: Call) -> bool:
        return (self.deployment is None or call.deployment == self.deployment) and (self.when is None or self.when(call))


class Faults:
    """A queue of faults for coming requests, and standing ones. A request met by the queue is spared the standing ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[_Rule] = []
        self._standing: list[_Rule] = []

    def next(self, *faults: Fault, times: int = 1, when: Callable[[Call], bool] | None = None, deployment: str | None = None) -> None:
        """The next request that matches gets these faults (none: a plain answer); `times`: so many."""
        with self._lock:
            self._queue.append(_Rule(faults, when, deployment, times))

    def always(self, *faults: Fault, when: Callable[[Call], bool] | None = None, deployment: str | None = None) -> None:
        """Every request that matches gets these faults, after those of earlier calls."""
        with self._lock:
            self._standing.append(_Rule(faults, when, deployment, None))

    def clear(self) -> None:
        with self._lock:
            self._queue.clear()
            self._standing.clear()

    def take(self, call: Call) -> tuple[Fault, ...]:
        with self._lock:
            for rule in self._queue:
                if rule.meets(call):
                    assert rule.left is not None
                    rule.left -= 1
                    if not rule.left:
                        self._queue.remove(rule)
                    return rule.faults
            return tuple(fault for rule in self._standing if rule.meets(call) for fault in rule.faults)
