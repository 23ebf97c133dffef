"""A user's patterns, searched in a process of their own: the search of a pattern that backtracks without end stops this process, too."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .redact import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["TooSlow", "guarded"]

LONGEST_TIME = 5.0
"""Seconds for all searches together."""
_SEARCH = """
import json, re, sys
for line in sys.stdin:
    pattern, text = json.loads(line)
    print(json.dumps([match.span() for match in re.finditer(pattern, text)]), flush=True)
"""


class TooSlow(Exception):
    """The search of the patterns takes too long."""


class _Pattern:
    """A pattern with the one method that a redactor calls."""

    def __init__(self, pattern: str, process: subprocess.Popen[str]) -> None:
        self.pattern, self._process = pattern, process

    def sub(self, replacement: Callable[[Any], str], text: str, /) -> str:
        """Replace the matches. `replacement` gets a list with the matched text, as it would get a match.

        Raises:
            TooSlow: the time is over.
        """
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps([self.pattern, text]) + "\n")
            self._process.stdin.flush()
            spans = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            raise TooSlow from None
        parts, end = [], 0
        for start, stop in spans:
            parts += [text[end:start], replacement([text[start:stop]])]
            end = stop
        return "".join((*parts, text[end:]))


@contextmanager
def guarded(choice: Choice) -> Iterator[Choice]:
    """The same choice with patterns that are searched for some seconds at most. Without patterns no process is started.

    A standalone program of mitmproxy has no Python to start; it searches by itself.
    """
    if not choice.patterns or getattr(sys, "frozen", False):
        yield choice
        return
    process = subprocess.Popen(  # noqa: S603 - fixed arguments
        [sys.executable, "-I", "-c", _SEARCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="ascii"
    )
    timer = threading.Timer(LONGEST_TIME, process.kill)
    timer.start()
    try:
        yield Choice(choice.kinds, tuple(_Pattern(pattern.pattern, process) for pattern in choice.patterns))
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
