"""What end-to-end tests stand on: the real mitmdump in a process of its own, and a decoy in the place of api.openai.com."""

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["MITMDUMP", "MITMPROXY", "MITMWEB", "PATIENCE", "ROOT", "SCRIPT", "Decoy", "Mitmdump", "only_http2"]

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


class Decoy:
    """A TCP listener that counts who comes and answers nobody: api.openai.com, as far as the proxy can tell."""

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
    decoy_port: int = 9  # discard: nobody listens there
    port: int = 0

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._open = 0  # the pipes that may still bring something
        self._ready = False
        self.output: list[str] = []
        """Every line that was printed."""
        self.started = ""
        """What was printed until it was ready; tests that share it do not forget that."""
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
        self._process = subprocess.Popen(
            [
                *self.command,
                *(part for script in (*self.scripts, RECORDER / "ready.py") for part in ("-s", str(script))),
                *(part for name, value in options.items() if value is not None for part in ("--set", f"{name}={_text(value)}")),
                *self.args,
            ],
            cwd=self.home,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.home),
                "LANG": "C.UTF-8",
                "PYTHONUNBUFFERED": "1",
                "PYTHONPATH": str(RECORDER),
                "RECORDER_PIPE": str(notes_in),
                "RECORDER_DECOY_PORT": str(self.decoy_port),
                **{name: os.environ[name] for name in ("AZURE_OPENAI_FAST_PATH",) if name in os.environ},  # to test all without them
                **self.env,
            },
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

    # -- what it said

    def log(self) -> str:
        return "\n".join(self.output)

    def wait_for_log(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match in what was printed, now or later."""
        found: re.Match[str] | None = None

        def look() -> bool:
            nonlocal found
            found = re.search(pattern, self.log())
            return bool(found) or not self._open

        self._wait(look, f"never printed {pattern!r}", timeout)
        if found is None:
            self._fail(f"ended and never printed {pattern!r}")
        return found

    def take(self) -> tuple[list[str], list[str], list[str]]:
        """What was printed and logged, what was looked up and what was connected to since this was asked last."""
        with self._news:
            taken = [*self.output, *self.records], [*self.lookups], [*self.connections]
            self.forget()
        return taken

    def forget(self) -> None:
        """What was said and done so far is no matter of the coming test."""
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
