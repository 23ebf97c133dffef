"""Replicas that share the limits and budgets of clients, with real databases."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from azure_openai_proxy.accounting.ledger import keys
from azure_openai_proxy.accounting.ledger.database import parse
from azure_openai_proxy.accounting.ledger.keys import ManagedKey
from azure_openai_proxy.accounting.shared import backends
from azure_openai_proxy.accounting.shared.link import PREFIX
from azure_simulator import Simulator, status
from support.ledger import rows
from support.load import wait_until
from support.processes import PATIENCE, RECORDER, SCRIPT, Mitmdump
from support.replicas import CHAT, Load, create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.postgres import Postgres
    from support.redis import RedisServer

CLIENTS = 12
PATIENT = RECORDER / "patient.py"
DOWN, UP = "The shared state cannot be reached", "The shared state is used again"


@pytest.fixture
def replicas(azure: Simulator, confdir: Path, tmp_path: Path, redis_server: RedisServer) -> Iterator[Callable[..., list[Mitmdump]]]:
    """Two replicas with the same options, which share the Redis server."""
    with ExitStack() as stack:

        def make(ledger: str = "", **options: Any) -> list[Mitmdump]:
            given = {
                "azure_openai_endpoint": azure.http_url,
                "azure_openai_token": azure.key,
                "azure_openai_shared_state": redis_server.url,
                **options,
            }
            env = {"AZURE_OPENAI_LEDGER": ledger} if ledger else {}
            started = [
                Mitmdump(tmp_path / str(number), confdir, options=given, env=env, scripts=(SCRIPT, PATIENT)).launch() for number in range(2)
            ]
            for each in started:
                each.wait_until_ready()
                stack.callback(each.stop)
            return started

        yield make


def chat(proxy: Mitmdump, key: str = "sk-none", **members: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{proxy.url}/v1/chat/completions", json=CHAT | members, headers=headers, timeout=PATIENCE, trust_env=False)


def readiness(proxy: Mitmdump) -> tuple[int, str]:
    answer = httpx.get(f"{proxy.url}/readyz", timeout=PATIENCE, trust_env=False)
    return answer.status_code, answer.text


@pytest.mark.timeout(300)  # eight seconds on an idle machine
@pytest.mark.parametrize("killed", [False, True])
def test_limits_and_budgets(killed: bool, replicas: Callable[..., list[Mitmdump]], redis_server: RedisServer, postgres: Postgres) -> None:
    """On two replicas no client exceeds a limit by more than its parallel requests, budgets stop at the crossing request, and the sums of
    each client equal the ledger. With Redis killed and restarted in the middle every request is answered, and each process counts alone.
    """
    ledger = postgres.create()
    _, probe = keys.create(parse(ledger), ManagedKey(name="probe"))
    both = replicas(ledger)
    assert 200 == chat(both[0], probe).status_code
    wait_until(lambda: [row["cost_usd"] for row in rows(parse(ledger))])
    budget = 14.5 * rows(parse(ledger))[0]["cost_usd"]
    *clients, last = create(ledger, CLIENTS, budget)
    wait_until(lambda: [200, 200] == [chat(each, last.secret).status_code for each in both])
    total = CLIENTS * 48
    at = {total // 3: redis_server.kill, 2 * total // 3: redis_server.start} if killed else {}
    load = Load(both, clients, total, at)
    load.run()
    assert {200, 429} == {answer.status for answer in load.answers}
    assert {None, "rate_limit_exceeded", "insufficient_quota"} == {code for _, code in load.statuses}
    load.check_limits(times=2 if killed else 1)
    sent = len(load.answers)
    wait_until(lambda: sum(row["client"] not in ("probe", last.name) for row in rows(parse(ledger))) == sent)
    load.check_ledger(ledger, budget, times=2 if killed else 1)
    if killed:
        for each in both:
            each.wait_for_log(UP)
            assert 1 == sum(DOWN in line for line in each.output)


@pytest.mark.parametrize("limit", [{}, {"requests_per_minute": 1000}])
def test_the_end_of_a_budget(
    limit: dict[str, Any], replicas: Callable[..., list[Mitmdump]], redis_server: RedisServer, tmp_path: Path
) -> None:
    """The replica that did not answer the crossing request refuses the next one, with a budget alone and beside a limit."""

    def spent() -> bytes:
        return redis_server("HGET", f"{PREFIX}budgets:total:1970-01-01", "client spent")

    def asked(proxy: Mitmdump) -> int:
        """The status; a charge may reach the server a moment after its response has reached the client."""
        before = spent()
        code = chat(proxy, key).status_code
        if code == 200:
            wait_until(lambda: spent() != before)
        return code

    ledger = f"sqlite:///{tmp_path}/usage.db"
    _, probe = keys.create(parse(ledger), ManagedKey(name="probe"))
    both = replicas(ledger)
    wait_until(lambda: [200, 200] == [chat(each, probe).status_code for each in both])
    wait_until(lambda: [row["cost_usd"] for row in rows(parse(ledger))])
    _, key = keys.create(
        parse(ledger), ManagedKey(name="spent", budget_usd=2.5 * rows(parse(ledger))[0]["cost_usd"], budget_period="total", **limit)
    )
    wait_until(lambda: [400, 400] == [chat(each, key, messages=5).status_code for each in both])
    assert [200, 200, 200, 429, 429] == [asked(both[number % 2]) for number in range(5)]


def test_without_the_server(replicas: Callable[..., list[Mitmdump]], redis_server: RedisServer, tmp_path: Path) -> None:
    """While Redis is down, `refuse` answers clients with limits with 503 and serves the others; the readiness says so, and all works again
    when Redis is back.
    """
    ledger = f"sqlite:///{tmp_path}/usage.db"
    _, limited = keys.create(parse(ledger), ManagedKey(name="limited", requests_per_minute=2))
    _, free = keys.create(parse(ledger), ManagedKey(name="free"))
    one, two = replicas(ledger, azure_openai_shared_state_failure="refuse", azure_openai_metrics="127.0.0.1:0")
    assert 200 == chat(one, limited).status_code
    assert (200, "ok\n") == readiness(one)
    redis_server.kill()
    for each in (one, two):
        each.wait_for_log(DOWN)
        refused = chat(each, limited)
        assert (503, True) == (refused.status_code, "azure_openai_shared_state" in refused.json()["error"]["message"])
        assert 200 == chat(each, free).status_code
        code, text = readiness(each)
        assert (200, True) == (code, "shared state" in text)
    page = one.wait_for_log(r"(http://127.0.0.1:\d+/metrics)")[1]
    assert "azure_openai_proxy_shared_state_up 0.0" in httpx.get(page, timeout=PATIENCE).text
    redis_server.start()
    for each in (one, two):
        each.wait_for_log(UP)
    assert [200, 429] == [chat(each, limited).status_code for each in (two, one)]
    assert "azure_openai_proxy_shared_state_up 1.0" in httpx.get(page, timeout=PATIENCE).text


def in_order(folder: Path, first: Simulator, second: Simulator) -> dict[str, Any]:
    """Options for two backends, of which the second is asked when the first fails."""
    config = folder / "backends.yaml"
    config.write_text(
        "azure_openai_backends:\n"
        f'  - {{name: first, endpoint: "{first.http_url}", token: "{first.key}", priority: 0}}\n'
        f'  - {{name: second, endpoint: "{second.http_url}", token: "{second.key}", priority: 1}}\n'
    )
    return {"azure_openai_endpoint": None, "azure_openai_token": None, "azure_openai_config": config}


def wait_until_shared(server: RedisServer, change: str) -> None:
    """Wait until a change is in the stream and both replicas have read it. Each reads the stream several times a second.

    A request would be no way to find out: it teaches the replica that sends it.
    """

    def reads() -> int:
        found = re.search(rb"cmdstat_xrange:calls=(\d+)", server("INFO", "commandstats"))
        return int(found[1]) if found else 0

    wait_until(lambda: change.encode() in server("XREVRANGE", backends.STREAM, "+", "-", "COUNT", "100"))
    before = reads()
    wait_until(lambda: reads() >= before + 6)


def test_cool_downs(replicas: Callable[..., list[Mitmdump]], azure: Simulator, redis_server: RedisServer, tmp_path: Path) -> None:
    """The other replica knows a cool-down, so that it does not meet the same error."""
    with Simulator() as second:
        one, two = replicas(**in_order(tmp_path, azure, second))
        azure.faults.always(status(429, retry_after=60))
        assert 200 == chat(one).status_code
        assert (1, 1) == (len(azure.requests), len(second.requests))
        wait_until_shared(redis_server, '["limit","first"')
        assert 200 == chat(two).status_code
        assert (1, 2) == (len(azure.requests), len(second.requests))


def test_owners_and_repairs(replicas: Callable[..., list[Mitmdump]], azure: Simulator, redis_server: RedisServer, tmp_path: Path) -> None:
    """The other replica asks the backend that has a stored response, and knows a repair that was learned."""
    with Simulator() as second:
        one, two = replicas(**in_order(tmp_path, azure, second))
        azure.faults.next(status(500))
        asked = httpx.post(f"{one.url}/v1/responses", json={"model": "gpt-4o", "input": "one"}, timeout=PATIENCE, trust_env=False)
        assert (200, 1, 1) == (asked.status_code, len(azure.requests), len(second.requests))
        id = asked.json()["id"]
        wait_until_shared(redis_server, f'["owner","{id}"')
        assert 200 == httpx.get(f"{two.url}/v1/responses/{id}", timeout=PATIENCE, trust_env=False).status_code
        assert (1, 2) == (len(azure.requests), len(second.requests))
        assert 200 == chat(one, model="o3-mini", max_tokens=50).status_code
        assert 3 == len(azure.requests)
        wait_until_shared(redis_server, '["repair",')
        assert 200 == chat(two, model="o3-mini", max_tokens=50).status_code
        assert 4 == len(azure.requests)
