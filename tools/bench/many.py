"""Throughput of a machine: one process of the proxy, and one for each core behind HAProxy as with `make scale`.

Upstream and load generator use the same cores, so the proxy gets only a part of the machine.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from .session import CORES, Case
from .targets import free_ports, ours, scaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .session import Bench, Row
    from .targets import Running, Target

__all__ = ["rows"]

CHAT = Case("small chat", {"kind": "chat", "clients": 64})
_READY_WITHIN = 30.0  # seconds


def rows(bench: Bench, others: Sequence[Target], turns: int, seconds: float, *, processes: int = max(2, len(CORES))) -> list[Row]:
    """One row for each target. `others` are measured too, on all cores."""
    if not shutil.which("haproxy"):
        print("haproxy is not installed: several processes are not measured", file=sys.stderr, flush=True)
        return []
    ports = free_ports(processes)
    running = [bench.start(target, everywhere=True) for target in (*others, ours("ours, 1 process"), scaled(processes, ports[0]))]
    for port in ports:
        _wait(port)
    for one in running:
        bench.run(CHAT, one, max(1.5, seconds))  # long enough for HAProxy's first health check of each process
    runs: dict[str, list[dict[str, float]]] = {}
    for turn in range(turns):
        for one in running if turn % 2 else reversed(running):
            runs.setdefault(one.target.name, []).append(bench.run(CHAT, one, seconds))
    alone = runs["ours, 1 process"]
    for one in running:
        one.stop()
    return [_row(one, runs[one.target.name], alone) for one in running]


def _row(one: Running, runs: list[dict[str, float]], alone: list[dict[str, float]]) -> Row:
    return {
        f"small chat, all {len(CORES)} cores": one.target.name,
        "per second": statistics.median(run["rate"] for run in runs),
        "of one process": statistics.median(run["rate"] / other["rate"] for run, other in zip(runs, alone, strict=True)),
        "CPU µs each": statistics.median(run["cpu"] for run in runs) * 1e6,
        "load's core busy": statistics.median(run["busy"] for run in runs),
        "failed or lost": sum(run["failed"] for run in runs),
    }


def _wait(port: int) -> None:
    """Wait until the process on this port is ready.

    Raises:
        RuntimeError: it is not ready in time.
    """
    until = time.monotonic() + _READY_WITHIN
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"no process is ready on port {port}")
