"""State of backends that replicas share, in a stream of Redis: cool-downs, remaining tokens, repairs, and owners of stored objects.

No request waits for it: each process has its own copy. It adds its changes to the stream several times a second, together, and reads those
of the others. The stream keeps the last few thousand entries, from which a process that joins learns what the others know.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any, cast, get_args

from azure_openai_proxy.routing import learned_repairs, repair_changes
from azure_openai_proxy.routing.pool import Event

from .link import PREFIX

if TYPE_CHECKING:
    from azure_openai_proxy.routing.state import Shared

    from .link import Link

__all__ = ["SharedBackends"]

logger = logging.getLogger(__name__)

STREAM = f"{PREFIX}events"
MOST_ENTRIES = 5_000
"""Entries of the stream."""
AT_ONCE = 500
"""Entries that are read together, and changes of one entry."""
MOST_WAITING = 5_000
"""Changes that wait for the server."""
_EVENTS = get_args(Event.__value__)


class SharedBackends:
    """A listener of the link that shares the state of `routing`."""

    def __init__(self, link: Link, routing: Shared) -> None:
        self._link = link
        self._routing = routing
        self._changes: dict[tuple[Event, str, str], None] = {}
        self._owners: dict[str, str] = {}
        self._repairs: dict[learned_repairs.Key, None] = {}
        self._last = "0-0"
        routing.pool.publish = self._changed
        routing.owners.publish = self._owned
        routing.learned.publish = self._repaired

    def close(self) -> None:
        self._routing.pool.publish = self._routing.owners.publish = self._routing.learned.publish = None

    # The changes of this process

    def _changed(self, event: Event, backend: str, deployment: str) -> None:
        if len(self._changes) < MOST_WAITING:
            self._changes[event, backend, deployment] = None

    def _owned(self, id: str, backend: str) -> None:
        if len(self._owners) < MOST_WAITING:
            self._owners[id] = backend

    def _repaired(self, key: learned_repairs.Key) -> None:
        if not key.scope and len(self._repairs) < MOST_WAITING:  # not those for a client's own key
            self._repairs[key] = None

    def _waiting(self) -> list[list[Any]]:
        """Take the changes that wait, as JSON."""
        changes, self._changes = self._changes, {}
        taken: list[list[Any]] = []
        for event, backend, deployment in changes:
            if values := self._routing.pool.shown(event, backend, deployment):
                taken.append([event, backend, deployment, [round(value, 3) for value in values]])
        repairs, self._repairs = self._repairs, {}
        learned = self._routing.learned
        taken += [["repair", list(key[:4]), [repair_changes.packed(change) for change in learned.get(key)]] for key in repairs]
        owners, self._owners = self._owners, {}
        taken += [["owner", id, backend] for id, backend in owners.items()]
        return taken

    # The link

    def joined(self, *, lost: bool) -> None:
        if lost:
            self._last = "0-0"
            self._owners = dict(reversed(self._routing.owners.newest(MOST_WAITING)))
            for key in self._routing.learned.all():
                self._repaired(key)

    async def tick(self) -> None:
        waiting = self._waiting()
        for start in range(0, len(waiting), AT_ONCE):
            entry = json.dumps(waiting[start : start + AT_ONCE], separators=(",", ":"))
            self._link.send("XADD", STREAM, "MAXLEN", "~", MOST_ENTRIES, "*", "p", self._link.process, "d", entry)
        while True:
            time, found = await asyncio.gather(
                self._link.ask("TIME"), self._link.ask("XRANGE", STREAM, f"({self._last}", "+", "COUNT", AT_ONCE)
            )
            for id, fields in found:
                self._last = id.decode()
                age = time[0] + time[1] / 1e6 - int(self._last.partition("-")[0]) / 1000
                try:
                    if fields[b"p"] != self._link.process.encode():
                        self._learn(fields[b"d"], age)
                except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
                    logger.warning("An entry of the shared state is skipped: %s", type(error).__name__)
            if len(found) < AT_ONCE:
                return

    def _learn(self, entry: bytes, age: float) -> None:
        """Take over the changes of another process. What this version does not know is skipped."""
        routing = self._routing
        for change in json.loads(entry):
            match change:
                case ["owner", str(id), str(backend)]:
                    routing.owners.learn(id, backend)
                case ["repair", [str(), str(), str(), str()] as key, list(packed)]:
                    found = [change for each in packed if (change := repair_changes.unpacked(each)) is not None]
                    routing.learned.learn(learned_repairs.Key(*key), found)
                case [str(event), str(backend), str(deployment), list(values)] if event in _EVENTS:
                    routing.pool.learn(cast("Event", event), backend, deployment, values, max(0.0, age))
