"""The file of clients while the proxy runs, and what is kept of their keys."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

import httpx
import sqlalchemy as sa

from support.access_log import AccessLog
from support.processes import PATIENCE, Mitmdump
from support.prometheus import fetch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from azure_simulator import Simulator

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}
FIRST, SECOND, FILED = (f"sk-{name}-0123456789abcdef0123456789" for name in ("first", "second", "filed"))


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def test_the_life_of_a_file(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """Clients come and go while the proxy runs; their names are in log, metrics and ledger, and their keys nowhere."""
    config, key, log = tmp_path / "teams.yaml", tmp_path / "key", AccessLog(tmp_path / "access.log")
    key.write_text(FILED)
    first, filed = f"{{name: first, key: {FIRST}, requests_per_minute: 100}}", f"{{name: filed, key_file: {key}}}"

    def write(*clients: str) -> None:
        config.write_text(f"azure_openai_clients: [{', '.join(clients)}]\n")

    write(first, filed)
    options = {
        "azure_openai_endpoint": azure.http_url,
        "azure_openai_config": config,
        "azure_openai_access_log": log.path,
        "azure_openai_ledger": f"sqlite:///{tmp_path / 'ledger.db'}",
        "azure_openai_metrics": "127.0.0.1:0",
        "azure_openai_debug_headers": True,
    }
    flows = tmp_path / "flows"
    proxy = Mitmdump(
        tmp_path / "home", confdir, options=options, env={"AZURE_OPENAI_TOKEN": azure.key}, args=("-w", str(flows), "--flow-detail", "4")
    )
    with proxy, httpx.Client(base_url=proxy.url, timeout=PATIENCE) as http:

        def ask(key: str) -> int:
            return http.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"}).status_code

        until(lambda: ask(FIRST) == 200)  # the ledger is read in the background
        assert [200, 401] == [ask(FILED), ask(SECOND)]
        write(first, filed, f"{{name: second, key: {SECOND}, budget_usd: 1}}")
        until(lambda: ask(SECOND) == 200)
        write(first, "{name: broken}")
        proxy.wait_for_log("broken: write its key.*the previous settings stay in force")
        assert [200, 200] == [ask(FIRST), ask(SECOND)]
        key.write_text("sk-another-key-0123456789")
        write(first, filed)
        until(lambda: ask(FILED) == 401)
        assert [200, 401] == [ask(FIRST), ask(SECOND)]
        url = proxy.wait_for_log(r"Prometheus metrics: (http://\S+/metrics)")[1]
        page = fetch(url)
        assert re.search(r'azure_openai_proxy_requests_total\{.*client="first"', page)
        config.write_text("azure_openai_normalize: true\n")
        until(lambda: ask(FIRST) == 401)
        assert 401 == http.get("/v1/models").status_code
    names = {line["client"] for line in log.lines}
    assert {"", "first", "second", "filed"} == names
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
    with engine.connect() as connection:
        kept = {name for (name,) in connection.execute(sa.text("SELECT DISTINCT client FROM azure_openai_proxy_calls"))}
    engine.dispose()
    assert {"first", "second", "filed"} == kept
    places = [*tmp_path.glob("ledger.db*"), flows, log.path]
    texts = [path.read_bytes() for path in places] + [page.encode(), "\n".join((*proxy.output, *proxy.records)).encode()]
    assert not [one for one in (FIRST, SECOND, FILED) for text in texts if one.encode() in text]
    assert json.dumps([FIRST]) not in repr(azure.requests)


def test_a_budget_outlives_the_process(azure: Simulator, confdir: Path, tmp_path: Path) -> None:
    """The ledger has the sum from before a restart: the request that crosses the budget completes, and none after the restart."""
    config = tmp_path / "teams.yaml"
    config.write_text(f"azure_openai_clients: [{{name: first, key: {FIRST}, budget_usd: 0.000001, budget_period: total}}]\n")
    options = {
        "azure_openai_endpoint": azure.http_url,
        "azure_openai_config": config,
        "azure_openai_ledger": f"sqlite:///{tmp_path / 'ledger.db'}",
    }
    answers: list[int] = []
    for home in ("before", "after"):
        proxy = Mitmdump(tmp_path / home, confdir, options=options, env={"AZURE_OPENAI_TOKEN": azure.key})
        headers = {"authorization": f"Bearer {FIRST}"}
        with proxy, httpx.Client(base_url=proxy.url, headers=headers, timeout=PATIENCE) as http:
            until(lambda http=http: http.get("/azure-openai-proxy/key").status_code == 200)  # type: ignore[misc]
            answers.append(http.post("/v1/chat/completions", json=CHAT).status_code)
    assert [200, 429] == answers
