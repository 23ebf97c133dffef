"""The cost of calls through a real mitmdump, with prices from a file that changes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from support.access_log import AccessLog
from support.processes import PATIENCE, Mitmdump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from azure_simulator import Simulator
    from support.processes import Decoy

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def priced(azure: Simulator, decoy: Decoy, confdir: Path, home: Path) -> Iterator[Mitmdump]:
    """A mitmdump with a price file, an access log and a backend in a data zone."""
    backends = [{"name": "sweden", "endpoint": azure.http_url, "zone": "eu"}]
    (home / "prices.yaml").write_text("models: {gpt-4o: {input: 1, output: 2, zones: {eu: {input: 100}}}}")
    (home / "mitm_config.yaml").write_text(
        json.dumps({"azure_openai_backends": backends, "azure_openai_prices": "prices.yaml", "azure_openai_access_log": "access.log"})
    )
    with Mitmdump(home, confdir, decoy_port=decoy.port) as mitmdump:
        yield mitmdump
        mitmdump.check()


def cost(mitmdump: Mitmdump, azure: Simulator, log: AccessLog) -> tuple[Any, int, int]:
    """The cost of a chat in millionths of a dollar, and its tokens as Azure reported them."""
    answer = httpx.post(
        f"{mitmdump.url}/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE
    )
    usage = answer.json()["usage"]
    return log.one()["cost_usd"], usage["prompt_tokens"], usage["completion_tokens"]


def test_prices_change_with_their_file(priced: Mitmdump, azure: Simulator, home: Path) -> None:
    """The price of the model that answered in the backend's zone applies; a changed file applies later, an invalid one does not."""
    log = AccessLog(home / "access.log")
    usd, prompt, completion = cost(priced, azure, log)
    assert (prompt * 100 + completion * 2) / 1e6 == pytest.approx(usd)

    (home / "prices.yaml").write_text("models: {gpt-4o-2024-11-20: {input: 3, output: 7}, gpt-4o: {input: 1000}}  # the exact name wins")
    while usd != pytest.approx((prompt * 3 + completion * 7) / 1e6):
        usd, prompt, completion = cost(priced, azure, log)

    (home / "prices.yaml").write_text("models: {gpt-4o: {input: 3, output: 7, tiers: {prioritty: {input: 9}}}}")
    priced.wait_for_log(r"azure_openai_prices \(prices\.yaml\): gpt-4o: tiers: 'prioritty' is not a known tier: did you mean priority\?")
    (home / "prices.yaml").write_text("models: {gpt-4o: {input: -1}}")
    priced.wait_for_log(r"prices\.yaml: gpt-4o: input: write USD per million tokens.*: the previous settings stay in force")
    usd, prompt, completion = cost(priced, azure, log)
    assert (prompt * 3 + completion * 7) / 1e6 == pytest.approx(usd)


def test_a_model_without_a_price(priced: Mitmdump, azure: Simulator, home: Path) -> None:
    """A call without a price has no cost, and the log names the model once."""
    log = AccessLog(home / "access.log")
    body = CHAT | {"model": "gpt-4"}
    for _ in range(2):
        httpx.post(f"{priced.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {azure.key}"}, timeout=PATIENCE)
        line = log.one()
        assert (200, None) == (line["status"], line["cost_usd"])
        assert line["input_tokens"]
    assert 1 == priced.log().count("No price for gpt-4-0613")


def test_an_invalid_file_stops_the_start(azure: Simulator, confdir: Path, home: Path) -> None:
    """A price file that cannot be used ends mitmdump at its start with one line that names file, model and key."""
    (home / "prices.yaml").write_text("models: {gpt-4o: {input: cheap}}")
    options = {"azure_openai_endpoint": azure.http_url, "azure_openai_prices": "prices.yaml"}
    mitmdump = Mitmdump(home, confdir, options=options).launch()
    assert 0 != mitmdump.wait()
    assert "azure_openai_prices (--set): prices.yaml: gpt-4o: input: write USD per million tokens" in mitmdump.log()
    assert "Traceback" not in mitmdump.log()
