"""Terminal output that never blocks the event loop: a thread writes it, and lines are dropped while the reader is too slow.

mitmproxy prints log lines and flows with `print`. If the reader of a pipe stops reading, the pipe fills up, and `print` blocks the event
loop and thus all clients. Here `print` appends to a bounded queue.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from mitmproxy.master import Master

__all__ = ["AT_MOST", "Output", "install"]

AT_MOST = 1 << 20
"""Maximum characters in the queue."""
AGAIN_AFTER = 0.05
"""Seconds until a file that does not block is tried again. The program that opened it may have set it so."""
PATIENCE = 1.0
"""Maximum seconds to wait at exit for the queue to be written."""


class Output:
    """Replaces a text file as the target of `print`."""

    def __init__(self, file: IO[str], write: Callable[[bytes], Any] | None = None) -> None:
        descriptor = file.fileno()
        self._file = file
        self._write = write or (lambda data: os.write(descriptor, data))
        self._texts: deque[str] = deque()
        self._size = 0
        self._dropped = 0  # lines
        self._error: OSError | None = None
        self._busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Queue `text`, or count its lines as dropped if the queue is full. Return the number of its characters.

        Raises:
            OSError: an earlier write failed, for example because the pipe is closed.
        """
        with self._changed:
            if self._error:
                raise self._error
            if self._thread is None:  # started on the first write, so that a forked process gets its own
                self._thread = threading.Thread(target=self._run, name="log output", daemon=True)
                self._thread.start()
            if self._size + len(text) > AT_MOST:
                self._dropped += text.count("\n")
            else:
                self._texts.append(text)
                self._size += len(text)
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Do nothing: the caller must not block."""

    def drain(self, seconds: float = PATIENCE) -> bool:
        """Wait until the queue is written. Return False if that takes longer than `seconds`."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._error or not (self._texts or self._busy), seconds))

    def _run(self) -> None:
        encoding, errors = getattr(self._file, "encoding", None) or "utf-8", "backslashreplace"
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._texts)
                text = "".join(self._texts)
                if self._dropped:
                    text += f"{self._dropped} lines of output were dropped: its reader was too slow.\n"
                self._texts.clear()
                self._size = self._dropped = 0
                self._busy = True
            data = text.replace("\n", os.linesep).encode(encoding, errors)
            try:
                while data:
                    data = data[self._written(data) :]
            except OSError as error:
                with self._changed:
                    self._error, self._busy = error, False
                    self._texts.clear()
                    self._changed.notify_all()
                return

    def _written(self, data: bytes) -> int:
        """Write data, and return how much of it was written: nothing, after a moment, if a file that does not block takes none."""
        try:
            return int(self._write(data))
        except BlockingIOError:
            time.sleep(AGAIN_AFTER)
            return 0


def install(master: Master) -> None:
    """Redirect mitmproxy's log and dumper to an `Output`. Repeated calls have no effect."""
    outputs: dict[int, Output] = {}
    for owner, name in ((getattr(master.addons.get("termlog"), "logger", None), "file"), (master.addons.get("dumper"), "outfp")):
        file = getattr(owner, name, None)
        if file is None or type(file).__name__ == Output.__name__:  # by name, since the module may have been reloaded
            continue
        try:
            descriptor = file.fileno()
        except (OSError, AttributeError, ValueError):
            continue  # no file descriptor, as in tests and in the console
        if descriptor not in outputs:
            file.flush()
            outputs[descriptor] = Output(cast("IO[str]", file))
            atexit.register(outputs[descriptor].drain)
        setattr(owner, name, outputs[descriptor])
