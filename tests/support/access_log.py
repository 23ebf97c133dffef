"""The access log of a mitmdump under test."""

from __future__ import annotations

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

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_text("ascii") if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def forget(self) -> None:
        """Skip the lines that are there."""
        self._seen = len(self.lines)

    def wait(self, count: int = 1) -> list[dict[str, Any]]:
        """The next `count` lines, once they are there."""
        until = time.monotonic() + PATIENCE
        while len(self.lines) < self._seen + count:
            assert time.monotonic() < until, f"only {len(self.lines) - self._seen} of {count} lines: {self.lines[self._seen :]}"
            time.sleep(0.02)
        found = self.lines[self._seen : self._seen + count]
        self._seen += count
        return found

    def until(self, count: int) -> list[dict[str, Any]]:
        """All lines, once there are `count`."""
        self.wait(max(0, count - self._seen))
        return self.lines

    def one(self) -> dict[str, Any]:
        """The next line."""
        return self.wait()[0]
