"""The access log of a mitmdump under test."""

from __future__ import annotations

import datetime as dt
import json
import time
from typing import TYPE_CHECKING, Any

from .processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AccessLog"]


class AccessLog:
    """Reads the lines as they appear."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = 0
        self._since = 0.0  # Unix time from which requests are of interest

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_text("ascii") if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def forget(self) -> None:
        """Skip the lines of requests that have arrived, also those that are not written yet."""
        self._seen, self._since = 0, int(time.time() * 1000) / 1000  # lines have milliseconds

    def _later(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if dt.datetime.fromisoformat(line["time"]).timestamp() >= self._since]

    def wait(self, count: int = 1) -> list[dict[str, Any]]:
        """The next `count` lines, once they are there."""
        until = time.monotonic() + PATIENCE
        while len(found := self._later()[self._seen :]) < count:
            assert time.monotonic() < until, f"only {len(found)} of {count} lines: {found}"
            time.sleep(0.02)
        self._seen += count
        return found[:count]

    def until(self, count: int) -> list[dict[str, Any]]:
        """All lines, once there are `count`."""
        self.wait(max(0, count - self._seen))
        return self.lines

    def one(self) -> dict[str, Any]:
        """The next line."""
        return self.wait()[0]
