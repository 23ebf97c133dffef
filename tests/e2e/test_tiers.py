"""Service tiers through a real mitmdump: refusals, failover with the tier only, the last attempt without it, and time-outs of flex."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from mitmproxy import http
from mitmproxy.io import FlowReader

from azure_simulator import Gate, Simulator, refusals, reshape, status
from azure_simulator.operations import respond
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator.answers import Answer
    from azure_simulator.calls import Call

APIS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one two"}]}),
    "responses": ("/v1/responses", {"input": "one two"}),
}
KEY = "key-0123456789"
TESTS = ("moves", "refused", "limited", "lone", "slow", "waits-False", "waits-True", "spills", "passes")


@pytest.fixture(scope="module")
def both() -> Iterator[list[Simulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Simulator(key=KEY)) for _ in range(2)]


def tiers(answer: Answer, call: Call) -> Answer:
    """A deployment that has each tier. The simulator's own deployments know no `service_tier`."""
    return respond(replace(call, body={name: value for name, value in call.body.items() if name != "service_tier"}), KEY, ())


@pytest.fixture
def azures(both: list[Simulator]) -> list[Simulator]:
    for azure in both:
        azure.reset()
        azure.faults.always(tiers)
    return both


@contextmanager
def started(folder: Path, both: list[Simulator], confdir: Path, **options: str) -> Iterator[Mitmdump]:
    """A mitmdump whose backends are two for each model `TEST-API`, so that no test sees the refusals of another."""
    entries = [
        {"name": f"{test}-{api}-{index}", "endpoint": azure.http_url, "token": azure.key, "priority": index, "apiversion": "v1"}
        | {"models": {f"{test}-{api}": "gpt-4o"}}
        for test in TESTS
        for api in APIS
        for index, azure in enumerate(both[: 1 if test == "lone" else 2])
    ]
    (folder / "mitm_config.yaml").write_text(json.dumps({"azure_openai_backends": entries}))
    with Mitmdump(folder, confdir, options=options, args=["-w", str(folder / "flows")]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def strict(both: list[Simulator], tmp_path_factory: pytest.TempPathFactory, confdir: Path) -> Iterator[Mitmdump]:
    """No request is sent without its tier; ordinary requests get little time."""
    with started(tmp_path_factory.mktemp("strict"), both, confdir, azure_openai_first_byte_timeout="3") as proxy:
        yield proxy


def ask(proxy: Mitmdump, test: str, api: str, tier: str = "flex", **more: Any) -> httpx.Response:
    path, body = APIS[api]
    body = {**body, "model": f"{test}-{api}", "service_tier": tier, **more}
    return httpx.post(proxy.url + path, json=body, timeout=PATIENCE, trust_env=False)


def counts(azures: list[Simulator]) -> list[int]:
    return [len(azure.requests) for azure in azures]


@pytest.mark.parametrize("api", APIS)
def test_failover_with_the_tier(api: str, strict: Mitmdump, azures: list[Simulator]) -> None:
    """A backend without the tier is passed over by later requests with it, and by no others."""
    azures[0].faults.always(refusals.service_tier)
    assert [200] * 3 == [ask(strict, "moves", api).status_code for _ in range(3)]
    assert [1, 3] == counts(azures)
    assert {"flex"} == {received.json["service_tier"] for azure in azures for received in azure.requests}
    assert 200 == ask(strict, "moves", api, tier="auto").status_code
    assert [2, 3] == counts(azures)


@pytest.mark.parametrize("api", APIS)
def test_a_refusal_is_passed_on(api: str, strict: Mitmdump, azures: list[Simulator]) -> None:
    """By a lone backend, which is asked each time, and by two that refuse the tier."""
    for azure in azures:
        azure.faults.always(refusals.service_tier)
    for test in ("lone", "lone", "refused", "refused"):
        refused = ask(strict, test, api, tier="priority")
        assert (400, "service_tier") == (refused.status_code, refused.json()["error"]["param"])
        assert "priority" in refused.json()["error"]["message"]
    assert [4, 2] == counts(azures)


@pytest.mark.parametrize("api", APIS)
def test_a_429_elsewhere_is_the_clients(api: str, strict: Mitmdump, azures: list[Simulator]) -> None:
    """And not the refusal of the other backend, then and later."""
    azures[0].faults.always(refusals.service_tier)
    azures[1].faults.always(status(429, retry_after=100))
    answers = [ask(strict, "limited", api) for _ in range(2)]
    assert [429, 429] == [answer.status_code for answer in answers]
    assert all(90 < int(answer.headers["retry-after"]) <= 100 for answer in answers)
    assert [1, 1] == counts(azures)


@pytest.mark.parametrize("api, stream", [("chat", True), ("responses", False)])
def test_a_slow_flex_answer(api: str, stream: bool, strict: Mitmdump, azures: list[Simulator]) -> None:
    """It is waited for, where another request would go elsewhere."""
    gate = Gate(before=None)
    azures[0].faults.next(tiers, gate)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(strict, "slow", api, stream=stream)))
    asking.start()
    assert gate.reached.wait(PATIENCE)
    ordinary = Gate(before=None)
    azures[0].faults.next(ordinary)
    other = ask(strict, f"waits-{stream}", api, tier="default")  # after the ordinary time-out, at the other backend
    gate.release()
    ordinary.release()
    asking.join(PATIENCE)
    assert [200, 200] == [answer.status_code for answer in (other, *answers)]
    assert [2, 1] == counts(azures)


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "priority", "fast", "scale", "ultrafast"])
def test_tiers_pass(tier: str, strict: Mitmdump, azures: list[Simulator]) -> None:
    """Each value reaches Azure as the client wrote it."""
    assert 200 == ask(strict, "passes", "chat", tier=tier).status_code
    assert [tier] == [received.json["service_tier"] for received in azures[0].requests]


def test_the_last_attempt_without_the_tier(both: list[Simulator], azures: list[Simulator], tmp_path: Path, confdir: Path) -> None:
    """It is marked in the headers, the log and the flow; spillover stands in the flow's comment."""
    with started(tmp_path, both, confdir, azure_openai_tier_fallback="true") as proxy:
        for api in APIS:
            azures[0].faults.always(refusals.service_tier)
            azures[1].faults.next(status(429))
            answer = ask(proxy, "moves", api)
            assert (200, "flex") == (answer.status_code, answer.headers["x-azure-openai-proxy-tier-fallback"])
        assert ["flex", None] * 2 == [received.json.get("service_tier") for received in azures[0].requests]
        assert ["flex"] * 2 == [received.json.get("service_tier") for received in azures[1].requests]
        azures[0].faults.next(tiers, reshape.spilled("gpt-4o-paid"))
        assert "x-azure-openai-proxy-tier-fallback" not in ask(proxy, "spills", "chat").headers
        log = proxy.log()
    assert "no backend serves service_tier flex" in log
    with (tmp_path / "flows").open("rb") as file:
        comments = [flow.comment for flow in FlowReader(file).stream() if isinstance(flow, http.HTTPFlow)]
    assert [True, True, False] == ["service_tier flex left out" in comment for comment in comments]
    assert "spillover to gpt-4o-paid" in comments[2]
