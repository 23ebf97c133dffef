"""The standard output of the commands. A reader that closes the pipe early, such as `head`, ends them quietly with status 0.

Python ignores SIGPIPE, and Windows has no such signal: a closed pipe is an error of a write, which may be the last flush at the end of the
process.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["closing_early", "write"]


def write(text: str) -> None:
    """Write a text, of which the encoding of the output may lack characters.

    Raises:
        OSError: the output is closed, or its disk is full.
    """
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


@contextmanager
def closing_early() -> Iterator[None]:
    """End the block without an error if the reader of the standard output has closed the pipe. The output is flushed at the end."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if not _is_closed_pipe(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends


def _is_closed_pipe(error: OSError) -> bool:
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)  # as the C library of Windows reports it
