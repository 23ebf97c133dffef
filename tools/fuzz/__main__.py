"""Sends hostile requests through a real mitmdump, over HTTP/1.1, HTTP/2 and WebSocket: `make fuzz`.

Six proxies are tested: dated and v1 Azure, each with and without a configured key, openai mode, and one with the simulator as upstream.
They receive malformed requests, and requests with hostile text in every field that a client controls. The upstream parses the requests
strictly. The first fault ends the run: the request is written to a file, and `--seed S --only N` repeats it. All traffic is on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))

from mitmproxy.certs import CertStore

from azure_simulator import Simulator
from fuzz import checks, inputs
from fuzz.clients import Answer, Http1, Http2, Silence
from fuzz.hostile_input import CONFIGS, CONFIGURED_KEY, KEY_SIGN, Config, Input
from fuzz.upstream import Upstream
from support.hostile_requests import Received
from support.processes import SCRIPT, Mitmdump

if TYPE_CHECKING:
    from azure_simulator.received import Received as Simulated

KEPT = 20_000  # finished requests that may still arrive upstream
WORKERS = {"http1": 3, "raw1": 3, "http2": 2, "websocket": 2, "benign": 1}
STREAMS = 4  # concurrent streams on one HTTP/2 connection
RESENDS = 4  # azure_openai_max_attempts


class Fault(NamedTuple):
    what: str
    sent: Input | None

    @property
    def kind(self) -> str:
        return (
            re.sub(r"[0-9]+", "", self.what)[:60]
            + re.sub(r"[0-9]+", "", self.what)[-40:] * ("Traceback" in self.what)
            + (self.sent.place if self.sent else "")
        )


class Fuzz:
    def __init__(self, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self.arguments = arguments
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
        self.stack = stack
        self.sent: dict[int, Input] = {}
        self.over: deque[int] = deque()
        self.arrived: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.by_transport: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.failed = asyncio.Event()
        self.proxies: dict[Config, Mitmdump] = {}
        self.done = 0

    # -- upstream requests

    def fail(self, what: str, sent: Input | None = None) -> None:
        self.faults.append(Fault(what, sent))
        if not self.arguments.all:
            self.failed.set()

    def take(self, received: Received, host: bytes) -> None:
        number, itself = checks.sender(received)
        sent = self.sent.get(number) if number is not None else None
        if sent is None or number is None:
            self.fail(f"a request that no client sent: {received}")
            return
        self.arrived[number] += 1
        self.counts["arrived upstream"] += 1
        self.by_transport[sent.transport] += 1
        if not itself and not sent.splits:
            self.fail(f"a request made of hostile text: {received}", sent)
        if self.arrived[number] > (RESENDS if sent.config.simulated else 3 if sent.splits else 1):
            self.fail(f"{self.arrived[number]} requests for one: {received}", sent)
        for fault in checks.request_faults(sent, received, host):
            self.fail(f"{fault}, in {received}", sent)

    def take_simulated(self, received: Simulated) -> None:
        line = f"{received.method} {received.path} HTTP/{received.http_version}".encode("utf-8", "surrogateescape")
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in received.headers]
        self.loop.call_soon_threadsafe(self.take, Received(line, fields, received.body), self.simulated_host)

    def take_frames(self, received: Received, data: bytes) -> None:
        self.counts["WebSockets upstream"] += 1
        number, _ = checks.sender(received)
        if broken := checks.frame_faults(data):
            self.fail(broken, self.sent.get(number or 0))

    # -- client requests

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.upstream = Upstream(lambda received: self.take(received, self.upstream.host), self.take_frames)
        server = await self.upstream.start()
        await asyncio.to_thread(self.start)
        began = time.monotonic()
        queues: dict[tuple[Config, str, str], asyncio.Queue[Input]] = {}
        tasks = []
        for config in self.proxies:
            for transport, way in inputs.KINDS:
                for kind in {transport, "raw1"} if transport == "http1" else {transport}:
                    if (config, kind, way) in queues:
                        continue
                    queue = queues[config, kind, way] = asyncio.Queue(32)
                    tasks += [asyncio.create_task(self.work(config, kind, way, queue)) for _ in range(WORKERS[kind])]
        tasks.append(asyncio.create_task(self.watch(began)))
        sender = asyncio.create_task(self.give(queues))
        failed = asyncio.create_task(self.failed.wait())
        await asyncio.wait([sender, failed], return_when=asyncio.FIRST_COMPLETED)
        if sender.done() and not sender.cancelled():
            sender.result()
        for task in (*tasks, sender, failed):
            task.cancel()
        await asyncio.gather(*tasks, sender, failed, return_exceptions=True)
        await asyncio.sleep(0.2)  # for late requests of the proxy
        self.seconds = time.monotonic() - began
        await asyncio.to_thread(self.stop)
        server.close()
        self.look_at_logs()
        self.look_at_files()

    async def give(self, queues: dict[tuple[Config, str, str], asyncio.Queue[Input]]) -> None:
        """Generate the requests in order."""
        only = self.arguments.only
        numbers = [only] if only is not None else range(self.arguments.first, self.arguments.first + self.arguments.requests)
        for number in numbers:
            made = inputs.make(self.arguments.seed, number, [config for config in CONFIGS if config in self.proxies])
            self.sent[number] = made
            await queues[made.config, made.transport, made.way].put(made)
            if self.over_time():
                self.counts["not sent: out of time"] = self.arguments.requests - number + self.arguments.first
                break
        for queue in queues.values():
            await queue.join()

    def over_time(self) -> bool:
        return time.monotonic() - self.started > float(self.arguments.seconds)

    async def work(self, config: Config, transport: str, way: str, queue: asyncio.Queue[Input]) -> None:
        port = self.proxies[config].port
        http1, http2 = Http1(port, way), Http2(port, way)
        kept: list[Input] = []
        while True:
            batch = [kept.pop() if kept else await queue.get()]
            while transport == "http2" and not batch[-1].alone and len(batch) < STREAMS and not queue.empty():
                if (sent := queue.get_nowait()).alone:
                    kept.append(sent)
                    break
                batch.append(sent)
            try:
                if transport == "http2":
                    answers = await http2.ask([sent.data for sent in batch])
                else:
                    answers = [await self.ask1(http1, batch[0])]
                for sent, answer in zip(batch, answers, strict=True):
                    self.took(sent, answer)
            except Silence as error:
                self.fail(str(error), batch[0])
            except OSError as error:
                self.fail(f"the proxy takes no connection: {error}", batch[0])
            except Exception as error:  # noqa: BLE001 - a fault of the response or of this tool: both end the run
                self.fail(f"response not understood: {error!r}", batch[0])
            for _ in batch:
                queue.task_done()

    @staticmethod
    async def ask1(http1: Http1, sent: Input) -> Answer:
        head = sent.case is not None and sent.case.method == b"HEAD"
        fresh = sent.transport in ("raw1", "websocket")
        return await http1.ask(sent.data, head=head, fresh=fresh, frames=sent.frames)

    def took(self, sent: Input, answer: Answer) -> None:
        self.done += 1
        self.counts["answered" if answer.status else "ended by the proxy without an answer"] += 1
        self.counts[f"status {answer.status or '-'}"] += 1
        if self.arguments.verbose:
            print(sent.number, sent.config.name, sent.transport, sent.way, sent.place, answer.status, answer.how, answer.body[:100])
        if answer.status:
            for fault in checks.response_faults(sent, answer.status, list(answer.fields), answer.body):
                self.fail(fault, sent)
        elif sent.transport in ("http1", "benign", "websocket"):
            self.fail(f"no response: {answer.how}", sent)
        self.over.append(sent.number)
        if len(self.over) > KEPT:
            self.sent.pop(self.over.popleft(), None)

    async def watch(self, began: float) -> None:
        said = began
        while True:
            await asyncio.sleep(1)
            self.look_at_logs()
            if time.monotonic() - said > 15 and not self.arguments.quiet:
                said = time.monotonic()
                print(f"{self.done:>8} requests, {self.done / (said - began):.0f} a second", flush=True)

    # -- the proxies

    def start(self) -> None:
        confdir = self.folder / "mitmproxy"
        CertStore.from_store(confdir, "mitmproxy", 2048)
        simulator = self.stack.enter_context(
            Simulator(key=CONFIGURED_KEY, deployments={"gpt-4o": "gpt-4o", "d": "gpt-4o"}, on_request=self.take_simulated)
        )
        self.simulator = simulator
        self.simulated_host = simulator.https_url.partition("//")[2].encode()
        for config in CONFIGS:
            if self.arguments.config and self.arguments.config not in config.name:
                continue
            options: dict[str, object] = {
                "azure_openai_endpoint": simulator.https_url if config.simulated else self.upstream.url,
                "azure_openai_passthrough_endpoint": self.upstream.url,
                "azure_openai_apiversion": config.version,
                "azure_openai_proxy_mode": config.mode,
                "azure_openai_model_mapper": "gpt-4o=gpt-4o",
                "azure_openai_allowed_destinations": "off",
                "ssl_verify_upstream_trusted_ca": simulator.ca if config.simulated else None,
                "save_stream_file": self.flows(config),
                "azure_openai_access_log": self.flows(config).with_suffix(".log"),
                "azure_openai_ledger": f"sqlite:///{self.flows(config).with_suffix('.db')}",
            }
            env = {"AZURE_OPENAI_TOKEN": CONFIGURED_KEY} if config.key else {}
            script = Path(self.arguments.script) if self.arguments.script else SCRIPT
            home = self.folder / config.name.replace(" ", "-").replace("'", "")
            self.proxies[config] = Mitmdump(home, confdir, options=options, env=env, scripts=(script,)).launch()
        for proxy in self.proxies.values():
            proxy.wait_until_ready()
        self.started = time.monotonic()

    def flows(self, config: Config) -> Path:
        return self.folder / f"{config.version}-{config.key}-{config.mode}-{config.simulated}.flows"

    def stop(self) -> None:
        for proxy in self.proxies.values():
            if code := proxy.stop():
                self.fail(f"mitmdump ended with {code}: {proxy.log()[-2000:]}")

    def look_at_logs(self) -> None:
        """Check the log lines of the proxies and discard them."""
        for config, proxy in self.proxies.items():
            lines, lookups, connections = proxy.take()
            self.counts["lines in logs"] += len(lines)
            for line in lines:
                for fault in checks.log_faults(line):
                    self.fail(f"{config.name}: {fault}")
            upstream = (self.simulated_host if config.simulated else self.upstream.host).decode().replace("localhost", "127.0.0.1")
            for connection in connections:
                if connection != upstream and connection.replace("::1", "127.0.0.1") != upstream:
                    self.fail(f"{config.name}: a connection to {connection}")
            for name in lookups:
                if name not in ("127.0.0.1", "localhost", "::1"):
                    self.fail(f"{config.name}: a look-up of {name!r}")
        if hasattr(self, "simulator"):
            self.simulator.reset()

    def look_at_files(self) -> None:
        """Search the saved flows, the access logs and the ledgers for keys, and read each line of the access logs."""
        for config in self.proxies:
            for what, suffix in (("saved flows", ".flows"), ("access logs", ".log"), ("ledgers", ".db")):
                file = self.flows(config).with_suffix(suffix)
                data = file.read_bytes() if file.exists() else b""
                self.counts[f"bytes of {what}"] += len(data)
                for match in re.finditer(f"{CONFIGURED_KEY}|{KEY_SIGN}([0-9]{{8}})".encode(), data):
                    around = data[max(0, match.start() - 700) : match.end() + 100]
                    self.fail(f"a key in the {what}: {around!r}", self.sent.get(int(match[1] or -1)))
                for line in data.splitlines() if suffix == ".log" else ():
                    for fault in checks.access_log_faults(line):
                        self.fail(f"{config.name}: {fault}")

    # -- the end

    def report(self) -> int:
        counts: dict[str, Any] = {"seed": self.arguments.seed, "requests": self.done, "seconds": round(self.seconds, 1)}
        counts["a second"] = round(self.done / self.seconds, 1)
        counts |= {f"arrived over {name}": count for name, count in sorted(self.by_transport.items())} | dict(sorted(self.counts.items()))
        for name, count in counts.items():
            print(f"{name + ':':<40}{count:>12}")
        for fault in {fault.kind: fault for fault in reversed(self.faults)}.values():
            self.tell(fault)
        print("no fault" if not self.faults else f"{len(self.faults)} faults")
        return 1 if self.faults else 0

    def tell(self, fault: Fault) -> None:
        print(f"FAULT: {fault.what}")
        sent = fault.sent
        if sent is not None:
            file = Path(self.arguments.folder) / f"fuzz-{self.arguments.seed}-{sent.number}.bin"
            file.write_bytes(sent.data + sent.frames)
            print(f"  {sent.transport} ({sent.way}) to the proxy “{sent.config.name}”, hostile text in: {sent.place}")
            print(f"  the bytes: {file}; again: make fuzz ARGS='--seed {self.arguments.seed} --only {sent.number}'")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="number of requests (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3600, help="limit of the duration in seconds (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(3)), help="seed of the requests; the same seed generates the same requests"
    )
    parser.add_argument("--first", type=int, default=0, help="the number of the first request (%(default)s)")
    parser.add_argument("--only", type=int, help="send only the request with this number")
    parser.add_argument("--config", help="use only proxies whose name contains this text, which changes the requests")
    parser.add_argument("--folder", default=".", help="directory for the request that caused a fault (%(default)s)")
    parser.add_argument("--script", help="another version of addon/azure_openai.py")
    parser.add_argument("--all", action="store_true", help="go on after a fault")
    parser.add_argument("--verbose", action="store_true", help="print every request and its status")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    arguments = parser.parse_args()
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # the simulator logs rejected requests
    print(f"seed {arguments.seed}", flush=True)
    with ExitStack() as stack:
        fuzz = Fuzz(arguments, stack)
        asyncio.run(fuzz.run())
        return fuzz.report()


if __name__ == "__main__":
    sys.exit(main())
