"""Terminal output that never blocks the event loop: a thread writes it, and lines are dropped while the reader is too slow.

mitmproxy prints log lines and flows with `print`. When the reader of that pipe stops reading, the pipe fills up and `print` waits for
ever, and with it every client. Here `print` puts its text into a bounded queue.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from mitmproxy.master import Master

__all__ = ["AT_MOST", "Output", "install"]

AT_MOST = 1 << 20
"""Characters that wait to be written."""
PATIENCE = 1.0
"""Seconds that the end of the process waits for a reader."""


class Output:
    """In the place of a text file, for `print`."""

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
        """Queue a text.

        Raises:
            OSError: the pipe is closed, as `print` would raise it.
        """
        with self._changed:
            if self._error:
                raise self._error
            if self._thread is None:  # a thread for each process, and none before there is something to write
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
        """Do nothing, because the caller must not wait."""

    def drain(self, seconds: float = PATIENCE) -> bool:
        """Wait until everything is written. False: the reader does not read."""
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
                    data = data[self._write(data) :]
            except OSError as error:
                with self._changed:
                    self._error, self._busy = error, False
                    self._texts.clear()
                    self._changed.notify_all()
                return


def install(master: Master) -> None:
    """Let mitmproxy's log and dumper print through an `Output`, once."""
    outputs: dict[int, Output] = {}
    for owner, name in ((getattr(master.addons.get("termlog"), "logger", None), "file"), (master.addons.get("dumper"), "outfp")):
        file = getattr(owner, name, None)
        if file is None or type(file).__name__ == Output.__name__:  # of this module before it was loaded again, too
            continue
        try:
            descriptor = file.fileno()
        except (OSError, AttributeError, ValueError):
            continue  # no file of the system's: a test's, the console's
        if descriptor not in outputs:
            file.flush()
            outputs[descriptor] = Output(cast("IO[str]", file))
            atexit.register(outputs[descriptor].drain)
        setattr(owner, name, outputs[descriptor])
