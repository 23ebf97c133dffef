"""A load of chats from several clients at once. Each call is named by its session, so that its usage record can be found."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import httpx

from support.processes import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["SECRET_TEXT", "Done", "Load", "wait_until"]

SECRET_TEXT = "the text of a message that no database may contain"


class Done(NamedTuple):
    """A call that was answered."""

    name: str
    status: int
    ended: float  # Unix time


class Load:
    """Sends chats until it is left. Every fifth is a stream. A call that gets no response counts as failed."""

    def __init__(self, url: str, key: str, clients: int = 4, pause: float = 0.01) -> None:
        self.done: list[Done] = []
        self.failed: list[str] = []
        self._url, self._key, self._pause = url, key, pause
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def wait(self, more: int) -> None:
        """Wait until further calls were answered or have failed."""
        goal = len(self.done) + len(self.failed) + more
        wait_until(lambda: len(self.done) + len(self.failed) >= goal)

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, headers={"authorization": f"Bearer {self._key}"}, timeout=PATIENCE, trust_env=False) as http:
            while not self._stop.wait(self._pause):
                number = next(self._numbers)
                name = f"call-{number}"
                body: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": SECRET_TEXT}]}
                if not number % 5:
                    body |= {"stream": True, "stream_options": {"include_usage": True}}
                try:
                    response = http.post("/v1/chat/completions", json=body, headers={"x-session-affinity": name})
                except httpx.HTTPError:
                    self.failed.append(name)
                else:
                    self.done.append(Done(name, response.status_code, time.time()))


def wait_until(true: Callable[[], object]) -> None:
    """Wait for a condition of another process, which sends no event."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
