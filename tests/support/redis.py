"""A private Redis or Valkey server on a loopback port, without files."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RedisServer", "missing"]

PATIENCE = 30.0


def _program() -> str | None:
    return shutil.which("valkey-server") or shutil.which("redis-server")


def missing() -> str | None:
    """Why there is no server, or None."""
    if os.name != "posix":
        return "the server needs a POSIX system"
    return None if _program() else "neither Valkey nor Redis is installed (Debian: apt-get install redis-server)"


class RedisServer:
    """A server that can be killed, paused and started again on its port. A context manager."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        program = _program()
        assert program
        self._process = subprocess.Popen(
            [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", *self._arguments],
            cwd="/",
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while self("PING")[:1] not in (b"+", b"-"):  # - without a password
            assert time.monotonic() < deadline
            assert self._process.poll() is None
            time.sleep(0.02)

    def kill(self) -> None:
        """End the server as a crash does. Its data is gone. Without effect if it does not run."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let the server answer nothing; the kernel still accepts connections."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def __call__(self, *command: str) -> bytes:
        """The first bytes of the reply to a command; b"" if nothing listens."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            parts = [part.encode() for part in command]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            return connection.recv(65536)
        return b""
