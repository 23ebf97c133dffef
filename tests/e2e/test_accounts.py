"""All sinks of usage at once: what each of them has of 500 calls is what the simulated Azure reported."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import sqlalchemy as sa
from websockets.sync.client import connect

from azure_openai_proxy.accounting.ledger.schema import CALLS
from azure_simulator import Cut, Gate, Simulator, status
from azure_simulator.account import reporting
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
    from azure_simulator.received import Received

pytest.importorskip("prometheus_client")

CALLS_OF_ALL = 500
TEXT = "one two three"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": TEXT}]}
USAGES = (
    {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52, "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 5}},
    {"prompt_tokens": 7, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 1}},
)
RESPONSE_USAGE = {
    "input_tokens": 50,
    "output_tokens": 21,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 30},
    "output_tokens_details": {"reasoning_tokens": 13},
}
TOKENS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
)


class Plan(NamedTuple):
    """One call of the mix: how it is asked, and what Azure does at each attempt."""

    ask: Callable[[httpx.Client, dict[str, str]], object]
    faults: tuple[Fault, ...] = ()


def post(path: str, body: dict[str, Any], *, upload: bool = False) -> Callable[[httpx.Client, dict[str, str]], object]:
    def ask(http: httpx.Client, headers: dict[str, str]) -> object:
        if upload:
            return http.post(path, data=body, files={"file": ("a.wav", b"RIFF")}, headers=headers).status_code
        content: list[bytes] = []
        try:
            with http.stream("POST", path, json=body, headers=headers) as response:
                content.extend(response.iter_raw())
        except httpx.RemoteProtocolError:
            return response.status_code  # cut off
        return response.status_code

    return ask


def get(path: str) -> Callable[[httpx.Client, dict[str, str]], object]:
    return lambda http, headers: http.get(path, headers=headers).status_code


def talk(path: str, request: dict[str, Any]) -> Callable[[httpx.Client, dict[str, str]], object]:
    """A WebSocket with two responses."""

    def ask(http: httpx.Client, headers: dict[str, str]) -> object:
        url = str(http.base_url).replace("http", "ws").rstrip("/") + path
        with connect(url, additional_headers={"authorization": http.headers["authorization"], **headers}, proxy=None) as websocket:
            for _ in range(2):
                websocket.send(json.dumps({"type": "response.create", **request}))
                while json.loads(websocket.recv(PATIENCE))["type"] not in ("response.done", "response.completed"):
                    pass
        return 101

    return ask


def leave(body: dict[str, Any], gate: Gate, *, after: bool) -> Callable[[httpx.Client, dict[str, str]], object]:
    """A client that closes the connection before the head, or `after` the first bytes of the stream."""

    def ask(http: httpx.Client, headers: dict[str, str]) -> object:
        content = json.dumps(body).encode()
        given = {"host": "localhost", "authorization": http.headers["authorization"], "content-length": str(len(content)), **headers}
        lines = ["POST /v1/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as client:
            client.sendall("\r\n".join(lines).encode() + content)
            if after:
                assert client.recv(12).endswith(b"200")
            assert gate.reached.wait(PATIENCE)
        return 200 if after else None

    return ask


def stranger(http: httpx.Client, headers: dict[str, str]) -> object:
    """A client without a key."""
    return httpx.post(http.base_url.join("/v1/chat/completions"), json=CHAT, headers=headers, timeout=PATIENCE).status_code


STREAM = CHAT | {"stream": True}
ASKED = STREAM | {"stream_options": {"include_usage": True}}
RESPONSE = {"model": "gpt-4o", "input": TEXT}
MIX: tuple[Callable[[], Plan], ...] = (
    lambda: Plan(post("/v1/chat/completions", CHAT), (reporting(USAGES[0]),)),
    lambda: Plan(post("/v1/chat/completions", STREAM), (reporting(USAGES[1]),)),
    lambda: Plan(post("/v1/chat/completions", ASKED), (reporting(USAGES[0]),)),
    lambda: Plan(post("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": TEXT, "stream": True})),
    lambda: Plan(post("/v1/responses", RESPONSE), (reporting(RESPONSE_USAGE),)),
    lambda: Plan(post("/v1/responses", RESPONSE | {"stream": True}), (reporting(RESPONSE_USAGE),)),
    lambda: Plan(post("/v1/embeddings", {"model": "text-embedding-3-small", "input": TEXT})),
    lambda: Plan(post("/v1/images/generations", {"model": "gpt-image-1", "prompt": TEXT})),
    lambda: Plan(post("/v1/images/generations", {"model": "gpt-image-1", "prompt": TEXT, "stream": True})),
    lambda: Plan(post("/v1/audio/speech", {"model": "tts-1", "input": TEXT, "voice": "alloy"})),
    lambda: Plan(post("/v1/audio/transcriptions", {"model": "whisper-1"}, upload=True)),
    lambda: Plan(talk("/v1/realtime?model=gpt-realtime", {})),
    lambda: Plan(talk("/v1/responses", {"model": "gpt-4o", "input": TEXT})),
    lambda: Plan(post("/v1/chat/completions", CHAT | {"model": "o3-mini", "max_tokens": 9})),  # repaired
    lambda: Plan(post("/v1/chat/completions", CHAT | {"model": "gpt-4.1"}), (status(503),)),  # failed over
    lambda: Plan(post("/v1/chat/completions", CHAT | {"model": "gpt-4"}), (status(429, retry_after=0.001),) * 2),
    lambda: Plan(post("/v1/chat/completions", CHAT | {"model": "gpt-4.1-mini"}), (Cut(),) * 2),
    lambda: Plan(post("/v1/chat/completions", ASKED), (Cut(after=4),)),
    lambda: Plan(post("/v1/chat/completions", CHAT | {"model": ""})),
    lambda: Plan(stranger),
    lambda: Plan(get("/v1/models")),
    lambda: Plan(get("/v1/responses/resp_1")),
    lambda: Plan(get("/nothing")),
    lambda: Plan(post("/v1/agents", {})),
)


def left(*, after: bool) -> Plan:
    gate = Gate(before=3 if after else None)
    return Plan(leave(ASKED, gate, after=after), (gate,))


def tokens(usage: dict[str, Any]) -> dict[str, int | None]:
    """A usage of the simulator in the names of the access log."""
    read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or usage.get("input_token_details") or {}
    written = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or usage.get("output_token_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "cached_input_tokens": read.get("cached_tokens"),
        "cache_write_input_tokens": read.get("cache_write_tokens"),
        "output_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        "reasoning_output_tokens": written.get("reasoning_tokens"),
        "audio_input_tokens": read.get("audio_tokens"),
        "audio_output_tokens": written.get("audio_tokens"),
    }


class Accounted(NamedTuple):
    """A mitmdump with two backends and all sinks."""

    mitmdump: Mitmdump
    simulators: tuple[Simulator, Simulator]
    log: AccessLog
    ledger: Path
    metrics: str
    plans: dict[str, list[Fault]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def accounted(azure: Simulator, collector: Collector, tmp_path: Path, confdir: Path) -> Iterator[Accounted]:
    plans: dict[str, list[Fault]] = {}

    def planned(answer: Answer, call: Call) -> Answer:
        faults = plans.get(call.received.header("x-call") or "")
        return faults.pop(0)(answer, call) if faults else answer

    with Simulator() as other:
        simulators = (azure, other)
        for simulator in simulators:
            simulator.faults.always(planned)
        entries = [
            {"name": name, "endpoint": one.http_url, "priority": priority, "apiversion": "v1"}
            for priority, (name, one) in enumerate(zip(("first", "second"), simulators, strict=True))
        ]
        (tmp_path / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))
        log, ledger = AccessLog(tmp_path / "access.log"), tmp_path / "usage.db"
        options = {
            "azure_openai_access_log": log.path,
            "azure_openai_ledger": f"sqlite:///{ledger}",
            "azure_openai_metrics": "127.0.0.1:0",
            "azure_openai_otlp": collector.url,
        }
        env = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
        with Mitmdump(tmp_path, confdir, options=options, env=env) as mitmdump:
            found = mitmdump.wait_for_start_line(r"Prometheus metrics: (http://\S+/metrics)")
            yield Accounted(mitmdump, simulators, log, ledger, found[1], plans)


def ask_all(accounted: Accounted) -> tuple[dict[str, object], list[Gate]]:
    """Make the calls, several at a time; the status that each client got, by its session."""
    mix: list[Callable[[], Plan]] = [*MIX, *MIX, *MIX, lambda: left(after=True), lambda: left(after=False)]
    kinds = itertools.cycle(mix)
    calls = {f"call-{number}": next(kinds)() for number in range(CALLS_OF_ALL)}
    accounted.plans.update({session: list(plan.faults) for session, plan in calls.items()})
    key = accounted.simulators[0].key
    with (
        httpx.Client(base_url=accounted.mitmdump.url, headers={"authorization": f"Bearer {key}"}, timeout=PATIENCE) as http,
        ThreadPoolExecutor(8) as pool,
    ):
        asked = {
            session: pool.submit(plan.ask, http, {"x-session-affinity": session, "x-call": session}) for session, plan in calls.items()
        }
        got = {session: one.result() for session, one in asked.items()}
    return got, [fault for plan in calls.values() for fault in plan.faults if isinstance(fault, Gate)]


def test_the_sums_of_all_sinks(accounted: Accounted, collector: Collector) -> None:
    """Call by call, the access log, the ledger and the spans have what Azure reported, and the metrics have their sums."""
    got, gates = ask_all(accounted)
    by_socket = sum(value == 101 for value in got.values())
    lines = accounted.log.wait(CALLS_OF_ALL + 2 * by_socket)
    for gate in gates:
        gate.release()
    by_session = grouped(lines)

    # The clients' view, and Azure's.
    assert {session: [value] for session, value in got.items()} == {
        session: [line["status"] for line in found if not line["in_websocket"]] for session, found in by_session.items()
    }
    requests: dict[str | None, list[Received]] = defaultdict(list)
    for simulator in accounted.simulators:
        for received in simulator.requests:
            requests[received.header("x-call")].append(received)
    for session, found in by_session.items():
        reported = [tokens(usage) for received in requests[session] for usage in received.usages if "seconds" not in usage]
        counted = [{name: line[name] for name in TOKENS} for line in found if line["usage"] == "known"]
        polled = found[0]["path"] == "/v1/responses/resp_1"
        assert counted == ([] if polled else reported), found
        assert all(line["attempts"] <= len(requests[session]) for line in found)
    assert {"known", "unknown", "none"} == {line["usage"] for line in lines}
    assert {None, "client", "upstream"} == {line["incomplete"] for line in lines}

    # The other sinks.
    compare_ledger(accounted, lines)
    compare_spans(collector, lines)
    compare_metrics(accounted, collector, lines)


def grouped(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        found[line["session"]].append(line)
    return found


def entry(values: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(repr(values.get(name)) for name in names)


def compare_ledger(accounted: Accounted, lines: list[dict[str, Any]]) -> None:
    names = (
        *TOKENS,
        "session",
        "status",
        "operation",
        "model",
        "response_model",
        "backend",
        "deployment",
        "incomplete",
        "cost_usd",
        "attempts",
    )
    engine = sa.create_engine(f"sqlite:///{accounted.ledger}")

    def rows() -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(CALLS)).mappings()]

    known = [line for line in lines if line["status"] != 401]  # strangers do not fill the database
    assert len(known) < len(lines)
    until(lambda: len(rows()) >= len(known))
    found = rows()
    engine.dispose()
    assert sorted(entry(line, *names) for line in known) == sorted(entry(row, *names) for row in found)


def compare_spans(collector: Collector, lines: list[dict[str, Any]]) -> None:
    names = {
        "session": "session.id",
        "status": "http.response.status_code",
        "input_tokens": "gen_ai.usage.input_tokens",
        "cached_input_tokens": "gen_ai.usage.cache_read.input_tokens",
        "output_tokens": "gen_ai.usage.output_tokens",
        "reasoning_output_tokens": "gen_ai.usage.reasoning.output_tokens",
        "cost_usd": "azure_openai_proxy.cost_usd",
        "usage": "azure_openai_proxy.usage_state",
        "incomplete": "azure_openai_proxy.incomplete",
    }
    collector.wait(lambda: len(collector.calls()) >= len(lines))
    spans = [attributes(span.attributes) for span in collector.calls()]
    assert sorted(entry(line, *names) for line in lines) == sorted(entry(span, *names.values()) for span in spans)


def compare_metrics(accounted: Accounted, collector: Collector, lines: list[dict[str, Any]]) -> None:
    requests = Counter((line["operation"], line["status"] or 0) for line in lines)
    used: Counter[str] = Counter()
    for line in lines:
        used.update({name.removesuffix("_tokens"): line[name] for name in TOKENS if line[name]})
    cost = sum(line["cost_usd"] or 0 for line in lines)
    unknown = sum(line["usage"] == "unknown" for line in lines)
    assert cost > 0
    assert unknown > 0

    def exported() -> tuple[int, dict[str, Any]]:
        points = collector.points()
        total = sum(point.as_int for _, point in points.get("azure_openai_proxy.requests", []))
        return total, points

    collector.wait(lambda: exported()[0] >= len(lines))
    points = exported()[1]
    by_status: Counter[tuple[str, int]] = Counter()
    for labels, point in points["azure_openai_proxy.requests"]:
        by_status[labels["operation"], int(labels.get("status", 0) or 0)] += point.as_int
    assert requests == by_status
    assert used == total(points["azure_openai_proxy.tokens"], lambda point: point.as_int)
    assert pytest.approx(cost) == sum(point.as_double for _, point in points["azure_openai_proxy.cost"])
    assert unknown == sum(point.as_int for _, point in points["azure_openai_proxy.unknown_usage"])

    samples = [sample for line in fetch(accounted.metrics).splitlines() if (sample := re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line))]

    def of(name: str) -> list[tuple[dict[str, str], float]]:
        return [
            (dict(re.findall(r'(\w+)="([^"]*)"', sample[2])), float(sample[3]))
            for sample in samples
            if sample[1] == f"azure_openai_proxy_{name}"
        ]

    scraped: Counter[tuple[str, int]] = Counter()
    for label, value in of("requests_total"):
        scraped[label["operation"], int(label["status"] or 0)] += int(value)
    assert requests == scraped
    assert used == total(of("tokens_total"), int)
    assert pytest.approx(cost) == sum(value for _, value in of("cost_usd_total"))
    assert unknown == sum(value for _, value in of("unknown_usage_total"))


def total(points: list[tuple[dict[str, Any], Any]], value: Callable[[Any], int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for labels, point in points:
        found[labels["type"]] += value(point)
    return Counter({name: count for name, count in found.items() if count})


def until(condition: Callable[[], object]) -> None:
    waiting = threading.Event()
    for _ in range(int(PATIENCE * 20)):
        if condition():
            return
        waiting.wait(0.05)
    assert condition()
