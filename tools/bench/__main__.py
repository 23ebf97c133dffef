"""`make bench`: this proxy beside the bare mitmdump that it runs on, in one run and in turns.

The figure to steer by is the CPU time of the proxy's process for each request and each chunk: it hardly moves with what else the
machine does. The proxy has a core of its own where there are two; upstream and load share the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from .large import BOUND, grown
from .load import Job
from .targets import ROOT, Running, start, targets

sys.path.insert(0, str(ROOT / "tests"))

CORES = sorted(os.sched_getaffinity(0))
PEDESTAL = "bare mitmdump"
OURS = "ours"
LARGE = (PEDESTAL, OURS)  # who gets a gigabyte; with bodies stored it would be kept
PAUSE = 0.15  # seconds between two runs: what one left to do is not the next one's


class Case(NamedTuple):
    """One row. `unit` is what the CPU time is divided by."""

    name: str
    job: dict[str, Any]
    unit: str = "requests"
    quick: bool = False


CASES = (
    Case("chat, 1 client", {"kind": "chat", "clients": 1}),
    Case("chat, 32 clients", {"kind": "chat", "clients": 32}, quick=True),
    Case("chat, 64 clients", {"kind": "chat", "clients": 64}),
    Case("chat, new connections", {"kind": "fresh", "clients": 8}),
    Case("chat, TLS both sides", {"kind": "chat", "clients": 32, "tls": True}),
    Case("streams at full speed", {"kind": "stream", "clients": 8, "chunks": 200}, "chunks", quick=True),
    Case("50 paced streams", {"kind": "stream", "clients": 50, "seconds": 0, "chunks": 200, "gap": 0.02}, "chunks", quick=True),
    Case("embeddings of 30 KB", {"kind": "embeddings", "clients": 16}),
    Case("uploads of 20 MB", {"kind": "upload", "clients": 2}),
)


class Bench:
    """The processes of a run."""

    def __init__(self, args: argparse.Namespace, stack: ExitStack) -> None:
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
        process = subprocess.Popen(command, cwd=ROOT / "tools", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        os.sched_setaffinity(process.pid, {CORES[0]})
        self.stack.callback(process.wait)
        self.stack.callback(process.terminate)
        return process

    def certificate(self) -> str:
        from azure_simulator import tls  # noqa: PLC0415 - only who measures TLS needs it

        tls.make(Path(self.folder), ["127.0.0.1"])
        return str(Path(self.folder, "server.pem"))

    def start(self, target: Any, *, tls: bool = False) -> Running:
        upstream = f"https://127.0.0.1:{self.ports[1]}" if tls else f"http://127.0.0.1:{self.ports[0]}"
        running = start(target, self.mitmdump, upstream, self.log, CORES[-1])
        self.stack.callback(running.stop)
        return running

    def run(self, case: Case, running: Running, seconds: float) -> dict[str, float]:
        """One turn: what the load saw, and what it cost the target."""
        job = Job(port=running.port, **({"seconds": seconds} | case.job))
        before = running.cost()
        assert self.load.stdin
        assert self.load.stdout
        print(json.dumps(job._asdict()), file=self.load.stdin, flush=True)
        seen: dict[str, float] = json.loads(self.load.stdout.readline())
        time.sleep(PAUSE)
        after = running.cost()
        seen["rate"] = seen[case.unit] / seen["seconds"]
        seen["cpu"] = (after.cpu - before.cpu) / max(1, seen[case.unit])
        seen["peak"] = after.peak
        return seen


def measure(args: argparse.Namespace) -> dict[str, Any]:
    cases = [case for case in CASES if (case.quick or not args.quick) and (args.tls or "tls" not in case.job) and args.only in case.name]
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        bench = Bench(args, stack)
        chosen = [target for target in targets(options=not args.quick) if not args.targets or target.name in args.targets.split(";")]
        plain = [bench.start(target) for target in chosen]
        secure = [bench.start(target, tls=True) for target in chosen if target.tls] if any("tls" in case.job for case in cases) else []
        for case in cases:  # what is done for the first time is no measure
            for running in secure if "tls" in case.job else plain:
                bench.run(case, running, 0.3)
        for turn in range(args.turns):
            for case in cases:
                pool = secure if "tls" in case.job else plain
                for running in pool if turn % 2 else reversed(pool):
                    result = bench.run(case, running, args.seconds)
                    rows.setdefault(case.name, {}).setdefault(running.target.name, []).append(result)
            print(f"turn {turn + 1} of {args.turns}", file=sys.stderr, flush=True)
        processes = {one.target.name: {"start-up": one.started_in, "peak": one.cost().peak} for one in plain if one.process}
        large = {one.target.name: grown(one) for one in plain if one.target.name in LARGE and not args.quick and args.only in "large"}
    return {
        "machine": f"{_processor()}, {len(CORES)} cores, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "command": "make bench" + (f' ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else ""),
        "units": {case.name: case.unit for case in cases},
        "cases": {
            name: {target: _middle(runs) | _against(runs, row.get(PEDESTAL)) for target, runs in row.items()} for name, row in rows.items()
        },
        "processes": processes,
        "large": large,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians; but of what must not happen, the sum."""
    names = {name for run in runs for name in run}
    add = {"failed", "lost"}
    return {name: (sum if name in add else statistics.median)([run.get(name, 0.0) for run in runs]) for name in sorted(names)}


def _against(runs: list[dict[str, float]], bare: list[dict[str, float]] | None) -> dict[str, float]:
    """The CPU time against bare mitmdump's, turn by turn: what disturbs a turn disturbs both."""
    if not bare or not runs[0]["cpu"]:
        return {}
    return {"of_bare": statistics.median(run["cpu"] / other["cpu"] for run, other in zip(runs, bare, strict=True))}


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['machine']}, {result['date']}, `{result['command']}`", ""]
    lines += [
        "| case | target | per second | CPU µs each | of bare mitmdump's | first p50 ms | delay p50 ms | p99 ms | failed or lost |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in result["cases"].items():
        for target, seen in row.items():
            shown = [
                f"{seen['rate']:,.0f}",
                f"{seen['cpu'] * 1e6:,.0f}" if seen["cpu"] else "",
                f"{seen['of_bare']:.2f}" if "of_bare" in seen else "",
                f"{seen['first_p50'] * 1e3:.1f}" if "first_p50" in seen else "",
                f"{seen['delay_p50'] * 1e3:.1f}" if "delay_p50" in seen else "",
                f"{seen.get('delay_p99', seen.get('first_p99', 0)) * 1e3:.1f}",
                f"{seen['failed'] + seen['lost']:.0f}",
            ]
            unit = "" if result["units"][name] == "requests" else f" ({result['units'][name]})"
            lines.append(f"| {name}{unit} | {target} | {' | '.join(shown)} |")
    lines += ["", "| process | start-up s | peak memory MB |", "|---|--:|--:|"]
    lines += [f"| {name} | {one['start-up']:.2f} | {one['peak']:.0f} |" for name, one in result["processes"].items()]
    if result["large"]:
        lines += ["", "| process | a large body | seconds | growth of memory MB | bound | bytes lost |", "|---|---|--:|--:|--:|--:|"]
    for name, moves in result["large"].items():
        for move, seen in moves.items():
            bound = BOUND if name == OURS else ""
            lines.append(f"| {name} | {move} | {seen['seconds']:.1f} | {seen['grown']:.1f} | {bound} | {seen['lost']:.0f} |")
    return "\n".join(lines)


def compared(result: dict[str, Any], earlier: dict[str, Any]) -> str:
    """CPU time against an earlier result; what was the same then and now says how far the machine can be trusted."""
    lines = [
        f"against {earlier['date']}, {earlier['machine']}:",
        "",
        "| case | target | CPU µs then | now | now / then |",
        "|---|---|--:|--:|--:|",
    ]
    for name, row in result["cases"].items():
        for target, seen in row.items():
            then = earlier["cases"].get(name, {}).get(target, {}).get("cpu")
            if then and seen["cpu"]:
                lines.append(f"| {name} | {target} | {then * 1e6:,.0f} | {seen['cpu'] * 1e6:,.0f} | {seen['cpu'] / then:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, and only what to steer by")
    parser.add_argument("--turns", type=int, help="how often each case is measured; the median counts")
    parser.add_argument("--seconds", type=float, help="of each turn")
    parser.add_argument("--only", default="", help="cases with this in their name; `large`: a gigabyte each way")
    parser.add_argument("--targets", default="", help="these alone, `;` between them")
    parser.add_argument("--save", type=Path, help="write the result here, as JSON")
    parser.add_argument("--against", type=Path, help="compare with a result that was saved")
    parser.add_argument("--mitmdump", default=str(Path(sys.executable).with_name("mitmdump")))
    args = parser.parse_args()
    args.turns = args.turns or (3 if args.quick else 5)
    args.seconds = args.seconds or (1.5 if args.quick else 2.0)
    args.tls = not args.quick
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and stop what was started
    result = measure(args)
    print(table(result))
    if args.save:
        args.save.write_text(json.dumps(result, indent=1) + "\n")
    if args.against:
        print(f"\n{compared(result, json.loads(args.against.read_text()))}")


if __name__ == "__main__":
    main()
