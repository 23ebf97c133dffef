"""All sinks of usage records at once: 500 mixed calls, after which each sink has the same account, which is the simulated Azure's own."""

from __future__ import annotations

import json
import random
import re
import signal
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from azure_simulator import Cut, Gate, Simulator, status
from support.access_log import AccessLog
from support.collector import Collector, attributes
from support.processes import PATIENCE, Mitmdump
from support.prometheus import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from azure_simulator import Fault
    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call

CALLS = 500
WORDS = "one two three"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": WORDS}]}
STREAM = CHAT | {"stream": True}
TOKENS = ("input", "cached_input", "cache_write_input", "output", "reasoning_output", "audio_input", "audio_output")
FIELDS = tuple(f"{name}_tokens" for name in TOKENS)
COMPARED = (*FIELDS, *("operation", "model", "deployment", "backend", "response_model", "status", "error_code", "stream", "incomplete"))

type Billed = dict[str, int]
"""What Azure reported of one call, by the names of the fields."""


class Expected(NamedTuple):
    """What the account of a call must be."""

    status: int | None
    usage: str = "none"  # known, unknown or none
    attempts: int = 1  # 0: not known in advance
    repaired: bool = False
    tokens: Billed | None = None  # None: those that the simulator billed


@dataclass
class World:
    """The proxy with all sinks, and the simulator's own account."""

    azure: Simulator
    mitmdump: Mitmdump
    http: httpx.Client
    log: AccessLog
    random: random.Random = field(default_factory=lambda: random.Random(16))
    billed: list[Billed] = field(default_factory=list)
    lines: int = 0
    """Lines of the access log for the calls that are over. Each comes a little after its answer."""

    def bill(self, answer: Answer, call: Call) -> Answer:
        """Give the usage in an answer made-up numbers, and note them."""
        del call
        usage = {"input": self.random.randrange(1, 5000), "output": self.random.randrange(1, 500)}
        usage |= {"cached": self.random.randrange(usage["input"] + 1), "reasoning": self.random.randrange(usage["output"] + 1)}
        noted: Billed = {}
        if answer.status < 400:
            answer = replace(answer, parts=tuple(_billed(part, usage, noted) if isinstance(part, bytes) else part for part in answer.parts))
        if noted:
            self.billed.append(noted)
        return answer

    def fault(self, *faults: Fault, deployment: str | None = None) -> None:
        """The next request (of a deployment) gets these faults; Azure bills it all the same."""
        self.azure.faults.next(self.bill, *faults, deployment=deployment)

    def post(self, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)


_NAMES = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cached": "cached_input_tokens",
    "reasoning": "reasoning_output_tokens",
}
_USAGE = {"prompt_tokens": "input", "input_tokens": "input", "completion_tokens": "output", "output_tokens": "output"}
_USAGE |= {"cached_tokens": "cached", "reasoning_tokens": "reasoning"}


def _billed(part: bytes, usage: dict[str, int], noted: Billed) -> bytes:
    """A body or an event with other numbers in each `usage`."""
    event, data = (b"data: ", part.removeprefix(b"data: ")) if part.startswith(b"data: ") else (b"", part)
    lead = b""
    if not event and (match := re.match(rb"(event: [^\n]*\ndata: )", part)):
        lead, data = match[1], part[len(match[1]) :]
    try:
        value = json.loads(data)
    except ValueError:
        return part
    if not _change(value, usage, noted):
        return part
    return lead + event + json.dumps(value, separators=(",", ":")).encode() + (b"\n\n" if lead or event else b"")


def _change(value: Any, usage: dict[str, int], noted: Billed) -> bool:
    if not isinstance(value, dict):
        return False
    found = False
    if isinstance(own := value.get("usage"), dict):
        details = [inner for inner in own.values() if isinstance(inner, dict)]
        for place in (own, *details):
            for name in place.keys() & _USAGE.keys():
                place[name] = usage[_USAGE[name]]
                noted[_NAMES[_USAGE[name]]] = place[name]
                found = True
    return _change(value.get("response"), usage, noted) or found


# The kinds of calls


def chat(world: World) -> Expected:
    world.post("/v1/chat/completions", CHAT)
    return Expected(200, "known")


def chat_stream(world: World) -> Expected:
    world.post("/v1/chat/completions", STREAM | {"stream_options": {"include_usage": True}})
    return Expected(200, "known")


def chat_stream_without_usage(world: World) -> Expected:
    answer = world.post("/v1/chat/completions", STREAM)
    assert "usage" not in answer.text
    return Expected(200, "known")


def completion(world: World) -> Expected:
    world.post("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": WORDS, "stream": world.random.random() < 0.5})
    return Expected(200, "known")


def response(world: World) -> Expected:
    world.post("/v1/responses", {"model": "gpt-4o", "input": WORDS, "stream": world.random.random() < 0.5})
    return Expected(200, "known")


def embeddings(world: World) -> Expected:
    world.post("/v1/embeddings", {"model": "text-embedding-3-small", "input": WORDS})
    return Expected(200, "known")


def image(world: World) -> Expected:
    world.post("/v1/images/generations", {"model": "gpt-image-1", "prompt": WORDS})
    return Expected(200, "known")


def speech(world: World) -> Expected:
    world.post("/v1/audio/speech", {"model": "tts-1", "input": WORDS, "voice": "alloy"})
    return Expected(200)


def transcription(world: World) -> Expected:
    body = {"model": "whisper-1"}
    world.http.post("/v1/audio/transcriptions", data=body, files={"file": ("a.wav", b"RIFF")})
    return Expected(200)


def models(world: World) -> Expected:
    world.http.get("/v1/models")
    return Expected(200, attempts=0)


def rate_limit(world: World) -> Expected:
    for _ in range(2):
        world.fault(status(429), deployment="gpt-4.1")
    world.post("/v1/chat/completions", CHAT | {"model": "gpt-4.1"})
    return Expected(429, attempts=0)  # two, or none while both backends cool down


def failover(world: World) -> Expected:
    world.fault(status(500), deployment="gpt-4.1-mini")
    world.post("/v1/chat/completions", CHAT | {"model": "gpt-4.1-mini"})
    return Expected(200, "known", attempts=2)


def repair(world: World) -> Expected:
    world.post("/v1/chat/completions", CHAT | {"model": "o3-mini", "max_tokens": 7})
    return Expected(200, "known", attempts=0, repaired=True)  # the repair is learned: one attempt or two


def cut(world: World) -> Expected:
    world.fault(Cut(after=4))
    with world.http.stream("POST", "/v1/chat/completions", json=STREAM) as answer, suppress(httpx.RemoteProtocolError):
        answer.read()
    return Expected(200, "unknown")


def client_leaves(world: World) -> Expected:
    gate = Gate(before=4)
    world.fault(gate)
    content = json.dumps(STREAM).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Authorization: Bearer {world.azure.key}")
    head = "\r\n".join([*lines, "Content-Type: application/json", f"Content-Length: {len(content)}", "", ""])
    with socket.create_connection(("127.0.0.1", world.mitmdump.port)) as client:
        client.sendall(head.encode() + content)
        client.recv(10)
    world.log.until(world.lines + 1)
    gate.release()
    return Expected(200, "unknown")


def not_found(world: World) -> Expected:
    world.post("/v1/no/such/thing", {})
    return Expected(404, attempts=1)


def realtime(world: World) -> Expected:
    url = world.mitmdump.url.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    with connect(url, additional_headers={"authorization": f"Bearer {world.azure.key}"}, proxy=None) as websocket:
        websocket.send(json.dumps({"type": "response.create"}))
        while (event := json.loads(websocket.recv(PATIENCE)))["type"] != "response.done":
            pass
    usage = event["response"]["usage"]
    noted = {"input_tokens": usage["input_tokens"], "output_tokens": usage["output_tokens"]}
    noted |= {"cached_input_tokens": usage["input_token_details"]["cached_tokens"]}
    noted |= {"audio_input_tokens": usage["input_token_details"]["audio_tokens"]}
    noted |= {"audio_output_tokens": usage["output_token_details"]["audio_tokens"]}
    return Expected(200, "known", attempts=0, tokens=noted)


KINDS: tuple[tuple[Callable[[World], Expected], int], ...] = (
    *((kind, 6) for kind in (chat, chat_stream, chat_stream_without_usage, response)),
    *((kind, 3) for kind in (embeddings, completion, image, speech, transcription, failover, repair)),
    *((kind, 1) for kind in (models, rate_limit, cut, client_leaves, not_found, realtime)),
)
"""Each kind, and how often it comes."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def world(azure: Simulator, collector: Collector, tmp_path: Path, confdir: Path) -> Iterator[World]:
    backends = [{"name": name, "endpoint": azure.http_url, "priority": number} for number, name in enumerate("ab")]
    (tmp_path / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": backends}))
    log = AccessLog(tmp_path / "access.log")
    options = {
        "azure_openai_access_log": log.path,
        "azure_openai_metrics": "127.0.0.1:0",
        "azure_openai_otlp": collector.url,
        "azure_openai_ledger": f"sqlite:///{tmp_path / 'usage.db'}",
        "azure_openai_apiversion": "v1",
    }
    with Mitmdump(tmp_path, confdir, options=options) as mitmdump:
        headers = {"authorization": f"Bearer {azure.key}"}
        with httpx.Client(base_url=mitmdump.url, headers=headers, timeout=PATIENCE) as http:
            world = World(azure, mitmdump, http, log)
            azure.faults.always(world.bill)
            yield world


type Sums = Counter[tuple[str, ...]]
"""The proxy's own counters, with some of their labels."""


def of_lines(lines: list[dict[str, Any]]) -> Sums:
    found: Sums = Counter()
    for line in lines:
        found["requests", line["operation"], str(line["status"] or "")] += 1
        found["unknown_usage",] += line["usage"] == "unknown"
        found["nano-dollars",] += round((line["cost_usd"] or 0) * 1e9)
        for name in line["repairs"]:
            found["repairs", name] += 1
        for name in TOKENS:
            found["tokens", name] += line[f"{name}_tokens"] or 0
    return +found


def of_prometheus(text: str) -> Sums:
    found: Sums = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            _count(found, sample.name.removesuffix("_total").removesuffix("_usd"), "azure_openai_proxy_", sample.labels, sample.value)
    return +found


def of_otlp(collector: Collector) -> Sums:
    found: Sums = Counter()
    for name, points in collector.points().items():
        for labels, point in points:
            if hasattr(point, "as_int"):
                _count(found, name, "azure_openai_proxy.", labels, point.as_int or point.as_double)
    return +found


def _count(found: Sums, name: str, prefix: str, labels: dict[str, str], value: float) -> None:
    match name.removeprefix(prefix):
        case "requests":
            found["requests", labels["operation"], labels.get("status", "")] += int(value)
        case "tokens":
            found["tokens", labels["type"]] += int(value)
        case "repairs":
            found["repairs", labels["repair"]] += int(value)
        case "unknown_usage":
            found["unknown_usage",] += int(value)
        case "cost":
            found["nano-dollars",] += round(value * 1e9)


def test_every_sink_has_the_account_of_azure(world: World, collector: Collector, tmp_path: Path) -> None:
    """Call by call, and in their sums: the access log, the ledger, Prometheus and OTLP agree with each other and with Azure."""
    order = random.Random(7).choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS], k=CALLS)
    expected: list[tuple[str, Expected, Billed]] = []
    for kind in order:
        world.billed.clear()
        found = kind(world)
        expected.append((kind.__name__, found, found.tokens or (world.billed[-1] if world.billed else {})))
        world.lines += 2 if kind is realtime else 1  # a WebSocket has a line of its own
    sockets = sum(name == "realtime" for name, _, _ in expected)
    lines = world.log.until(world.lines)
    url = world.mitmdump.wait_for_start_line(r"Prometheus metrics: (http://\S+)")
    text = fetch(url[1])
    world.mitmdump.signal(signal.SIGTERM)
    assert 0 == world.mitmdump.wait()

    # The access log and Azure, call by call
    calls = [line for line in lines if line["status"] != 101]
    assert sockets == len(lines) - len(calls)
    for line, (name, of, billed) in zip(calls, expected, strict=True):
        assert (of.status, of.usage) == (line["status"], line["usage"]), (name, line)
        assert line["attempts"] == of.attempts or not of.attempts, (name, line)
        assert bool(line["repairs"]) == of.repaired, (name, line)
        tokens = {field: line[field] for field in FIELDS if line[field]}
        assert tokens == ({field: number for field, number in billed.items() if number} if of.usage == "known" else {}), (name, line)

    # The ledger, row by row
    by_id = {(line["request_id"], line["in_websocket"]): line for line in lines}
    assert len(lines) == len(by_id)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'usage.db'}")
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(sa.text("SELECT * FROM azure_openai_proxy_calls")).mappings()]
    engine.dispose()
    assert len(lines) == len(rows)
    for row in rows:
        line = by_id[row["request_id"], bool(row["in_websocket"])]
        assert {name: line[name] for name in COMPARED} == {name: row[name] for name in COMPARED}
        assert (line["cost_usd"], line["usage"]) == (
            pytest.approx(row["cost_usd"]) if row["cost_usd"] else row["cost_usd"],
            row["usage_state"],
        )

    # The spans, one by one
    assert len(lines) == len(collector.calls())
    for span in collector.calls():
        span_has = attributes(span.attributes)
        line = by_id[span_has["azure_openai_proxy.request_id"], span_has["azure_openai_proxy.in_websocket"]]
        assert line["input_tokens"] == span_has.get("gen_ai.usage.input_tokens")
        assert line["cached_input_tokens"] == span_has.get("gen_ai.usage.cache_read.input_tokens")
        assert line["output_tokens"] == span_has.get("gen_ai.usage.output_tokens")
        assert line["reasoning_output_tokens"] == span_has.get("gen_ai.usage.reasoning.output_tokens")
        assert (line["cost_usd"], line["trace_id"]) == (span_has.get("azure_openai_proxy.cost_usd"), span.trace_id.hex())
        assert line["attempts"] == len(collector.attempts(span))

    # The sums
    total, scraped, exported = of_lines(lines), of_prometheus(text), of_otlp(collector)
    costs = [sums.pop(("nano-dollars",)) for sums in (total, scraped, exported)]
    assert costs == pytest.approx([costs[0]] * 3, rel=1e-3)  # prices are small, and each line was rounded
    assert costs[0] > 0
    assert total == scraped
    assert total == exported
