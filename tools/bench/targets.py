"""The targets of the benchmark: how each is started, measured and stopped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = [
    "ACCOUNTING",
    "AFFINE",
    "NOT_AFFINE",
    "PAGE_OPEN",
    "PEDESTAL",
    "ROOT",
    "SEEN",
    "UNSEEN",
    "Cost",
    "Running",
    "Target",
    "accounting",
    "free_ports",
    "ours",
    "peers",
    "scaled",
    "start",
    "targets",
]

ROOT = Path(__file__).parents[2]
PEDESTAL = "bare mitmdump"
UNSEEN = "ours in mitmweb, unseen"
SEEN = "ours in mitmweb"
PAGE_OPEN = "ours in mitmweb, page open"
_STARTED_WITHIN = 120.0  # seconds
_VARIABLE = "BENCH_PEER_"


class Target(NamedTuple):
    """A command with the placeholders `{port}`, `{upstream}` and `{confdir}`. Without a command requests go directly to the upstream."""

    name: str
    command: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    config: str = ""  # content of the file `{config}`, with the same placeholders
    prefix: str = "/v1"
    headers: tuple[str, ...] = ()  # additional request headers, "name: value", with the same placeholders
    tls: bool = True  # serves TLS on the same port, with TLS to the upstream
    option: bool = False  # this proxy with another option: measured in the main cases only
    against: str = PEDESTAL  # the target that its CPU time is compared with


_COMMON = ("--listen-host", "127.0.0.1", "--listen-port", "{port}", "--set", "confdir={confdir}", "-k")
_MITMDUMP = ("{mitmdump}", "-q", *_COMMON)
_BARE = (*_MITMDUMP, "--mode", "reverse:{upstream}", "--set", "stream_large_bodies=1")
_SCRIPT = ("-s", str(ROOT / "addon" / "azure_openai.py"))
_OURS = (*_MITMDUMP, *_SCRIPT)
_MITMWEB = ("{mitmweb}", "-q", *_COMMON, "--no-web-open-browser", "--web-port", "0", *_SCRIPT)
_SETTINGS = (("AZURE_OPENAI_ENDPOINT", "{upstream}"), ("AZURE_OPENAI_TOKEN", "bench-azure-key"))

AFFINE, NOT_AFFINE = "ours, 2 backends, affinity", "ours, 2 backends, no affinity"
ACCOUNTING = "ours, accounting"
_ACCOUNTING = ("azure_openai_metrics=127.0.0.1:0", "azure_openai_access_log=access.log", "azure_openai_ledger=sqlite:///usage.db")

# Options that may cost CPU time, each measured alone.
_OPTIONS = {
    "ours, no normalising": "azure_openai_normalize=false",
    "ours, bodies stored": "store_streamed_bodies=true",
    "ours, bodies kept": "azure_openai_keep_bodies=64m",
    "ours, v1": "azure_openai_apiversion=v1",
}


def targets(*, options: bool = True) -> list[Target]:
    """All targets. mitmweb is measured with its default of views, comments and stored bodies, and without them."""
    found = [Target("direct"), Target(PEDESTAL, _BARE), ours()]
    if options:
        found += [Target(name, (*_OURS, "--set", option), _SETTINGS, option=True) for name, option in _OPTIONS.items()]
        found.append(accounting())
        found += [
            ours(NOT_AFFINE, backends=2, affinity="off")._replace(option=True),
            ours(AFFINE, backends=2, against=NOT_AFFINE)._replace(option=True),
        ]
        blind = ("-s", str(Path(__file__).with_name("unseen.py")))
        found += [
            Target(UNSEEN, (*_MITMWEB, *blind), _SETTINGS, option=True),
            Target(SEEN, _MITMWEB, _SETTINGS, option=True, against=UNSEEN),
            Target(PAGE_OPEN, (*_MITMWEB, "-s", str(Path(__file__).with_name("page_open.py"))), _SETTINGS, option=True, against=SEEN),
        ]
    return found + list(peers(os.environ))


def ours(name: str = "ours", *, backends: int = 0, models: int = 0, affinity: str = "auto", against: str = PEDESTAL) -> Target:
    """This proxy with `backends` backends, of which every second has a list of models, or `models` mappings, half of them patterns."""
    settings: dict[str, object] = {}
    if backends:
        settings["azure_openai_session_affinity"] = affinity
        named = {"models": {f"model-{number}": f"deployment-{number}" for number in range(4)} | {"gpt-4o": "gpt-4o"}}
        settings["azure_openai_backends"] = [
            {"name": f"b{number}", "endpoint": "{upstream}", "token": "bench-azure-key"} | (named if number % 2 else {})
            for number in range(backends)
        ]
    if models:
        settings["azure_openai_model_mapper"] = {
            f"model-{number}{'-*' if number % 2 else ''}": f"deployment-{number}" for number in range(models)
        }
    variables = () if backends else _SETTINGS
    if settings:
        variables = (*variables, ("AZURE_OPENAI_CONFIG", "{config}"))
    return Target(name, _OURS, variables, config=json.dumps(settings), against=against)


def accounting() -> Target:
    """This proxy with metrics, access log and ledger."""
    recorded = tuple(part for option in _ACCOUNTING for part in ("--set", option))
    return Target(ACCOUNTING, (*_OURS, *recorded), _SETTINGS, option=True)


def scaled(count: int, first_port: int) -> Target:
    """`count` processes behind HAProxy, started like `make scale`."""
    command = (sys.executable, str(ROOT / "tools" / "scale.py"), "-n", str(count), "--bind", "127.0.0.1:{port}")
    arguments = ("--first-port", str(first_port), "-q", "--set", "confdir={confdir}", "-k")
    return Target(f"ours, {count} processes", (*command, *arguments), _SETTINGS, tls=False)


def peers(environ: Mapping[str, str]) -> Iterator[Target]:
    """Other proxies, from variables BENCH_PEER_NAME="command with {port} and {upstream}".

    The command also gets AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_PROXY_ADDRESS. Optional variables: BENCH_PEER_NAME__CONFIG is the path
    of a template for the file `{config}`; __PREFIX replaces /v1; __HEADERS ("name: value; name: value", with placeholders) are sent
    with each request.
    """
    address = ("AZURE_OPENAI_PROXY_ADDRESS", "127.0.0.1:{port}")
    for variable, command in sorted(environ.items()):
        if variable.startswith(_VARIABLE) and "__" not in variable and command:
            config, headers = environ.get(f"{variable}__CONFIG"), environ.get(f"{variable}__HEADERS", "")
            yield Target(
                variable.removeprefix(_VARIABLE).lower(),
                tuple(command.split()),
                (*_SETTINGS, address),
                config=Path(config).read_text(encoding="utf-8") if config else "",
                prefix=environ.get(f"{variable}__PREFIX", "/v1"),
                headers=tuple(header.strip() for header in headers.split(";") if header.strip()),
                tls=False,
            )


class Cost(NamedTuple):
    """The resources that a process has used so far."""

    cpu: float  # seconds
    peak: float  # MB of memory
    memory: float  # MB now


class Running:
    """A running target."""

    def __init__(
        self, target: Target, process: subprocess.Popen[bytes] | None, port: int, folder: str, took: float, headers: tuple[str, ...] = ()
    ) -> None:
        self.target, self.process, self.port, self.folder, self.started_in, self.headers = target, process, port, folder, took, headers

    def cost(self) -> Cost:
        """The cost of the process and its children."""
        if not self.process:
            return Cost(0.0, 0.0, 0.0)
        return Cost(*map(sum, zip(*(_cost(pid) for pid in _family(self.process.pid)), strict=True)))

    def forget_peak(self) -> None:
        """Reset the peak of memory."""
        for pid in _family(self.process.pid) if self.process else ():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.terminate()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _family(pid: int) -> list[int]:
    children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cost(pid: int) -> tuple[float, float, float]:
    status = dict(line.partition(":")[::2] for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    peak, memory = (int(status[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS"))
    # The clock of the process, as clock_getcpuclockid(3) returns it. /proc has the same time in hundredths of a second, a part of 0.08 of a
    # turn on a slow machine.
    return time.clock_gettime((~pid << 3) | 2), peak, memory


def start(target: Target, mitmdump: str, upstream: str, log: IO[bytes], cores: Collection[int]) -> Running:
    """Start `target` on a free port and these cores, and wait until it listens.

    Raises:
        RuntimeError: it ended or does not listen in time; the message has the end of its log.
    """
    port = free_ports(1)[0]
    folder = tempfile.mkdtemp(prefix="bench-")
    if not target.command:
        return Running(target, None, int(upstream.rpartition(":")[2]), folder, 0.0)
    config = Path(folder, "config.yaml")  # not in `confdir`, where mitmproxy would read a file of this name
    fill = {"port": str(port), "upstream": upstream, "confdir": str(Path(folder, "conf")), "config": str(config), "mitmdump": mitmdump}
    fill["mitmweb"] = str(Path(mitmdump).with_name("mitmweb"))
    config.write_text(_filled(target.config, fill), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE_", "OPENAI_", _VARIABLE))}
    environ |= {name: _filled(value, fill) for name, value in target.variables}
    command = [_filled(part, fill) for part in target.command]
    begun, mine = time.monotonic(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # inherited by the process and its threads
    try:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=folder)
    finally:
        os.sched_setaffinity(0, mine)
    while time.monotonic() < begun + _STARTED_WITHIN and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.005)
        else:
            headers = tuple(_filled(header, fill) for header in target.headers)
            return Running(target, process, port, folder, time.monotonic() - begun, headers)
    process.kill()
    log.flush()
    raise RuntimeError(f"{target.name} does not start: {' '.join(command)}\n{Path(log.name).read_text(errors='replace')[-2000:]}")


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders. `str.format` would fail on other braces."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def free_ports(count: int) -> list[int]:
    """`count` free consecutive ports."""
    while True:
        with ExitStack() as stack, suppress(OSError):
            first: int = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return list(range(first, first + count))
