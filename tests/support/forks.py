"""Starts mitmdump or mitmweb as a fork of a process that has imported mitmproxy, which is most of the work of a start.

The fork sets arguments, environment, folder and standard output, and calls the same function that the installed script calls. Nothing of
the proxy is imported before the fork. Linux only: elsewhere a process that forks may not be safe.

This file is also the program that is forked (the template). It answers a message with two file descriptors with the id of the process
that it starts, and a message with such an id with the wait status of that process, for which it waits. Tests learn of the end from a
descriptor of the process: a status in a pipe can be lost, because OpenSSL reads from a socket by the number of its descriptor, even
after another thread has closed it and a pipe has got the number.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["Fork", "can_fork", "fork"]

MESSAGE = 1 << 17
NUMBER = struct.Struct("i")
KEPT = ("AZURE_", "HOSTS", "OTEL_", "RECORDER_")
"""Beginnings of the environment variables that are read after the imports. With any other one, a process must start anew."""


def can_fork(env: Mapping[str, str]) -> bool:
    return hasattr(os, "pidfd_open") and all(name.startswith(KEPT) for name in env)


class Fork:
    """What tests use of `subprocess.Popen`, for a process whose parent is the template."""

    def __init__(self, template: _Template, pid: int, stdout: TextIO) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._template = template
        self._ended = os.pidfd_open(pid)  # readable when it has ended
        self._one_at_a_time = threading.Lock()

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float) -> int:
        if (code := self._look(timeout)) is None:
            raise subprocess.TimeoutExpired("mitmproxy", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float) -> int | None:
        with self._one_at_a_time:
            if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
                self.returncode = os.waitstatus_to_exitcode(self._template.ask({"wait": self.pid}))
                os.close(self._ended)
            return self.returncode


def fork(command: Path, args: Sequence[str], env: Mapping[str, str], cwd: Path, notes: int) -> Fork:
    """Start `command`, an installed script of mitmproxy, with its output in a pipe. `notes`: the descriptor named by RECORDER_PIPE."""
    output, prints = os.pipe()
    template = _template(command)
    pid = template.ask({"argv": [str(command), *args], "env": dict(env), "cwd": str(cwd)}, prints, notes)
    os.close(prints)
    return Fork(template, pid, os.fdopen(output, encoding="utf-8", errors="replace"))


class _Template:
    """A running template for one script."""

    def __init__(self, command: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one_at_a_time = threading.Lock()
        env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        program = [sys.executable, __file__, command.name, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(program, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        atexit.register(self._end)

    def ask(self, question: Mapping[str, object], *descriptors: int) -> int:
        """Send a message; the number that is the answer."""
        message = json.dumps(question).encode()
        assert len(message) < MESSAGE
        with self._one_at_a_time:
            socket.send_fds(self._socket, [message], descriptors)
            answer = self._socket.recv(NUMBER.size)
        assert answer, f"the process that forks has ended: {self._process.wait()}"
        (number,) = NUMBER.unpack(answer)
        return int(number)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


_template = cache(_Template)


# The program


def _serve(control: socket.socket) -> None:
    """Answer messages. Returns in each fork; ends the process when the socket is closed."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 2)
        if not message:
            os._exit(0)
        question = json.loads(message)
        if "wait" in question:
            _, number = os.waitpid(question["wait"], 0)
        elif not (number := os.fork()):
            control.close()
            _become(question, *descriptors)
            return
        for each in descriptors:
            os.close(each)
        control.send(NUMBER.pack(number))


def _become(job: dict[str, object], prints: int, notes: int) -> None:
    for each in 1, 2:
        os.dup2(prints, each)
    os.close(prints)
    os.environ.clear()
    os.environ.update(job["env"], RECORDER_PIPE=str(notes))  # type: ignore[call-overload]
    time.tzset()
    os.chdir(str(job["cwd"]))
    sys.argv = list(job["argv"])  # type: ignore[call-overload]
    sys.path[:1] = [os.path.dirname(sys.argv[0]), os.environ["PYTHONPATH"]]  # noqa: PTH120 - as Python does
    sys.modules.pop("sitecustomize", None)
    importlib.import_module("sitecustomize")


if __name__ == "__main__":
    tool, descriptor = sys.argv[1:]
    main = importlib.import_module("mitmproxy.tools.main")
    importlib.import_module({"mitmdump": "mitmproxy.tools.dump", "mitmweb": "mitmproxy.tools.web.master"}[tool])
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(descriptor)))
    sys.exit(getattr(main, tool)())
