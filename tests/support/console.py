"""mitmproxy's console with the addon in it, in a tmux of its own, for end-to-end tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support.processes import MITMPROXY, PATIENCE, SCRIPT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["TMUX", "Console", "console"]

TMUX = shutil.which("tmux")

_NOT_TEXT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()]\w|[\x0e\x0f\s]")


class Console:
    """What a person at the terminal can do: type, and look."""

    def __init__(self, home: Path, socket: str) -> None:
        self._home, self._socket = home, socket
        self.url = ""

    def start(self, command: list[str]) -> None:
        self.tmux(
            *("start-server", ";", "set-option", "-g", "remain-on-exit", "on", ";"),  # shows the error of a start
            *("new-session", "-d", "-c", str(self._home), "-x", "200", "-y", "60", shlex.join(command), ";"),
            *("pipe-pane", f"cat > {shlex.quote(str(self._home / 'drawn'))}"),
        )
        self.url = f"http://127.0.0.1:{self.wait_for(r'\[127\.0\.0\.1:(\d+)\]')[1]}"
        self.press("E")  # it listens before the script is loaded, which says in the log of events that it is
        self.wait_for(r"info: .* azure mode: ")
        self.press("q")
        self.wait_for(r"^Flows")

    def stop(self) -> None:
        self.tmux("kill-server")

    # -- type

    def press(self, *keys: str) -> None:
        """By tmux's names: Enter, Tab, Space."""
        self.tmux("send-keys", *keys)

    def command(self, line: str) -> None:
        self.tmux("send-keys", "-l", f":{line}")
        self.press("Enter")

    # -- look

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def everything(self) -> str:
        """All that was ever drawn and what tmux remembers, without white space: a long word may be drawn in two lines."""
        drawn = (self._home / "drawn").read_text("utf-8", "replace")
        return _NOT_TEXT.sub("", drawn + self.tmux("capture-pane", "-p", "-S", "-"))

    def wait_for(self, pattern: str, look: Callable[[], str] | None = None) -> re.Match[str]:
        """The first match on the screen, now or later."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, seen := (look or self.screen)())):
            assert time.monotonic() < deadline, f"never showed {pattern!r}, but\n{seen}"
            time.sleep(0.05)  # a change of the screen causes no event
        return found

    def tmux(self, *arguments: str) -> str:
        return subprocess.run(
            [str(TMUX), "-S", self._socket, "-f", os.devnull, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(self._home), "LANG": "C.UTF-8", "TERM": "xterm-256color"},
            check=True,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        ).stdout


@contextmanager
def console(home: Path, confdir: Path, path: Path | None = None, /, **options: object) -> Iterator[Console]:
    """`path`: a folder with packages that are imported instead of those that are installed."""
    command = [*(("env", f"PYTHONPATH={path}") if path else ()), MITMPROXY, "-s", str(SCRIPT)]
    for name, value in ({"confdir": confdir, "listen_host": "127.0.0.1", "listen_port": 0} | options).items():
        command += ["--set", f"{name}={value}"]
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        console = Console(home, f"{folder}/tmux")
        try:
            console.start(command)
            yield console
        finally:
            console.stop()
