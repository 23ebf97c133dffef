"""`python -m azure_simulator`: one JSON line with the addresses, then answers until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from . import Cut, Delay, Fault, Received, Simulator, reshape, status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

# flag, what argparse needs to know, the fault it stands for. They apply in this order: what changes events before what changes bytes.
_FAULTS: tuple[tuple[str, dict[str, Any], Callable[[Any], Fault]], ...] = (
    ("--fail", {"type": int, "metavar": "STATUS", "help": "answer with this status"}, status),
    ("--async-filter", {"action": "store_true", "help": "asynchronous content filter"}, lambda _: reshape.async_filter()),
    ("--no-filter", {"action": "store_true", "help": "no content filter"}, lambda _: reshape.no_filter),
    ("--error-event", {"type": int, "metavar": "N", "help": "an error as chunk N of a stream"}, reshape.error_event),
    ("--no-done", {"action": "store_true", "help": "no [DONE] at a stream's end"}, lambda _: reshape.no_done),
    ("--crlf", {"action": "store_true", "help": "line ends of streams are CR LF"}, lambda _: reshape.crlf),
    ("--no-content-type", {"action": "store_true", "help": "answers without a content type"}, lambda _: reshape.no_content_type),
    ("--compress", {"choices": ["gzip", "deflate"], "help": "compressed answers"}, reshape.compressed),
    ("--delay", {"type": float, "metavar": "SECONDS", "help": "wait before each answer"}, Delay),
    ("--chunk-delay", {"type": float, "metavar": "SECONDS", "help": "wait between chunks"}, lambda seconds: Delay(seconds, "each")),
    ("--cut", {"type": int, "metavar": "N", "help": "break off after N chunks"}, Cut),
)


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="azure_simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of plain HTTP (default: a free one)")
    parser.add_argument("--https-port", type=int, default=0, help="of HTTPS (default: a free one)")
    parser.add_argument("--key", default="azure-key-0123456789abcdef", help="the api-key to accept")
    parser.add_argument("--entra-token", action="append", default=[], metavar="TOKEN", help="a Bearer token to accept; repeatable")
    parser.add_argument("--deployment", action="append", default=[], metavar="NAME=MODEL", help="one more deployment; repeatable")
    parser.add_argument("--name", action="append", default=[], metavar="HOST", help="one more name in the certificate; repeatable")
    parser.add_argument("--log", action="store_true", help="a line on stderr for each request")
    parser.add_argument("--times", type=int, metavar="N", help="the switches below for the first N requests only")
    for flag, details, _ in _FAULTS:
        parser.add_argument(flag, **details)
    return parser.parse_args(argv)


def _log(received: Received) -> None:
    print(f"{received.method} {received.path} {received.status} {received.outcome}", file=sys.stderr, flush=True)  # noqa: T201 - asked for


def main(argv: Sequence[str] | None = None) -> None:
    asked = _arguments(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    simulator = Simulator(
        key=asked.key,
        entra_tokens=asked.entra_token,
        names=asked.name,
        port=asked.port,
        https_port=asked.https_port,
        on_request=_log if asked.log else None,
    )
    for pair in asked.deployment:
        name, _, model = pair.partition("=")
        simulator.deployments[name] = model or name
    given = [(getattr(asked, _name(flag)), make) for flag, _, make in _FAULTS]
    faults = [make(value) for value, make in given if value is not None and value is not False]
    if asked.times is None:
        simulator.faults.always(*faults)
    else:
        simulator.faults.next(*faults, times=asked.times)
    with simulator:
        addresses = {"http_url": simulator.http_url, "https_url": simulator.https_url, "ca": str(simulator.ca), "key": simulator.key}
        print(json.dumps(addresses), flush=True)  # noqa: T201 - the parent process reads this
        stop.wait()


if __name__ == "__main__":
    main()
