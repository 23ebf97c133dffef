"""What is measured side by side: how each is started, what it cost, and how it is stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ROOT", "Cost", "Running", "Target", "peers", "start", "targets"]

ROOT = Path(__file__).parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_STARTED_WITHIN = 60.0  # seconds
_VARIABLE = "BENCH_PEER_"


class Target(NamedTuple):
    """A command with `{port}`, `{upstream}` and `{confdir}` to be filled in; none: the load goes straight to the upstream."""

    name: str
    command: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    prefix: str = "/v1"
    tls: bool = True  # it serves TLS on the same port, in front of an upstream with TLS


_MITMDUMP = ("{mitmdump}", "-q", "--listen-host", "127.0.0.1", "--listen-port", "{port}", "--set", "confdir={confdir}", "-k")
_BARE = (*_MITMDUMP, "--mode", "reverse:{upstream}", "--set", "stream_large_bodies=1")
_OURS = (*_MITMDUMP, "-s", str(ROOT / "addon" / "azure_openai.py"))
_SETTINGS = (("AZURE_OPENAI_ENDPOINT", "{upstream}"), ("AZURE_OPENAI_TOKEN", "bench-azure-key"))

# What may cost something, each alone. An option that this addon does not have is left out.
_OPTIONS = {
    "ours, no normalising": "azure_openai_normalize=false",
    "ours, bodies stored": "store_streamed_bodies=true",
    "ours, bodies kept": "azure_openai_keep_bodies=64m",
    "ours, v1": "azure_openai_apiversion=v1",
}


def targets(*, options: bool = True) -> list[Target]:
    found = [Target("direct"), Target("bare mitmdump", _BARE), Target("ours", _OURS, _SETTINGS)]
    if options:
        found += [Target(name, (*_OURS, "--set", option), _SETTINGS) for name, option in _OPTIONS.items()]
    return found + list(peers(os.environ))


def peers(environ: os._Environ[str] | dict[str, str]) -> Iterator[Target]:
    """BENCH_PEER_NAME="command with {port} and {upstream}": it gets AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_PROXY_ADDRESS too."""
    for name, command in sorted(environ.items()):
        if name.startswith(_VARIABLE) and command:
            address = ("AZURE_OPENAI_PROXY_ADDRESS", "127.0.0.1:{port}")
            yield Target(name.removeprefix(_VARIABLE).lower(), tuple(command.split()), (*_SETTINGS, address), tls=False)


class Cost(NamedTuple):
    """Of a process, so far."""

    cpu: float  # seconds
    peak: float  # MB of memory
    memory: float  # MB now


class Running:
    """A target that serves."""

    def __init__(self, target: Target, process: subprocess.Popen[bytes] | None, port: int, folder: str, took: float) -> None:
        self.target, self.process, self.port, self.folder, self.started_in = target, process, port, folder, took

    def cost(self) -> Cost:
        """Of the process and what it started."""
        if not self.process:
            return Cost(0.0, 0.0, 0.0)
        return Cost(*map(sum, zip(*(_cost(pid) for pid in _family(self.process.pid)), strict=True)))

    def forget_peak(self) -> None:
        """The peak of memory begins anew."""
        for pid in _family(self.process.pid) if self.process else ():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _family(pid: int) -> list[int]:
    children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cost(pid: int) -> tuple[float, float, float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(line.partition(":")[::2] for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    peak, memory = (int(status[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS"))
    return (int(fields[11]) + int(fields[12])) / _TICKS, peak, memory


def start(target: Target, mitmdump: str, upstream: str, log: IO[bytes], core: int | None) -> Running:
    """Start `target` on a free port, pinned to a core, and wait until it listens."""
    port = free_port()
    folder = tempfile.mkdtemp(prefix="bench-")
    if not target.command:
        return Running(target, None, int(upstream.rpartition(":")[2]), folder, 0.0)
    fill = {"port": str(port), "upstream": upstream, "confdir": folder, "mitmdump": mitmdump}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "OPENAI_", _VARIABLE))}
    environ |= {name: value.format(**fill) for name, value in target.variables}
    begun = time.monotonic()
    process = subprocess.Popen([part.format(**fill) for part in target.command], env=environ, stdout=log, stderr=log, cwd=folder)
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    while time.monotonic() < begun + _STARTED_WITHIN and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.005)
        else:
            return Running(target, process, port, folder, time.monotonic() - begun)
    process.kill()
    raise RuntimeError(f"{target.name} does not start: {' '.join(process.args if isinstance(process.args, list) else [])}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
