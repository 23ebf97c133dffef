"""The processes of end-to-end tests: the real mitmdump, and a decoy in the place of api.openai.com."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Self

from support.forks import Fork, can_fork, fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["MITMDUMP", "MITMPROXY", "MITMWEB", "PATIENCE", "ROOT", "SCRIPT", "Decoy", "Mitmdump", "for_websockets", "only_http2"]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "addon" / "azure_openai.py"
RECORDER = ROOT / "tests" / "support" / "recorder"
MITMDUMP = str(Path(sys.executable).with_name("mitmdump"))
MITMWEB = str(Path(sys.executable).with_name("mitmweb"))
MITMPROXY = str(Path(sys.executable).with_name("mitmproxy"))
PATIENCE = 30.0
"""Seconds until a wait is given up. Only a failing test waits that long."""

_LISTENING = re.compile(r" listening at .*?:(\d+)[. ]")


class _OnlyHTTP2(ssl.SSLContext):
    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        super().set_alpn_protocols(["h2"])


def only_http2(ca: Path) -> ssl.SSLContext:
    """For httpx, which otherwise offers HTTP/1.1 first, and gets it."""
    context = _OnlyHTTP2(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    return context


def for_websockets(ca: Path) -> ssl.SSLContext:
    """For the WebSocket client of `websockets.sync`, whose two threads share a TLS object, which Python 3.13.0 does not lock.

    With TLS 1.3 the server sends tickets after the handshake: one thread read them while the other sent the request, which could be lost.
    """
    context = ssl.create_default_context(cafile=ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


class Decoy:
    """A TCP listener that counts connections and answers none: the proxy takes it for api.openai.com."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.accepted = 0
        self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@dataclass
class Mitmdump:
    """`mitmdump -s addon/azure_openai.py` on a port that the kernel picks; a context manager, or `start()` and `stop()`.

    `options` go in as `--set name=value` (None: not at all), `args` as they stand; of the environment it sees only `env`. It runs in
    `home`, a folder of its own, with the mitmproxy folder `confdir`: a CA takes a second to make, so share one.
    """

    home: Path
    confdir: Path
    options: Mapping[str, object] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    scripts: Sequence[Path] = (SCRIPT,)
    command: Sequence[str] = (MITMDUMP,)
    fresh: bool = False
    """Start a Python of its own; else mitmdump and mitmweb are forks of one that has imported mitmproxy (see `support.forks`)."""
    decoy_port: int = 9  # discard: no process listens there
    port: int = 0

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._open = 0  # the pipes that may still bring something
        self._ready = False
        self.output: list[str] = []
        """Every line that was printed."""
        self.started = ""
        """The output until it was ready; tests that share the process keep it."""
        self.records: list[str] = []
        """Everything that was logged, at any level, printed or not."""
        self.lookups: list[str] = []
        """Every name that was looked up."""
        self.connections: list[str] = []
        """`host:port` of every connection that was tried."""

    # -- its life

    def launch(self) -> Self:
        """Start the process and do not wait until it listens: it may be meant to fail."""
        self.home.mkdir(parents=True, exist_ok=True)
        options = {"confdir": self.confdir, "listen_host": "127.0.0.1", "listen_port": 0} | dict(self.options)
        notes, notes_in = os.pipe()
        args = [
            *(part for script in (*self.scripts, RECORDER / "ready.py") for part in ("-s", str(script))),
            *(part for name, value in options.items() if value is not None for part in ("--set", f"{name}={_text(value)}")),
            *self.args,
        ]
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(RECORDER),
            "RECORDER_PIPE": str(notes_in),
            "RECORDER_DECOY_PORT": str(self.decoy_port),
            **{name: os.environ[name] for name in ("AZURE_OPENAI_FAST_PATH",) if name in os.environ},  # to test all without them
            **self.env,
        }
        if not self.fresh and tuple(self.command) in {(MITMDUMP,), (MITMWEB,)} and can_fork(self.env):
            self._process: subprocess.Popen[str] | Fork = fork(Path(self.command[0]), args, env, self.home, notes_in)
        else:
            self._process = subprocess.Popen(
                [*self.command, *args],
                cwd=self.home,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                pass_fds=[notes_in],
            )
        os.close(notes_in)
        assert self._process.stdout
        self._readers = [self._read(self._process.stdout, self._printed), self._read(os.fdopen(notes, encoding="utf-8"), self._noted)]
        return self

    def start(self) -> Self:
        """Start the process and wait until it listens and its scripts are running."""
        self.launch()
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        self._wait(lambda: self._ready or not self._open, "does not start")
        if not self._ready:
            self.stop()
            self._fail("ended at its start")
        self.started = self.log()

    def wait(self) -> int:
        """Wait until the process has ended by itself; its exit code."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.stop()
            self._fail("does not end")
        for reader in self._readers:
            reader.join()
        return code

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> int:
        """End the process as Ctrl-C does; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        return self.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.check()

    # -- where it is

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def https_url(self) -> str:
        """By name, as a certificate wants it."""
        return f"https://localhost:{self.port}"

    @property
    def ca(self) -> Path:
        return self.confdir / "mitmproxy-ca-cert.pem"

    @property
    def pid(self) -> int:
        return self._process.pid

    # -- its output

    def log(self) -> str:
        return "\n".join(self.output)

    def wait_for_log(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match in the output, now or later."""
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = re.search(pattern, self.log())
            return bool(found) or not self._open

        self._wait(look, f"never printed {pattern!r}", timeout)
        if found is None:
            self._fail(f"ended and never printed {pattern!r}")
        return found

    def wait_for_start_line(self, pattern: str) -> re.Match[str]:
        """The first match in the output of the start. Its last lines may be read after the process is known to be ready."""
        found = re.search(pattern, self.started) or self.wait_for_log(pattern)
        if not re.search(pattern, self.started):
            self.started += f"\n{found[0]}"
        return found

    def wait_for_connections(self) -> list[str]:
        """The addresses that were connected to: at least one, now or later."""
        self._wait(lambda: self.connections, "connects to nothing")
        return self.connections

    def take(self) -> tuple[list[str], list[str], list[str]]:
        """The output and log lines, the names looked up and the addresses connected to since the last call."""
        with self._news:
            taken = [*self.output, *self.records], [*self.lookups], [*self.connections]
            self.forget()
        return taken

    def forget(self) -> None:
        """Forget the output and the connections so far: the next test does not check them."""
        with self._news:
            for list_ in (self.output, self.records, self.lookups, self.connections):
                list_.clear()

    def check(self) -> None:
        """Fail if anything went wrong in there that no client got to see."""
        if any("Traceback (most recent call last)" in line for line in (*self.output, *self.records)):
            self._fail("printed a traceback")

    # -- inside

    def _fail(self, what: str) -> NoReturn:
        message = f"mitmdump {what}; it printed:\n{self.log() or '(nothing)'}"
        raise AssertionError(message)

    def _wait(self, ready: Callable[[], object], otherwise: str, timeout: float = PATIENCE) -> None:
        with self._news:
            if not self._news.wait_for(ready, timeout):
                self._fail(f"{otherwise} (waited {timeout:g} s)")

    def _read(self, lines: IO[str], each: Callable[[str], None]) -> threading.Thread:
        def run() -> None:
            with lines:
                for line in lines:
                    with self._news:
                        each(line.rstrip("\n"))
                        self._news.notify_all()
            with self._news:
                self._open -= 1
                self._news.notify_all()

        self._open += 1
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _printed(self, line: str) -> None:
        self.output.append(line)

    def _noted(self, line: str) -> None:
        kind, what = json.loads(line)
        {"log": self.records, "lookup": self.lookups, "connect": self.connections}[kind].append(what)
        if kind == "log" and (listening := _LISTENING.search(what)):
            self.port = int(listening[1])
        self._ready |= (kind, what) == ("log", "ready")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
