"""Run several processes of the proxy behind HAProxy on one port (`make scale N=4`). Ctrl-C or SIGTERM ends all of them."""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mitmproxy.options import Options

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "addon"))

from azure_openai_proxy.config import parsers, sources  # noqa: E402 - found by the line above
from azure_openai_proxy.errors import SettingsError  # noqa: E402

METRICS = "azure_openai_metrics"
CONFIG = ROOT / "deploy" / "haproxy" / "haproxy.cfg"


def configuration(bind: str, ports: list[int]) -> str:
    """The repository's configuration with a `server` line for each process."""
    servers = "\n".join(f"  server process{number} 127.0.0.1:{port} check" for number, port in enumerate(ports, 1))
    return CONFIG.read_text(encoding="utf-8").replace("${BIND}", bind).replace("  # SERVERS", servers)


def command(port: int, arguments: list[str], metrics: parsers.Address | None = None) -> list[str]:
    # Behind the load balancer all clients seem local, so no client may reach this machine's own services.
    ours = ["--listen-host", "127.0.0.1", "--listen-port", str(port), "--set", "azure_openai_allowed_destinations=public"]
    if metrics:
        ours += ["--set", f"{METRICS}={metrics}"]
        arguments = without(METRICS, arguments)
    return [sys.executable, "-m", "azure_openai_proxy.cli.command", *ours, *arguments]


def without(name: str, arguments: list[str]) -> list[str]:
    """The arguments without `--set name=...`."""
    kept: list[str] = []
    for argument in arguments:
        if kept and kept[-1] == "--set" and argument.startswith(f"{name}="):
            kept.pop()
        elif not argument.startswith(f"--set={name}="):
            kept.append(argument)
    return kept


def metrics_address(arguments: list[str]) -> parsers.Address | None:
    """The configured address of the metrics, from the command line, the environment or a file.

    Raises:
        SettingsError: it, or a configuration file, is invalid.
    """
    options = Options()
    given = sources.command_line(arguments, options)
    confdir = next(iter(given.sets.get("confdir", ())), options.confdir)
    found, _ = sources.gather(given, os.environ, confdir)
    return parsers.metrics_address(str(found[METRICS].raw).strip()) if METRICS in found else None


def following(address: parsers.Address | None, number: int) -> parsers.Address | None:
    """The address of the process with this number: each has the next port, or one that the kernel chooses."""
    return address._replace(port=address.port + number) if address and address.port else address


def serves(port: int) -> bool:
    """Whether the process at this port answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def running(processes: list[subprocess.Popen[bytes]], stops: list[int]) -> bool:
    """Whether all processes run and no signal asked for their end."""
    return not stops and all(process.poll() is None for process in processes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-n", type=int, default=os.cpu_count() or 1, metavar="N", help="number of processes (default: one for each core, %(default)s)"
    )
    parser.add_argument("--bind", default=":8080", help="address for clients (default %(default)s)")
    parser.add_argument("--first-port", type=int, default=18080, help="the first of the processes' own ports (default %(default)s)")
    asked, arguments = parser.parse_known_args()
    if not (haproxy := shutil.which("haproxy")):
        sys.stderr.write("haproxy is not installed: apt install haproxy, or brew install haproxy\n")
        return 1
    try:
        metrics = metrics_address(arguments)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    ports = [asked.first_port + number for number in range(asked.n)]
    stops: list[int] = []  # not an Event: a signal handler that interrupts `set` would wait for its lock forever
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.append(number))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "addon"), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="azure-openai-proxy-") as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(configuration(asked.bind, ports), encoding="utf-8")
        # Own process groups, so that Ctrl-C reaches this process only, which then ends the others in order.
        commands = [command(port, arguments, following(metrics, number)) for number, port in enumerate(ports)]
        workers = [subprocess.Popen(each, env=environment, start_new_session=True) for each in commands]
        # HAProxy considers a server healthy until its checks fail, so that it would close the connections of the first clients.
        while running(workers, stops) and not all(map(serves, ports)):
            time.sleep(0.1)
        balancers = []
        if running(workers, stops):
            balancers = [subprocess.Popen([haproxy, "-db", "-f", str(config)], start_new_session=True)]
            print(f"{asked.n} processes behind {asked.bind}", flush=True)
            if metrics:
                print("Metrics for Prometheus: " + ", ".join(str(following(metrics, number)) for number in range(asked.n)), flush=True)
            if not os.environ.get("AZURE_OPENAI_HOSTS"):  # the load balancer forwards the clients' Host and connects over loopback
                print("With a configured key, set the names by which clients reach this machine: AZURE_OPENAI_HOSTS=NAME,...", flush=True)
        while running([*balancers, *workers], stops):
            time.sleep(0.5)
        ended = [code for process in (*balancers, *workers) if (code := process.poll()) is not None]  # unexpectedly
        for balancer in balancers:
            balancer.send_signal(signal.SIGUSR1)  # accepts no new connections and ends after the last one
        for worker in workers:
            worker.terminate()
        codes = [worker.wait() for worker in workers]
        for balancer in balancers:
            balancer.terminate()
            balancer.wait()
    return max((abs(code) for code in (*codes, *ended)), default=0)


if __name__ == "__main__":
    sys.exit(main())
