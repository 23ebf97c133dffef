"""`make bench`: measures this proxy and bare mitmdump alternately in one run.

The main result is the CPU time of the proxy's process per request and per chunk, because it hardly depends on other load of the
machine. The proxy has a core of its own if there are two; upstream and load generator share the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import accounting, growth, held, large, looks, many, teams
from .session import CORES, Bench, Case
from .targets import ACCOUNTING, AFFINE, NOT_AFFINE, PAGE_OPEN, PEDESTAL, SEEN, UNSEEN, targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Row
    from .targets import Running, Target

OURS = "ours"

PACED = {"kind": "stream", "clients": 50, "seconds": 0, "chunks": 200, "gap": 0.02, "spread": 0.02}
SECONDS, WARM_UP = 1.5, 0.3  # of a turn; the number of chunks of a paced stream is proportional to it
CASES = (
    Case("chat, 1 client", {"kind": "chat", "clients": 1}),
    Case("chat, 32 clients", {"kind": "chat", "clients": 32}, quick=True),
    Case("chat, 64 clients", {"kind": "chat", "clients": 64}),
    Case("chat, new connections", {"kind": "fresh", "clients": 8}),
    Case("chat, far TLS upstream", {"kind": "chat", "clients": 8}, tls="far"),
    Case("chat, new connections, far TLS upstream", {"kind": "fresh", "clients": 8}, tls="far"),
    Case("chat, TLS upstream", {"kind": "chat", "clients": 32}, tls="upstream"),
    Case("chat, TLS both sides", {"kind": "chat", "clients": 32}, tls="both"),
    Case("streams at full speed", {"kind": "stream", "clients": 8, "chunks": 200}, "chunks", quick=True),
    Case("streams at full speed, TLS upstream", {"kind": "stream", "clients": 8, "chunks": 200}, "chunks", tls="upstream"),
    Case("50 paced streams", PACED, "chunks", quick=True),
    Case("50 paced streams, TLS upstream", PACED, "chunks", tls="upstream"),
    Case("50 paced streams, TLS both sides", PACED, "chunks", tls="both"),
    Case("chat, HTTP/2", {"kind": "chat", "clients": 32, "streams": 8}, tls="client"),
    Case("50 paced streams, HTTP/2", PACED | {"streams": 5}, "chunks", tls="client"),
    Case("100 realtime sessions", {"kind": "realtime", "clients": 100, "chunks": 75, "gap": 0.02, "spread": 0.002}, "frames"),
    Case("embeddings of 30 KB", {"kind": "embeddings", "clients": 16}),
    Case("uploads of 20 MB", {"kind": "upload", "clients": 2}),
    Case("uploads of 20 MB, slow upstream", {"kind": "slow upload", "clients": 4}),
)

# Additional tables, by their name for `--only`. The first ones are in every run except a quick one, but `accounting`, which takes five
# minutes, only if its target is chosen.
USUAL, OTHERS = ("accounting", "views", "large"), ("growth", "held", "scale", "teams")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    alone = args.only in (*USUAL, *OTHERS)
    cases = [case for case in CASES if (case.quick or not args.quick) and args.only in case.name and not alone]
    args.tls = any(case.tls for case in cases)
    with ExitStack() as stack:
        bench = Bench(args, stack)
        chosen = [target for target in targets(options=not args.quick) if not args.targets or target.name in args.targets.split(";")]
        plain = [bench.start(target) for target in chosen] if cases or args.only == "large" else []
        legs = {case.tls for case in cases}
        secure = [bench.start(target, tls=True) for target in chosen if target.tls] if legs & {"upstream", "both"} else []
        far = [bench.start(target, far=True) for target in chosen if target.tls and not target.option] if "far" in legs else []
        runs = _side_by_side(args, bench, cases, {"": plain, "client": plain, "far": far, "upstream": secure, "both": secure})
        tables: dict[str, Callable[[], list[Row]]] = {
            "accounting": lambda: accounting.rows(bench, 2 * args.turns, args.seconds),
            "views": looks.rows,
            "large": lambda: [row for one in plain if one.target.name in (PEDESTAL, OURS) for row in large.rows(one)],
            "growth": lambda: growth.rows(bench, args.turns, args.seconds),
            "teams": lambda: teams.rows(bench, args.turns),
            "held": lambda: held.rows(bench, _plainly(chosen), args.hold),
            "scale": lambda: many.rows(bench, [target for target in _plainly(chosen) if target.name != OURS], args.turns, args.seconds),
        }
        wanted = [args.only] if alone else list(USUAL) if not (args.only or args.quick) else []
        if not alone and "accounting" in wanted and all(target.name != ACCOUNTING for target in chosen):
            wanted.remove("accounting")
        processes = {one.target.name: {"start-up": one.started_in, "peak": one.cost().peak} for one in plain if one.process}
        shown = {name: tables[name]() for name in wanted}
    return {
        "machine": f"{_processor()}, {len(CORES)} cores, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "command": "make bench" + (f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else ""),
        "units": {case.name: case.unit for case in cases},
        "cases": {
            name: {one.target.name: _middle(row[one.target.name]) | _against(one.target, row) for one in plain if one.target.name in row}
            for name, row in runs.items()
        },
        "processes": processes,
        "tables": shown,
    }


def _plainly(chosen: list[Target]) -> list[Target]:
    return [target for target in chosen if not target.option]


def _side_by_side(
    args: argparse.Namespace, bench: Bench, cases: list[Case], running: dict[str, list[Running]]
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Measure all targets in turns, so that other load of the machine affects all of them alike."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}

    def who(case: Case) -> list[Running]:
        found = [one for one in running[case.tls] if case.quick or not one.target.option]
        return [one for one in found if one.process] if "streams" in case.job else found  # the upstream has no HTTP/2

    for case in cases:  # warm-up
        for one in who(case):
            seen = bench.run(_lasting(case, WARM_UP), one, WARM_UP)
            if seen["failed"] + seen["lost"]:
                print(f"{one.target.name} does not serve `{case.name}` well: {seen}", file=sys.stderr, flush=True)
    for turn in range(args.turns if cases else 0):
        for case in cases:
            for one in who(case) if turn % 2 else reversed(who(case)):
                result = bench.run(_lasting(case, args.seconds), one, args.seconds)
                rows.setdefault(case.name, {}).setdefault(one.target.name, []).append(result)
        print(f"turn {turn + 1} of {args.turns}", file=sys.stderr, flush=True)
    return rows


def _lasting(case: Case, seconds: float) -> Case:
    chunks = round(case.job.get("chunks", 0) * seconds / SECONDS)
    return case._replace(job=case.job | {"chunks": chunks}) if case.job.get("gap") else case


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _middle(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each value, and the sum of failed and lost."""
    names = {name for run in runs for name in run}
    add = {"failed", "lost"}
    return {name: (sum if name in add else statistics.median)([run.get(name, 0.0) for run in runs]) for name in sorted(names)}


def _against(target: Target, row: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """The median ratio of the CPU time to bare mitmdump's in the same turn, and to that of the target's `against`."""
    runs = row[target.name]
    if not any(run["cpu"] for run in runs):
        return {}
    return {
        name: statistics.median(run["cpu"] / other["cpu"] if other["cpu"] else 0.0 for run, other in zip(runs, row[against], strict=True))
        for name, against in {"of_bare": PEDESTAL, "of_other": target.against}.items()
        if against in row
    }


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
    if not result["cases"]:
        del lines[1:]
    for seen in _seen(result), _paged(result), _affine(result), *result["tables"].values():
        lines += ["", *_rows(seen)] if seen else []
    return "\n".join(lines)


def _seen(result: dict[str, Any]) -> list[Row]:
    """The cost of views, comments and stored bodies."""
    pairs = [(name, row.get(SEEN), row.get(UNSEEN)) for name, row in result["cases"].items()]
    return [
        {"in mitmweb": name, "CPU µs each, unseen": off["cpu"] * 1e6, "seen": on["cpu"] * 1e6, "seen, of unseen": on["of_other"]}
        for name, on, off in pairs
        if on and off
    ]


def _paged(result: dict[str, Any]) -> list[Row]:
    """The cost of the inspector's page while it is open."""
    pairs = [(name, row.get(PAGE_OPEN), row.get(SEEN)) for name, row in result["cases"].items()]
    return [
        {"inspector's page": name, "CPU µs each, closed": off["cpu"] * 1e6, "open": on["cpu"] * 1e6, "open, of closed": on["of_other"]}
        for name, on, off in pairs
        if on and off
    ]


def _affine(result: dict[str, Any]) -> list[Row]:
    """The cost of session affinity."""
    pairs = [(name, row.get(AFFINE), row.get(NOT_AFFINE)) for name, row in result["cases"].items()]
    return [
        {"session affinity": name, "CPU µs each, off": off["cpu"] * 1e6, "on": on["cpu"] * 1e6, "on, of off": on["of_other"]}
        for name, on, off in pairs
        if on and off
    ]


def _rows(rows: list[Row]) -> list[str]:
    """One table. A row may lack columns of others."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    numbers = [any(isinstance(row.get(head), int | float) for row in rows) for head in heads]
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join('--:' if number else '---' for number in numbers)}|"]
    return [*lines, *(f"| {' | '.join(_shown(row.get(head, '')) for head in heads)} |" for row in rows)]


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def compared(result: dict[str, Any], earlier: dict[str, Any]) -> str:
    """The CPU time compared with an earlier result. The ratio of unchanged targets shows how comparable the two runs are."""
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
    parser.add_argument("--quick", action="store_true", help="only the main cases, in about a minute")
    parser.add_argument("--turns", type=int, help="number of measurements of each case; the median is reported")
    parser.add_argument("--seconds", type=float, help="duration of each turn")
    parser.add_argument("--only", default="", help=f"only cases whose name contains this text; or one of {', '.join((*USUAL, *OTHERS))}")
    parser.add_argument("--hold", type=float, default=20, help="seconds for which the table `held` keeps its streams open")
    parser.add_argument("--targets", default="", help="only these targets, separated by `;`")
    parser.add_argument("--save", type=Path, help="write the result to this file, as JSON")
    parser.add_argument("--against", type=Path, help="compare with a saved result")
    parser.add_argument("--mitmdump", default=str(Path(sys.executable).with_name("mitmdump")))
    args = parser.parse_args()
    args.turns = args.turns or (3 if args.quick else 4)
    args.seconds = args.seconds or SECONDS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the exit stack ends all processes
    result = measure(args)
    print(table(result))
    if args.save:
        args.save.write_text(json.dumps(result, indent=1) + "\n")
    if args.against:
        print(f"\n{compared(result, json.loads(args.against.read_text()))}")


if __name__ == "__main__":
    main()
