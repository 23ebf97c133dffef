"""Two machines in one: a client and a gateway, in network namespaces of their own, for connections that a client does not configure.

    client eth0  10.99.1.2, fd99::2 ──► 10.99.1.1, fd99::1  eth1 gateway

The gateway is where the client's default route leads. All of the Internet is there too, on its loopback: api.openai.com (a decoy)
and third.example, at unassigned addresses, and Azure.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GATEWAY", "INTERNET", "Network", "inside", "needs", "run"]

type Family = Literal["IPv4", "IPv6"]


class Addresses(NamedTuple):
    client: str
    gateway: str
    openai: str
    third: str
    bits: tuple[int, int]


GATEWAY: dict[str, Addresses] = {
    "IPv4": Addresses("10.99.1.2", "10.99.1.1", "198.20.0.10", "198.20.0.20", (24, 32)),
    "IPv6": Addresses("fd99::2", "fd99::1", "2620:98::10", "2620:98::20", (64, 128)),
}
INTERNET = {"api.openai.com": "openai", "third.example": "third"}


def needs(*commands: str, but: str | None = None) -> pytest.MarkDecorator:
    """Skips a test where there can be no namespaces, where a command is missing, and for the reason that comes as `but`."""
    reason = missing(*commands) or but
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def missing(*commands: str) -> str | None:
    """Why there can be no namespaces here, or no such command; None: there can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for command in ("ip", *commands):
        if not shutil.which(command):
            return f"{command} is not installed"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    return f"network namespaces cannot be made here: {made.stderr.strip()}" if made.returncode else None


def run(*command: str, input: str | None = None) -> str:
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def inside[T](namespace: str, do: Callable[[], T]) -> T:
    """Run `do` in that namespace and return its result. Sockets that it opens, and threads that it starts, stay there."""
    result: list[Any] = []

    def enter() -> None:
        with Path("/run/netns", namespace).open() as there:
            os.setns(there.fileno(), os.CLONE_NEWNET)
        try:
            result.append(do())
        except BaseException as error:  # noqa: BLE001 - raised again below
            result.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    value: T = result[0]
    return value


class Network:
    def __init__(self, family: Family = "IPv4") -> None:
        self.at = GATEWAY[family]
        mark = uuid.uuid4().hex[:6]
        self.client, self.gateway = f"client-{mark}", f"gateway-{mark}"
        for name in (self.client, self.gateway):
            run("ip", "netns", "add", name)
            folder = Path("/etc/netns", name)
            folder.mkdir(parents=True)
            (folder / "resolv.conf").write_text("")
            names = "".join(f"{getattr(self.at, field)} {name}\n" for name, field in INTERNET.items())
            (folder / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()}\n::1 localhost\n{names}")
            self.ip(name, "link", "set", "lo", "up")
        self.ip(self.client, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1", "netns", self.gateway)
        near, far = self.at.bits
        self.address(self.client, self.at.client, near, "eth0")
        self.address(self.gateway, self.at.gateway, near, "eth1")
        self.address(self.gateway, self.at.openai, far, "lo")
        self.address(self.gateway, self.at.third, far, "lo")
        self.ip(self.client, "link", "set", "eth0", "up")
        self.ip(self.gateway, "link", "set", "eth1", "up")
        for there in (self.at.openai, self.at.third):  # connections to them come from the gateway's own address, as to another machine
            self.ip(self.gateway, "route", "delete", "local", there, "dev", "lo", "table", "local")
            self.ip(self.gateway, "route", "add", "local", there, "dev", "lo", "table", "local", "src", self.at.gateway)
        self.ip(self.client, "route", "add", "default", "via", self.at.gateway)

    def ip(self, namespace: str, *arguments: str) -> None:
        run("ip", "-6" if ":" in self.at.client else "-4", "-n", namespace, *arguments)

    def address(self, namespace: str, address: str, bits: int, device: str) -> None:
        # nodad: an IPv6 address can be used at once
        self.ip(namespace, "address", "add", f"{address}/{bits}", "dev", device, *(["nodad"] if ":" in address else []))

    def command(self, namespace: str) -> tuple[str, ...]:
        """What a command is run under to run there."""
        return ("ip", "netns", "exec", namespace)

    def close(self) -> None:
        for name in (self.client, self.gateway):
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
