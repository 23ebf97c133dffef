"""A real Prometheus scrapes a real mitmdump, and the dashboard and the alerts find data there."""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from azure_openai_proxy.accounting.metric_names import metrics
from azure_simulator import Gate, status
from support import prometheus_rules
from support.access_log import AccessLog
from support.processes import PATIENCE, ROOT, Mitmdump
from support.prometheus import MISSING, Prometheus, fetch, promtool

if TYPE_CHECKING:
    from pathlib import Path

    from azure_openai_proxy.config.settings import Semconv
    from azure_simulator import Simulator
    from conftest import Proxies

needs_prometheus = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
MESSAGES = [{"role": "user", "content": "one two three"}]


def metered(proxy: Proxies, **options: Any) -> tuple[Mitmdump, str]:
    """A mitmdump with metrics, and their URL."""
    mitmdump = proxy(azure_openai_metrics="127.0.0.1:0", **options)
    return mitmdump, mitmdump.wait_for_start_line(r"Prometheus metrics: (http://\S+/metrics)")[1]


def with_clients(azure: Simulator, folder: Path) -> dict[str, Any]:
    """Options by which the requests below are those of a client with a budget, and another one's are refused."""
    config = folder / "mitm_config.yaml"
    config.write_text(
        f"azure_openai_clients: [{{name: tester, key: {azure.key}, budget_usd: 1000}}, {{name: poor, key: sk-poor1, budget_usd: 0}}]\n"
        "azure_openai_unpriced: allow\n"
    )
    return {"azure_openai_config": config, "azure_openai_token": azure.key}


def client(mitmdump: Mitmdump, azure: Simulator) -> httpx.Client:
    return httpx.Client(base_url=mitmdump.url, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE)


def chat(http: httpx.Client, model: str = "gpt-4o", **more: object) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES, **more})


def traffic(http: httpx.Client, azure: Simulator, url: str) -> int:
    """Calls of every kind that a metric counts, all of them ended; how many there were. `url` is that of the metrics."""
    calls = [
        chat(http),
        chat(http, stream=True, stream_options={"include_usage": True}),
        chat(http, "o3-mini", max_tokens=50),
        http.post("/v1/responses", json={"model": "gpt-4o", "input": "one two three", "stream": True}),
        http.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "one two three"}),
    ]
    assert [200] * len(calls) == [call.status_code for call in calls]
    azure.faults.next(status(429), times=4, deployment="gpt-4.1-mini")
    azure.faults.next(status(500), times=4, deployment="gpt-4")
    assert {429, 500} == {chat(http, "gpt-4.1-mini").status_code, chat(http, "gpt-4").status_code}
    azure.faults.clear()
    gate = Gate(before=3)
    azure.faults.next(gate)
    body = {"model": "gpt-4o", "messages": MESSAGES, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
        assert gate.reached.wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while "\nazure_openai_proxy_active_requests 0.0\n" not in fetch(url):
        assert time.monotonic() < until, "the request of a client that left goes on"
        time.sleep(0.02)
    gate.release()
    return len(calls) + 3


@needs_prometheus
def test_every_expression_has_data(proxy: Proxies, azure: Simulator, tmp_path: Path) -> None:
    """Each expression of the dashboard and, without its comparison, of the alerts has a number in Prometheus, and requests are complete."""
    # A process of its own. The gauge of a shared state that cannot be reached has a value too.
    mitmdump, url = metered(proxy, azure_openai_shared_state="redis://127.0.0.1:1", **with_clients(azure, tmp_path))
    target = url.removeprefix("http://").removesuffix("/metrics")
    expressions = {*prometheus_rules.dashboard(), *map(prometheus_rules.without_comparison, prometheus_rules.alerts().values())}
    with client(mitmdump, azure) as http, Prometheus(tmp_path, [target]) as prometheus:
        refused = {"authorization": "Bearer sk-poor1"}
        assert 429 == http.post("/v1/responses", json={"model": "gpt-4o"}, headers=refused).status_code
        count = traffic(http, azure, url) + 1
        prometheus.wait_for("azure_openai_proxy_requests_total")
        missing = expressions
        for _ in range(20):  # a rate needs two scrapes with calls between them
            count += traffic(http, azure, url)
            prometheus.wait_for(f"sum(azure_openai_proxy_requests_total) >= {count}")
            missing = {each for each in missing if not any(math.isfinite(value) for _, value in prometheus.query(each))}
            if not missing:
                break
        assert not missing
        assert [(count,)] == [(value,) for _, value in prometheus.query("sum(azure_openai_proxy_requests_total)")]
        (state,) = prometheus.targets()
    assert ("up", "") == (state["health"], state["lastError"])


@needs_prometheus
@pytest.mark.parametrize(
    ("up", "fires"),
    [("0x60", True), (" ".join("00010" * 12), True), ("1x20 0 0 0 1x37", False), ("1x60", False)],
    ids=["never up", "up between attempts", "down for a moment", "always up"],
)
def test_the_alert_of_a_backend(up: str, fires: bool, tmp_path: Path) -> None:
    """It fires for a backend whose attempts all fail, although the backend counts as up before each of them.

    A sample is 15 seconds, an evaluation of the rule a minute.
    """
    at = {"backend": "east", "deployment": "gpt-4o"}
    alert = {
        "exp_labels": {**at, "severity": "warning"},
        "exp_annotations": {"summary": "gpt-4o at east is out of use."},
    }
    series = 'azure_openai_proxy_backend_up{backend="east", deployment="gpt-4o"}'
    checked = {"eval_time": "14m", "alertname": "BackendDown", "exp_alerts": [alert] if fires else []}
    rules = {
        "rule_files": [str(prometheus_rules.ALERTS)],
        "tests": [{"interval": "15s", "input_series": [{"series": series, "values": up}], "alert_rule_test": [checked]}],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps(rules))
    assert "SUCCESS" in promtool("test", "rules", str(file))


@needs_prometheus
def test_promtool_accepts_the_page_and_the_rules(proxy: Proxies, azure: Simulator) -> None:
    """promtool has nothing to say about the metrics, the alert rules and the scrape configurations."""
    mitmdump, url = metered(proxy)
    with client(mitmdump, azure) as http:
        traffic(http, azure, url)
    assert "" == promtool("check", "metrics", stdin=fetch(url))
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", str(prometheus_rules.ALERTS))
    for name in ("prometheus.yml", "compose.yml"):
        assert "SUCCESS" in promtool("check", "config", str(ROOT / "deploy" / "prometheus" / name))


def test_the_page_counts_what_the_simulator_reported(proxy: Proxies, azure: Simulator) -> None:
    """Requests, tokens by type and cost on the page equal the usage in the responses."""
    mitmdump, url = metered(proxy, azure_openai_metrics_series=100)  # a process of its own
    with client(mitmdump, azure) as http:
        usages = [chat(http).json()["usage"] for _ in range(3)]
    page = fetch(url)

    def total(name: str, **labels: str) -> float:
        lines = re.findall(rf"(?m)^{name}{{(.*)}} (\S+)$", page)
        return sum(float(value) for found, value in lines if all(f'{label}="{text}"' in found for label, text in labels.items()))

    assert 3 == total("azure_openai_proxy_requests_total", operation="chat.completions", model="gpt-4o", backend="default", status="200")
    prompt, completion = (sum(usage[f"{kind}_tokens"] for usage in usages) for kind in ("prompt", "completion"))
    assert (prompt, completion) == tuple(total("azure_openai_proxy_tokens_total", type=kind) for kind in ("input", "output"))
    assert prompt == total("gen_ai_client_token_usage_sum", gen_ai_token_type="input", gen_ai_operation_name="chat")
    assert (prompt * 2.5 + completion * 10) / 1e6 == pytest.approx(total("azure_openai_proxy_cost_usd_total", model="gpt-4o"))
    assert 3 == total(
        "gen_ai_client_operation_duration_seconds_count", gen_ai_response_model="gpt-4o-2024-11-20", server_address="127.0.0.1"
    )
    assert azure.key not in page
    assert "one two three" not in page


def test_every_metric_is_on_the_page(proxy: Proxies, azure: Simulator, tmp_path: Path) -> None:
    """After calls of every kind each metric of the table has a series, with exactly its labels, in both generations of names."""
    generations: tuple[Semconv, ...] = ("1.41", "genai-0.1")
    for semconv in generations:
        options = with_clients(azure, tmp_path) | {"azure_openai_shared_state": "redis://127.0.0.1:1"}
        mitmdump, url = metered(proxy, azure_openai_semconv=semconv, **options)
        with client(mitmdump, azure) as http:
            traffic(http, azure, url)
            assert 429 == http.post("/v1/responses", json={"model": "gpt-4o"}, headers={"authorization": "Bearer sk-poor1"}).status_code
        page = fetch(url)
        for metric in metrics(semconv):
            sample = metric.prometheus + ("_sum" if metric.kind == "histogram" else "")
            found = re.findall(rf"(?m)^{sample}(?:{{(.*)}})? ", page)
            assert found, sample
            assert {tuple(sorted(metric.prometheus_labels))} == {tuple(sorted(re.findall(r'(\w+)="', labels))) for labels in found}


def test_the_page_equals_the_access_log(proxy: Proxies, azure: Simulator, tmp_path: Path) -> None:
    """Requests, tokens, cost, unknown usage, attempts and repairs by their labels are the sums of the lines of the access log."""
    log = AccessLog(tmp_path / "access.log")
    mitmdump, url = metered(proxy, azure_openai_access_log=log.path)
    with client(mitmdump, azure) as http:
        count = traffic(http, azure, url) + traffic(http, azure, url)
        others = [
            http.post("/v1/completions", json={"model": "gpt-35-turbo-instruct", "prompt": "one"}),
            http.post("/v1/images/generations", json={"model": "gpt-image-1", "prompt": "a cat"}),
            http.post("/v1/audio/speech", json={"model": "tts-1", "input": "one", "voice": "alloy"}),
            http.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"RIFF")}, data={"model": "gpt-4o-transcribe"}),
            http.get("/v1/models"),
            http.get("/v1/no-such-operation"),
            http.post("/v1/chat/completions", content=b"{"),
        ]
    lines = log.wait(count + len(others))
    page = samples(fetch(url))
    expected: defaultdict[tuple[str, frozenset[tuple[str, str]]], float] = defaultdict(float)

    def add(name: str, amount: float, **labels: object) -> None:
        values = {label: "" if value is None else str(value) for label, value in labels.items()}
        expected[f"azure_openai_proxy_{name}_total", frozenset(values.items())] += amount

    for line in lines:
        call = {name: line[name] for name in ("operation", "model", "deployment", "backend", "client")}
        add("requests", 1, **call, status=line["status"])
        for kind in ("input", "cached_input", "cache_write_input", "output", "reasoning_output", "audio_input", "audio_output"):
            if (tokens := line[f"{kind}_tokens"]) is not None:
                add("tokens", tokens, **call, status=line["status"], type=kind)
        if line["cost_usd"] is not None:
            owner = {name: line[name] for name in ("model", "deployment", "backend", "client")}
            add("cost_usd", line["cost_usd"], **owner, tier=line["service_tier"])
        if line["usage"] == "unknown":
            add("unknown_usage", 1, **call)
        for repair in line["repairs"]:
            add("repairs", 1, repair=repair)
    names = {name for name, _ in expected}
    assert {f"azure_openai_proxy_{name}_total" for name in ("requests", "tokens", "cost_usd", "unknown_usage", "repairs")} == names
    found = {key: value for key, value in page.items() if key[0] in names}
    assert {key: pytest.approx(value) for key, value in expected.items()} == found
    attempts = sum(value for (name, _), value in page.items() if name == "azure_openai_proxy_attempts_total")
    assert sum(line["attempts"] for line in lines) == attempts


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_made_up_names(proxy: Proxies, azure: Simulator) -> None:
    """Made-up models that fail fill half of the values of a label, so that real ones still have theirs; nothing is lost from the sum."""
    mitmdump, url = metered(proxy, azure_openai_metrics_series=10)
    with client(mitmdump, azure) as http:
        azure.faults.always(status(404), when=lambda call: bool(call.deployment and call.deployment.startswith("made-up")))
        assert {404} == {chat(http, f'made-up-{number}"' + "x" * 150).status_code for number in range(30)}
        assert 200 == chat(http).status_code
    found = re.findall(r'(?m)^azure_openai_proxy_requests_total{.*model="([^"]*(?:\\"[^"]*)*)",.*} (\S+)$', fetch(url))
    assert 31 == sum(float(count) for _, count in found)
    assert {"gpt-4o", "other"} < {model for model, _ in found}
    assert 7 == len(found)
    assert max(len(model) for model, _ in found) <= 122


def test_other_paths_and_methods(proxy: Proxies) -> None:
    """The address of the metrics has nothing but them: no API, no other page."""
    _, url = metered(proxy)
    assert [404, 404, 405] == [
        httpx.get(url.removesuffix("metrics")).status_code,
        httpx.post(url.replace("/metrics", "/v1/chat/completions"), json={}).status_code,
        httpx.post(url, json={}).status_code,
    ]


def test_a_taken_address_stops_the_start(proxy: Proxies, azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """An address in use ends mitmdump at its start, with one line."""
    _, url = metered(proxy)
    address = url.removeprefix("http://").removesuffix("/metrics")
    other = Mitmdump(tmp_path, confdir, options={"azure_openai_endpoint": azure.http_url, "azure_openai_metrics": address}).launch()
    assert 0 != other.wait()
    assert f"azure_openai_metrics (--set): cannot listen on {address}" in other.log()
    assert "Traceback" not in other.log()
