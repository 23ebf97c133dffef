"""Run several processes of the proxy behind HAProxy on one port (`make scale N=4`). Ctrl-C or SIGTERM ends all of them."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "deploy" / "haproxy" / "haproxy.cfg"


def configuration(bind: str, ports: list[int]) -> str:
    """The repository's configuration with a `server` line for each process."""
    servers = "\n".join(f"  server process{number} 127.0.0.1:{port} check" for number, port in enumerate(ports, 1))
    return CONFIG.read_text(encoding="utf-8").replace("${BIND}", bind).replace("  # SERVERS", servers)


def command(port: int, arguments: list[str]) -> list[str]:
    # Behind the load balancer all clients seem local, so no client may reach this machine's own services.
    ours = ["--listen-host", "127.0.0.1", "--listen-port", str(port), "--set", "azure_openai_allowed_destinations=public"]
    return [sys.executable, "-m", "azure_openai_proxy.cli.command", *ours, *arguments]


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
    ports = [asked.first_port + number for number in range(asked.n)]
    stops: list[int] = []  # not an Event: a signal handler that interrupts `set` would wait for its lock forever
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.append(number))
    environment = os.environ | {"PYTHONPATH": str(ROOT / "addon"), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryDirectory(prefix="azure-openai-proxy-") as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(configuration(asked.bind, ports), encoding="utf-8")
        # Own process groups, so that Ctrl-C reaches this process only, which then ends the others in order.
        workers = [subprocess.Popen(command(port, arguments), env=environment, start_new_session=True) for port in ports]
        balancer = subprocess.Popen([haproxy, "-db", "-f", str(config)], start_new_session=True)
        print(f"{asked.n} processes behind {asked.bind}", flush=True)
        if not os.environ.get("AZURE_OPENAI_HOSTS"):  # the load balancer forwards the clients' Host and connects over loopback
            print("With a configured key, set the host names by which clients reach this machine: AZURE_OPENAI_HOSTS=NAME,...", flush=True)
        everyone = [balancer, *workers]
        while not stops and all(process.poll() is None for process in everyone):
            time.sleep(0.5)
        ended = [code for process in everyone if (code := process.poll()) is not None]  # unexpectedly
        balancer.send_signal(signal.SIGUSR1)  # accepts no new connections and ends after the last one
        for worker in workers:
            worker.terminate()
        codes = [worker.wait() for worker in workers]
        balancer.terminate()
        balancer.wait()
    return max((abs(code) for code in (*codes, *ended)), default=0)


if __name__ == "__main__":
    sys.exit(main())
