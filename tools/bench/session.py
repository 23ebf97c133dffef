"""The processes of a run, and one measurement of a case."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .jobs import Job
from .targets import ROOT, Running, start

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from contextlib import ExitStack

    from .targets import Target

__all__ = ["CORES", "Bench", "Case", "Row"]

type Row = dict[str, str | float]
"""A row of a table: column heading to value."""

CORES = sorted(os.sched_getaffinity(0))
SETTLE = 1.0  # seconds in which access log and ledger write their last rows
PAUSE = 0.15  # seconds between two runs, so that work left by one is not counted for the next

sys.path.insert(0, str(ROOT / "tests"))


class Case(NamedTuple):
    """One case. The CPU time is divided by the number of `unit`. `tls` is the leg with TLS, or both.

    `far`: upstream, whose TLS handshakes take 60 ms. `client`: the one of HTTP/2 clients, for which bare mitmdump wants no TLS upstream.
    """

    name: str
    job: dict[str, Any]
    unit: str = "requests"
    quick: bool = False
    tls: Literal["", "client", "upstream", "both", "far"] = ""


class Bench:
    """Upstream and load generator run on one core and the target on another. `mitmdump` may be that of another version."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # inherited by all child processes
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.files = hard
        self.folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        self.log = stack.enter_context(Path(self.folder, "log").open("wb"))  # noqa: SIM115 - the stack closes it
        self.stack = stack
        self.mitmdump = args.mitmdump
        self.upstream = self.helper("upstream", *([self.certificate()] if args.tls else []))
        assert self.upstream.stdout
        self.ports = [int(port) for port in self.upstream.stdout.readline().split()]
        self.load = self.helper("load")

    def helper(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"bench.{module}", *arguments]
        pipe = subprocess.PIPE
        process = self.stack.enter_context(
            subprocess.Popen(command, cwd=ROOT / "tools", stdin=pipe, stdout=pipe, stderr=self.log, text=True)
        )
        os.sched_setaffinity(process.pid, {CORES[0]})
        self.stack.callback(process.terminate)
        return process

    def certificate(self) -> str:
        from azure_simulator import tls  # noqa: PLC0415 - needed for TLS only

        tls.make(Path(self.folder), ["127.0.0.1"])
        return str(Path(self.folder, "server.pem"))

    def start(self, target: Target, *, tls: bool = False, far: bool = False, everywhere: bool = False) -> Running:
        """Start a target on its own core, or on all cores."""
        upstream = f"https://127.0.0.1:{self.ports[2 if far else 1]}" if tls or far else f"http://127.0.0.1:{self.ports[0]}"
        running = start(target, self.mitmdump, upstream, self.log, CORES if everywhere else CORES[-1:])
        self.stack.callback(running.stop)
        return running

    def run(self, case: Case, running: Running, seconds: float) -> dict[str, float]:
        """One measurement: the results of the load generator and the target's CPU time and memory."""
        before = running.cost()
        encrypted = case.tls in ("client", "both") or bool(case.tls and not running.process)
        seen: dict[str, float] = _ask(self.load, _job(case.job | {"tls": encrypted}, running, seconds))
        time.sleep(PAUSE)
        after = running.cost()
        seen["rate"] = seen[case.unit] / seen["seconds"]
        seen["cpu"] = (after.cpu - before.cpu) / seen[case.unit] if seen[case.unit] else 0.0
        seen["peak"] = after.peak
        return seen

    def settle(self) -> None:
        """Wait until a process has done what it does after its last turn."""
        time.sleep(SETTLE)

    @contextmanager
    def hold(self, running: Running, count: int, spread: float) -> Iterator[dict[str, float]]:
        """Keep `count` streams open in the context, after each has received its first chunk.

        In the result, `held` is the number of opened streams and `lost`, set at the end, the number of broken ones.
        """
        seen: dict[str, float] = {}
        job = {"kind": "hold", "clients": count, "chunks": 2, "gap": 3600.0, "spread": spread}
        with self.helper("load") as load:
            seen["held"] = _ask(load, _job(job, running, 0.0))
            yield seen
            seen |= _ask(load, "")
            load.terminate()


def _job(job: dict[str, Any], running: Running, seconds: float) -> str:
    target: dict[str, Any] = {"port": running.port, "prefix": running.target.prefix, "headers": running.headers}
    return json.dumps(Job(**(target | {"seconds": seconds} | job))._asdict())


def _ask(load: subprocess.Popen[str], line: str) -> Any:
    assert load.stdin
    assert load.stdout
    print(line, file=load.stdin, flush=True)
    return json.loads(load.stdout.readline())
