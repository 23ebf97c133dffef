"""Load test with faults: 64 clients on a proxy with six backends.

Three backends of one model are killed, throttled or interrupted at any time. One of them is healthy at each moment, and the next one
becomes healthy before it fails, so every request can succeed and must. Three backends of another model (`soak_edges`) close idle
connections, change their addresses and certificates, and send TLS alerts, informational responses and trailers; how often each request
arrives at them is checked too.

Each request has a unique word, which its response must contain. An interrupted stream must report an error. At the end the results are
printed, and the exit status is 1 if one of them is wrong, or if the proxy's memory has grown.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import httpx
import soak_edges
import steady
from mitmproxy.certs import CertStore

from azure_simulator import Cut, Delay, Fault, Simulator, reshape, status
from support.processes import RECORDER, SCRIPT, Mitmdump

CLIENTS = 64
PAUSE = 0.2  # seconds between two requests of one client
WELL = 3.0  # seconds for which the next backend is healthy before the current one fails
WARM_UP = 30.0  # seconds, until garbage collection is in balance
CHANGE = 3.0  # seconds between changes of addresses and certificates
MOST_GROWTH = 64  # megabytes of growth allowed after the warm-up

TROUBLE: dict[str, list[Fault]] = {
    "throttled": [status(429, retry_after=1)],
    "busy": [status(503)],
    "broken": [status(500)],
    "closed": [Cut()],
    "reset": [Cut(reset=True)],
    "cut": [Cut(after=4)],
    "half": [Cut(byte=30)],
    "error event": [reshape.error_event(0)],
    "slow, then closed": [Delay(0.3), Cut()],
}


TWO_LOST = "failure of a request that two backends have lost"
GOOD = ("JSON", "stream", "interrupted stream with an error", "failure while no backend was healthy throughout", TWO_LOST)


class Trouble:
    """Injects faults, and keeps one backend healthy at all times."""

    def __init__(self, simulators: list[Simulator], seed: int) -> None:
        self.simulators = simulators
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.down: set[Simulator] = set()
        self.counts: Counter[str] = Counter()
        self.well_since = dict.fromkeys(simulators, time.monotonic())

    def well_all_the_while(self, began: float) -> bool:
        """Whether one backend has been healthy since `began`."""
        return any(since <= began for since in self.well_since.values())

    def lost(self, word: str) -> bool:
        """Whether the request arrived at two backends at most (one that is killed may not have read it), and none answered it.

        At each of them it may arrive twice: if a reused connection is closed at once, the request is sent again on a new one.
        """
        arrived = [found for found in self.arrivals(word) if found]
        return len(arrived) <= 2 and all(len(found) <= 2 and "answered" not in found for found in arrived)

    def arrivals(self, word: str) -> list[list[str | None]]:
        """The outcomes of the request at each backend."""
        quoted = f'"{word}"'.encode()
        return [[received.outcome for received in simulator.requests if quoted in received.body] for simulator in self.simulators]

    def heal(self, simulator: Simulator) -> None:
        simulator.faults.clear()
        if simulator in self.down:
            simulator.start()
            self.down.discard(simulator)

    def harm(self, simulator: Simulator) -> None:
        self.well_since.pop(simulator, None)
        self.heal(simulator)
        kind = self.random.choice([*TROUBLE, "killed", "killed"])
        self.counts[kind] += 1
        if kind == "killed":
            simulator.stop()
            self.down.add(simulator)
        else:
            simulator.faults.always(*TROUBLE[kind])

    async def run(self) -> None:
        well = self.simulators[0]
        for turn in itertools.count():
            for simulator in self.simulators:
                if simulator is not well:
                    await asyncio.to_thread(self.harm, simulator)
            await asyncio.sleep(self.random.uniform(0.5, 2))
            if turn % 3 == 2:
                following = self.random.choice([simulator for simulator in self.simulators if simulator is not well])
                await asyncio.to_thread(self.heal, following)
                self.well_since[following] = time.monotonic()
                await asyncio.sleep(WELL)
                well = following


class Figures:
    def __init__(self) -> None:
        self.round = 0
        """0 in the warm-up, then 1: words are unique."""
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self.at_edges: dict[str, str] = {}
        """The outcomes of the requests to `soak_edges`, by word."""


async def client(number: int, proxy: Mitmdump, trouble: Trouble, until: float, figures: Figures) -> None:
    key = trouble.simulators[0].key
    async with httpx.AsyncClient(base_url=proxy.url, headers={"api-key": key}, timeout=60, trust_env=False) as http:
        for turn in itertools.count():
            if time.monotonic() > until:
                return
            word, stream = f"word-{number}-{turn}-{figures.round}", bool(turn % 2)
            model = soak_edges.MODEL if turn % 4 < 2 else "gpt-4o"
            began = time.monotonic()
            outcome = await ask(http, word, model, stream=stream)
            figures.slowest = max(figures.slowest, time.monotonic() - began)
            if model == soak_edges.MODEL:
                figures.at_edges[word] = outcome
                figures.counts[outcome if outcome in GOOD else f"{outcome[:3]} of two backends"] += 1
                await asyncio.sleep(PAUSE)
                continue
            if outcome[0].isdigit() and not trouble.well_all_the_while(began):
                outcome = "failure while no backend was healthy throughout"
            if outcome.startswith("502") and "upstream_error" in outcome and await asyncio.to_thread(trouble.lost, word):
                outcome = TWO_LOST  # a request that Azure may have processed is sent to one other backend at most
            figures.counts[outcome] += 1
            if outcome not in GOOD:
                figures.wrong.append(f"{word}: {outcome}, arrived: {await asyncio.to_thread(trouble.arrivals, word)}")
            await asyncio.sleep(PAUSE)


async def ask(http: httpx.AsyncClient, word: str, model: str, *, stream: bool) -> str:
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": word}]}
    text, ended, told = "", False, False
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                return f"{response.status_code} {(await response.aread())[:200]!r}"
            if not stream:
                text = json.loads(await response.aread())["choices"][0]["message"]["content"]
                return "JSON" if text == f"You said: {word}" else f"response to another request: {text}"
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(data)
                    told |= "error" in event
                    text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
    except httpx.HTTPError as error:
        if not stream or not text:
            return f"{type(error).__name__}: {error}"
        told = True
    if not f"You said: {word}".startswith(text):
        return f"response to another request: {text}"
    if ended and not told:
        return "stream" if text == f"You said: {word}" else f"incomplete response: {text}"
    return "interrupted stream with an error" if told else "incomplete response without an error"


async def change(edges: soak_edges.Edges) -> None:
    while True:
        await asyncio.sleep(CHANGE)
        await asyncio.to_thread(edges.change)


async def load(
    proxy: Mitmdump, simulators: list[Simulator], edges: soak_edges.Edges, seconds: float, seed: int
) -> tuple[Figures, Trouble, float]:
    figures, trouble = Figures(), Trouble(simulators, seed)
    pid = proxy.pid
    await asyncio.gather(*(client(number, proxy, trouble, time.monotonic() + WARM_UP, figures) for number in range(CLIENTS)))
    before = await asyncio.to_thread(steady.memory, pid)
    figures.round = 1
    troubling = [asyncio.create_task(trouble.run()), asyncio.create_task(change(edges))]
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(number, proxy, trouble, until, figures) for number in range(CLIENTS)))
    for task in troubling:
        task.cancel()
    await asyncio.wait(troubling)
    figures.wrong += edges.wrong(figures.at_edges)
    return figures, trouble, await asyncio.to_thread(steady.memory, pid) - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--steady", action="store_true", help="test for growing memory, with every kind of request and without faults")
    parser.add_argument("--rate", type=float, default=20, help="requests a second (with --steady)")
    asked = parser.parse_args()
    if asked.steady:
        return steady.main(asked.seconds, asked.rate)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the simulators log broken connections
    seed = asked.seed if asked.seed is not None else int(time.time())
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        simulators = [stack.enter_context(Simulator()) for _ in range(3)]
        entries = [
            {"name": f"b{index}", "endpoint": simulator.http_url, "token": simulator.key, "models": ["gpt-4o"]}
            for index, simulator in enumerate(simulators)
        ]
        edges = stack.enter_context(soak_edges.Edges(home, seed))
        entries += [{"name": edge.name[:6], "endpoint": edge.url, "token": "key", "models": [soak_edges.MODEL]} for edge in edges.edges]
        (home / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}), encoding="utf-8")
        CertStore.from_store(home, "mitmproxy", 2048)
        quiet = {"flow_detail": 0, "termlog_verbosity": "warn", "ssl_verify_upstream_trusted_ca": edges.ca}
        env = {"HOSTS_FILE": str(edges.hosts)}
        with Mitmdump(home, home, options=quiet, env=env, scripts=(SCRIPT, RECORDER / "hosts.py")) as proxy:
            figures, trouble, growth = asyncio.run(load(proxy, simulators, edges, asked.seconds, seed))
        for simulator in list(trouble.down):
            trouble.heal(simulator)
    print(f"{asked.seconds:g} seconds, {CLIENTS} clients, seed {seed}")
    print("trouble:", ", ".join(f"{count} {kind}" for kind, count in trouble.counts.most_common()))
    print("edges:", ", ".join(f"{count} {kind}" for kind, count in edges.counts.most_common()))
    for outcome, count in figures.counts.most_common():
        print(f"{count:8} {outcome}")
    print(f"slowest {figures.slowest:.1f} s, memory {growth:+.1f} MB (at most {MOST_GROWTH})")
    for line in figures.wrong[:20]:
        print("WRONG", line)
    return 1 if figures.wrong or growth > MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
