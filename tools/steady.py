"""Long load test without faults, for memory leaks of the proxy: `make soak ARGS="--steady --seconds 3600"`.

It sends every kind of request that leaks memory in some proxies: chats, complete streams and aborted streams, embeddings, uploads,
errors and WebSockets, over kept and over new connections. The rate of requests is constant, regardless of the responses. Memory is
measured each minute; after the warm-up it may grow by `MOST_GROWTH`. Ctrl-C or SIGTERM ends the test and prints the results so far.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import signal
import ssl
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from mitmproxy.certs import CertStore
from websockets.asyncio.client import connect

from azure_simulator import Delay, Simulator
from support.processes import Mitmdump

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = ["main"]

WARM_UP = 300.0  # seconds
MOST_GROWTH = 16.0  # megabytes, from the highest minute of the warm-up to the last minute
BACKENDS = 2
STAYING = 16  # clients with kept connections

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "How do you do? " * 20}]}
UPLOAD = 2_000_000  # bytes
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # httpx would load all CA certificates for each new client


async def chat(http: httpx.AsyncClient) -> bool:
    return (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def stream(http: httpx.AsyncClient) -> bool:
    async with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        return response.status_code == 200 and (await response.aread()).endswith(b"data: [DONE]\n\n")


async def left(http: httpx.AsyncClient) -> bool:
    """A client that disconnects during a stream."""
    async with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        async for _ in response.aiter_raw():
            return True
    return False


async def embeddings(http: httpx.AsyncClient) -> bool:
    asked = {"model": "text-embedding-3-small", "input": ["one", "two"]}
    return (await http.post("/v1/embeddings", json=asked)).status_code == 200


async def upload(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("lines.jsonl", b"{}\n" * (UPLOAD // 3))})
    return answer.status_code in (200, 201)


async def refused(http: httpx.AsyncClient) -> bool:
    answer = await http.post("/v1/chat/completions", json=CHAT | {"model": "nobody-s"})
    return answer.status_code == 404


async def unreadable(http: httpx.AsyncClient) -> bool:
    return (await http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})).status_code == 400


async def realtime(http: httpx.AsyncClient) -> bool:
    address = str(http.base_url).replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    async with connect(address, additional_headers={"api-key": http.headers["api-key"]}, subprotocols=["realtime"]) as talk:  # type: ignore[list-item]
        first = json.loads(await talk.recv())
        await talk.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "instructions": "Be brief."}}))
        return bool(first["type"] == "session.created" and json.loads(await talk.recv())["type"] == "session.updated")


MIX: tuple[tuple[Callable[[httpx.AsyncClient], Awaitable[bool]], int], ...] = (
    (chat, 8),
    (stream, 6),
    (left, 1),
    (embeddings, 2),
    (refused, 1),
    (unreadable, 1),
    (realtime, 1),
    (upload, 1),
)


def kinds() -> Iterator[Callable[[httpx.AsyncClient], Awaitable[bool]]]:
    """The kinds in the proportions of `MIX`, evenly interleaved."""
    order = sorted(((turn + 0.5) / share, number) for number, (_, share) in enumerate(MIX) for turn in range(share))
    return itertools.cycle([MIX[number][0] for _, number in order])


class Steady:
    def __init__(self, proxy: Mitmdump, simulators: Sequence[Simulator], rate: float) -> None:
        self.proxy, self.simulators, self.key, self.rate = proxy, simulators, simulators[0].key, rate
        self.began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.minutes: list[tuple[float, float]] = []  # seconds since the beginning, megabytes
        self.running: set[asyncio.Task[None]] = set()

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.proxy.url, headers={"api-key": self.key}, timeout=60, trust_env=False, verify=NO_TLS)

    async def run(self, seconds: float) -> None:
        staying = [self.client() for _ in range(STAYING)]
        order = kinds()
        looked = 0.0
        for turn in itertools.count():
            now = time.monotonic() - self.began
            if now >= seconds:
                break
            if now >= looked:
                looked += min(60.0, seconds / 10)
                self.look()
            http = staying[turn % STAYING] if turn % 4 else None
            task = asyncio.create_task(self.one(next(order), http))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
            await asyncio.sleep(max(0.0, self.began + (turn + 1) / self.rate - time.monotonic()))
        await asyncio.gather(*self.running)
        for http in staying:
            await http.aclose()
        self.look()

    async def one(self, kind: Callable[[httpx.AsyncClient], Awaitable[bool]], http: httpx.AsyncClient | None) -> None:
        try:
            if http:
                fine = await kind(http)
            else:
                async with self.client() as fresh:
                    fine = await kind(fresh)
            self.counts[kind.__name__] += 1
            if not fine:
                self.wrong.append(kind.__name__)
        except Exception as error:  # noqa: BLE001 - every error counts as wrong
            self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    def look(self) -> None:
        now = time.monotonic() - self.began
        self.minutes.append((now, memory(self.proxy.pid)))
        for simulator in self.simulators:  # the recorded requests of an hour would be gigabytes
            simulator.reset()
            simulator.faults.always(Delay(0.01))
        done = sum(self.counts.values())
        print(f"{now:6.0f} s  {done:8,} requests  {len(self.wrong)} wrong  {self.minutes[-1][1]:6.1f} MB", flush=True)

    def growth(self, warm_up: float) -> float:
        """Megabytes, from the highest measurement of the warm-up to the last one."""
        first = self.minutes[0][0]
        return self.minutes[-1][1] - max(megabytes for at, megabytes in self.minutes if at <= max(first, warm_up))


def memory(pid: int) -> float:
    """The resident memory of a process, in megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main(seconds: float, rate: float) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the simulators log broken connections
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        simulators = [stack.enter_context(Simulator()) for _ in range(BACKENDS)]
        entries = [
            {"name": f"b{index}", "endpoint": simulator.http_url, "token": simulator.key} for index, simulator in enumerate(simulators)
        ]
        (home / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}), encoding="utf-8")
        CertStore.from_store(home, "mitmproxy", 2048)
        with Mitmdump(home, home, options={"flow_detail": 0, "termlog_verbosity": "warn"}) as proxy:
            steady = Steady(proxy, simulators, rate)
            try:
                asyncio.run(steady.run(seconds))
            except KeyboardInterrupt:
                steady.look()
    took = steady.minutes[-1][0]
    print(f"{took:.0f} seconds, {rate:g} requests a second:", ", ".join(f"{count:,} {name}" for name, count in steady.counts.most_common()))
    growth = steady.growth(min(WARM_UP, took / 3))
    print(f"memory {growth:+.1f} MB after the warm-up (at most {MOST_GROWTH:g})")
    for line in steady.wrong[:20]:
        print("WRONG", line)
    return 1 if steady.wrong or growth > MOST_GROWTH else 0
