"""The Internet, as far as a test needs one, in the gateway's namespace; and a control group for one program of this machine."""

from __future__ import annotations

import http.server
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from azure_simulator import Simulator, tls
from support.network import Family, Network, inside
from support.processes import PATIENCE, Decoy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from support.curl import Curl

__all__ = ["World", "captured", "confined", "no_cgroup", "no_tun", "world"]


class World(NamedTuple):
    network: Network
    azure: Simulator
    decoys: Sequence[Decoy]  # api.openai.com
    third_ca: Path


class Teapot(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(418)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def world(folder: Path, family: Family = "IPv4") -> Iterator[World]:
    network = Network(family)
    try:
        third_ca, context = tls.make(folder, ["third.example"])

        def third_party() -> http.server.HTTPServer:
            class Server(http.server.ThreadingHTTPServer):
                address_family = socket.AF_INET6 if family == "IPv6" else socket.AF_INET

            server = Server((network.at.third, 443), Teapot)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return server

        decoys = [inside(network.gateway, lambda port=port: Decoy(network.at.openai, port)) for port in (80, 443)]  # type: ignore[misc]
        third = inside(network.gateway, third_party)
        azure = Simulator()
        inside(network.gateway, azure.__enter__)
        try:
            yield World(network, azure, decoys, third_ca)
        finally:
            azure.__exit__(None, None, None)
            third.shutdown()
            third.server_close()
            for decoy in decoys:
                decoy.close()
    finally:
        network.close()


def no_tun() -> str | None:
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


def no_cgroup() -> str | None:
    """Why there can be no control group of our own."""
    made = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t cgroup2 none "$0" && mkdir "$0/try-$$" && rmdir "$0/try-$$"', "/sys/fs/cgroup"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no control group can be made here: {made.stderr.strip()}" if made.returncode else None


# `--mode local` sees the processes of the control group that is mounted as the root: here, one that has only ours in it.
CONFINED = """
mount -t cgroup2 none /sys/fs/cgroup && mkdir -p /sys/fs/cgroup/$0 && mount --bind /sys/fs/cgroup/$0 /sys/fs/cgroup &&
echo $$ > /sys/fs/cgroup/cgroup.procs && exec "$@"
"""


@contextmanager
def confined(network: Network) -> Iterator[tuple[str, ...]]:
    """What a command is run under to be alone, in the gateway's namespace, with those that are run under the same."""
    try:
        yield (*network.command(network.gateway), "sh", "-c", CONFINED, network.gateway)
    finally:
        remove = 'mount -t cgroup2 none "$0" && rmdir "$0/$1"; umount "$0"'
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["unshare", "-m", "sh", "-c", remove, folder, network.gateway], check=False)


def captured(curl: Curl) -> None:
    """Wait until the kernel hands connections over, some time after the proxy says that it listens: no other process uses that port."""
    deadline = time.monotonic() + PATIENCE
    while (answer := curl("http://third.example")).error:
        assert time.monotonic() < deadline, answer
    assert 502 == answer.status
