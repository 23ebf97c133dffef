"""What reached Azure, as it was on the wire."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs

__all__ = ["Received", "Requests"]


@dataclass(slots=True, eq=False)
class Received:
    """One request. `done` is set, and `outcome` known, when its answer has ended one way or the other."""

    method: str
    path: str  # raw, query included
    headers: list[tuple[str, str]]
    body: bytes
    tls: bool
    http_version: str
    client_port: int = 0  # tells connections apart
    status: int | None = None  # of the answer; None while there is none
    outcome: Literal["answered", "cut", "client left"] | None = None
    frames: list[str | bytes] = field(default_factory=list)  # of a WebSocket, from the client
    close_code: int | None = None
    usages: list[dict[str, Any]] = field(default_factory=list)  # that were sent: one of a request, one of each response of a WebSocket
    done: threading.Event = field(default_factory=threading.Event, repr=False)

    def note(self, usage: dict[str, Any] | None) -> None:
        """Remember a usage that was sent."""
        if usage:
            self.usages.append(usage)

    def header(self, name: str) -> str | None:
        """The values of that header joined as HTTP joins them; None if there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def bare_path(self) -> str:
        return self.path.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.path.partition("?")[2], keep_blank_values=True)


class Requests:
    """The requests so far, in the order in which they were complete; filled by the server's thread, read by the test's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._all: list[Received] = []

    def add(self, received: Received) -> None:
        with self._changed:
            self._all.append(received)
            self._changed.notify_all()

    def all(self) -> list[Received]:
        with self._changed:
            return list(self._all)

    def clear(self) -> None:
        with self._changed:
            self._all.clear()

    def wait(self, n: int, timeout: float) -> Received:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._all) >= n, timeout):
                raise TimeoutError(f"{len(self._all)} of {n} requests came within {timeout:g} s")
            return self._all[n - 1]
