"""Which price applies to a call."""

from __future__ import annotations

import datetime as dt
import importlib.resources
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from azure_openai_proxy import accounting
from azure_openai_proxy.accounting import prices as prices_module
from azure_openai_proxy.accounting.prices import DATA, Prices, built_in
from azure_openai_proxy.accounting.record import NO_TOKENS, CallRecord, Tokens
from azure_openai_proxy.config.prices import PriceFile, parse_models
from support.metering import of_kind

ONE = Tokens(input=1_000_000)


def file(**rows: Any) -> PriceFile:
    return PriceFile(Path("prices.yaml"), parse_models(rows))


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = parse_models(
        {
            "gpt-4o": {"input": 2.5, "tiers": {"flex": {"input": 1}}, "zones": {"eu": {"input": 3}}},
            "gpt-4o-2024-05-13": {"input": 5},
            "gpt-35-turbo": {"input": 0.5},
            "router": {"fee": 0.25},
        }
    )
    monkeypatch.setattr(prices_module, "built_in", lambda: table)


@pytest.mark.parametrize(
    "response_model, expected",
    [
        ("gpt-4o", 2.5),
        ("GPT-4o", 2.5),
        ("gpt-4o-2024-05-13", 5),
        ("gpt-4o-2024-11-20", 2.5),
        ("gpt-35-turbo-0125", 0.5),
        ("gpt-4o-mini", None),
        ("gpt-4o-2024-11-20.ft-abc", None),
        ("gpt-4o" + "-" * 100_000, None),
    ],
)
def test_exact_before_undated(response_model: str, expected: float | None) -> None:
    """The name in the response counts: exactly, else without its date."""
    assert expected == Prices().cost(ONE, response_model=response_model, model="gpt-4o", deployment="prod")


def test_the_file_precedes_the_built_in_prices() -> None:
    """Names of the file win over built-in ones, also an undated name over an exact built-in one."""
    own = file(**{"gpt-4o": {"input": 9}, "gpt-4o-2024-11-20": {"input": 8}})
    prices = Prices()
    assert 9 == prices.cost(ONE, response_model="gpt-4o-2024-05-13", file=own)
    assert 8 == prices.cost(ONE, response_model="gpt-4o-2024-11-20", file=own)
    assert 0.5 == prices.cost(ONE, response_model="gpt-35-turbo", file=own)


@pytest.mark.parametrize(
    "response_model, model, deployment, expected",
    [
        ("prod", "gpt-4o", "prod", 2.5),
        (None, "gpt-4o", "prod", 2.5),
        (None, "fast", "gpt-4o", 2.5),
        ("gpt-4o", "fast", "gpt-4o", 2.5),
        ("prod", "fast", "prod", None),
        ("gpt-35-turbo", "gpt-4o", "prod", 0.5),
        (None, None, None, None),
    ],
)
def test_a_response_that_repeats_the_deployment(
    response_model: str | None, model: str | None, deployment: str | None, expected: float | None
) -> None:
    """If the response names no model of its own, the client's model counts, then the deployment."""
    assert expected == Prices().cost(ONE, response_model=response_model, model=model, deployment=deployment)


def test_a_response_that_repeats_the_spillover_deployment() -> None:
    """The deployment that Azure's headers name is no model either."""
    prices = Prices()
    assert 2.5 == prices.cost(ONE, response_model="spill", model="gpt-4o", deployment="prod", served_deployment="spill")
    assert prices.cost(ONE, response_model="spill", model="gpt-4o", deployment="prod", served_deployment="prod") is None


def test_tier_and_zone() -> None:
    """The tier served and the zone of the backend choose the price."""
    prices = Prices()
    assert 1 == prices.cost(ONE, response_model="gpt-4o", tier="flex")
    assert 3 == prices.cost(ONE, response_model="gpt-4o", zone="eu")


@pytest.mark.parametrize(
    "response_model, model, deployment, expected",
    [
        ("gpt-4o", "router", "router", 2.75),
        ("gpt-4o", "fast", "router", 2.75),
        ("gpt-4o", "router", "prod", 2.75),
        ("router", "router", "router", None),
        ("router-2026-01-01", "gpt-4o", "prod", None),
    ],
)
def test_router(response_model: str, model: str, deployment: str, expected: float | None) -> None:
    """A router's fee is added to the price of the model that answered, and is no price by itself."""
    assert expected == Prices().cost(ONE, response_model=response_model, model=model, deployment=deployment)


def test_a_fee_in_the_file() -> None:
    """A file can give any deployment a fee, and the model's own price still comes from the built-in table."""
    own = file(mine={"fee": 1})
    assert 3.5 == Prices().cost(ONE, response_model="gpt-4o", model="gpt-4o", deployment="mine", file=own)


def test_a_missing_price_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log names a model without a price once, escaped."""
    prices = Prices()
    for _ in range(3):
        assert prices.cost(ONE, response_model="gpt-\x1b9\n") is None
    assert prices.cost(ONE, response_model="gpt-4o", tier="batch") is None
    assert [
        r"No price for gpt-\x1b9\n: its calls have no cost. Add it to the file of azure_openai_prices.",
        "No price for gpt-4o in a batch: its calls have no cost. Add it to the file of azure_openai_prices.",
    ] == caplog.messages


def test_log_lines_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """10,000 made-up models cause about a hundred short log lines."""
    prices = Prices()
    for number in range(10_000):
        prices.cost(ONE, response_model=f"{number}-" + "x" * 1000)
    assert 101 == len(caplog.messages)
    assert "Further models without a price are not logged." == caplog.messages[-1]
    assert max(map(len, caplog.messages)) < 400
    assert 100 == len(prices._missing)


def test_a_changed_file_applies_to_the_next_call() -> None:
    """Prices that were resolved for the previous file are not used any longer, and the memory for resolved prices is bounded."""
    prices = Prices()
    for rate in (7, 8):
        assert rate == prices.cost(ONE, response_model="gpt-4o", file=file(**{"gpt-4o": {"input": rate}}))
    assert 2.5 == prices.cost(ONE, response_model="gpt-4o")
    for number in range(2_000):
        assert 2.5 == prices.cost(ONE, response_model="gpt-4o", model=f"m{number}")
    assert len(prices._tariffs) <= prices_module._MOST_TARIFFS


def test_calls_of_a_kind() -> None:
    """The tariff of a kind is that of each of its calls, until another file of prices counts. Many kinds do not fill the memory."""
    prices, own = Prices(), file(**{"gpt-4o": {"input": 9}})
    call = CallRecord(time=0.0, request_id="", trace_id="", response_model="gpt-4o", tokens=ONE, price_tier="flex")
    first = of_kind(call)

    def cost(of: CallRecord, prices_of: PriceFile | None = None) -> float | None:
        found = prices.of_call(of, prices_of)
        return found and found.usd(ONE)

    assert [1, 1, 1] == [cost(one) for one in (call, first, of_kind(call, first.kind))]
    assert 9 == cost(first, own)
    for _ in range(prices_module._MOST_TARIFFS + 1):
        assert 1 == cost(of_kind(call))
    assert len(prices._kinds) <= prices_module._MOST_TARIFFS


def test_unknown_tokens(caplog: pytest.LogCaptureFixture) -> None:
    """Unknown tokens have no cost, and say nothing about the model's price."""
    with caplog.at_level(logging.DEBUG):
        assert Prices().cost(NO_TOKENS, response_model="gpt-9") is None
    assert [] == caplog.messages


def test_built_in_prices() -> None:
    """The package contains prices of Azure's models with zones, tiers, limits, a fee and audio, the source, its date and its licence."""
    table = built_in()
    assert len(table) > 150
    assert (2.5, 1.25, 10) == (
        table["gpt-4o"].level.rates.input,
        table["gpt-4o"].level.rates.cached_input,
        table["gpt-4o"].level.rates.output,
    )
    assert {"us", "eu"} <= table["gpt-4o"].zones.keys()
    assert {"batch", "flex", "priority"} <= table["gpt-5.4"].tiers.keys()
    assert 272_000 == table["gpt-5.4"].level.above[0][0]
    assert 0.14 == table["model-router"].fee
    assert table["gpt-realtime"].level.rates.audio_input
    data = json.loads(importlib.resources.files(accounting).joinpath(DATA).read_bytes())
    assert "Copyright (c) 2023 Berri AI" in data["license"]
    assert data["source"].startswith("https://")
    assert data["date"] == dt.date.fromisoformat(data["date"]).isoformat()
