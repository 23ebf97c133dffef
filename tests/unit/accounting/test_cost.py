"""The cost of a call from its tokens and the prices of its model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_openai_proxy.accounting.cost import parts, tariff
from azure_openai_proxy.accounting.prices import built_in
from azure_openai_proxy.accounting.record import NO_TOKENS, Tokens
from azure_openai_proxy.config.prices import PARTS, ModelPrice, parse_models

MILLION = 1_000_000
GPT_5_4 = {
    "input": 1.25,
    "cached_input": 0.125,
    "cache_write_input": 1.5625,
    "output": 10,
    "tiers": {"priority": {"input": 2.5, "cached_input": 0.25, "output": 20}, "flex": {"input": 0.625, "output": 5}},
    "zones": {"eu": {"input": 1.375, "output": 11, "tiers": {"flex": {"input": 0.7}}}},
}


def price(row: dict[str, Any]) -> ModelPrice:
    return parse_models({"a": row})["a"]


def cost(tokens: Tokens, row: ModelPrice, *, tier: str | None = None, zone: str | None = None, fee: float | None = None) -> float | None:
    found = tariff(row, tier=tier, zone=zone, fee=fee)
    return found.usd(tokens) if found else None


def usd(row: dict[str, Any], *, tier: str | None = None, zone: str | None = None, fee: float | None = None, **tokens: int) -> float | None:
    """The cost in USD of a million times the tokens."""
    counts = Tokens(**{name: count * MILLION for name, count in tokens.items()})
    return cost(counts, price(row), tier=tier, zone=zone, fee=fee)


@pytest.mark.parametrize(
    "tokens, expected",
    [
        ({"input": 2}, 2 * 1.25),
        ({"input": 2, "output": 1}, 2 * 1.25 + 10),
        ({"input": 10, "cached_input": 4, "cache_write_input": 3, "output": 1}, 3 * 1.25 + 4 * 0.125 + 3 * 1.5625 + 10),
        ({"input": 10, "output": 7, "reasoning_output": 7}, 12.5 + 70),
        ({"input": 0, "output": 0}, 0),
    ],
)
def test_formula(tokens: dict[str, Any], expected: float) -> None:
    """Cached and cache-write input are subtracted from the input, and reasoning is a part of the output."""
    assert expected == pytest.approx(usd(GPT_5_4, **tokens))


def test_parts_without_a_price() -> None:
    """A part without a price of its own costs the input's; audio output the output's and cached audio the audio input's."""
    row = {"input": 2, "output": 5}
    every: dict[str, Any] = {"input": 10, "cached_input": 4, "cache_write_input": 3, "audio_input": 3, "cached_audio_input": 1}
    assert 20 == usd(row, **every)
    assert 20 == usd({"input": 2}, input=8, output=2)
    assert 16 + 10 == usd(row, input=8, output=2, audio_output=2)
    assert 2 * 2 + 3 * 7 == usd(row | {"audio_input": 7}, input=5, cached_input=1, audio_input=3, cached_audio_input=1)


def test_audio() -> None:
    """Audio tokens are parts of input, cached input and output, and have their own prices."""
    row = {"input": 4, "cached_input": 1, "output": 24, "audio_input": 32, "cached_audio_input": 0.5, "audio_output": 64}
    found = usd(row, input=100, cached_input=30, audio_input=60, cached_audio_input=20, output=10, audio_output=7)
    assert 30 * 4 + 10 * 1 + 40 * 32 + 20 * 0.5 + 3 * 24 + 7 * 64 == found


@pytest.mark.parametrize(
    "tier, zone, expected",
    [
        (None, None, (1.25, 0.125, 1.5625, 10)),
        ("default", None, (1.25, 0.125, 1.5625, 10)),
        ("priority", None, (2.5, 0.25, 1.5625, 20)),
        ("flex", None, (0.625, 0.125, 1.5625, 5)),
        (None, "eu", (1.375, 0.125, 1.5625, 11)),
        (None, "us", (1.25, 0.125, 1.5625, 10)),
        ("priority", "us", (2.5, 0.25, 1.5625, 20)),
        ("priority", "eu", (1.375, 0.125, 1.5625, 11)),  # the zone has no such tier
        ("flex", "eu", (0.7, 0.125, 1.5625, 11)),
    ],
)
def test_tiers_and_zones(tier: str | None, zone: str | None, expected: tuple[float, ...]) -> None:
    """A zone applies first, then its tier; a missing part of the input is the model's own, and so is a missing output."""
    plain = usd(GPT_5_4, tier=tier, zone=zone, input=1)
    cached = usd(GPT_5_4, tier=tier, zone=zone, input=1, cached_input=1)
    written = usd(GPT_5_4, tier=tier, zone=zone, input=1, cache_write_input=1)
    output = usd(GPT_5_4, tier=tier, zone=zone, input=0, output=1)
    assert expected == (plain, cached, written, output)


def test_a_part_that_neither_tier_nor_model_has() -> None:
    """In a tier, a part of the input that also the model has no price for costs the tier's input."""
    row = {"input": 2, "output": 5, "tiers": {"flex": {"input": 1}, "slow": {"output": 3}}}
    assert 1 == usd(row, tier="flex", input=1, cached_input=1)
    assert 2 == usd(row, tier="slow", input=1, cached_input=1)


def test_large_requests() -> None:
    """A request with more input tokens than the limit costs all at the prices above it, those of the highest limit exceeded."""
    row = {"input": 1, "cached_input": 0.5, "output": 2, "above": {3_000_000: {"input": 10}, 9_000_000: {"input": 20, "output": 30}}}
    assert 3 == usd(row, input=3)
    assert 3 * 10 + 0.5 + 2 == usd(row, input=4, cached_input=1, output=1)
    assert 200 + 30 == usd(row, input=10, output=1)
    tiers = {"tiers": {"flex": {"input": 0.5, "above": {3_000_000: {"input": 5}}}, "priority": {"input": 2}}}
    assert 20 == usd(row | tiers, tier="flex", input=4)
    assert 8 == usd(row | tiers, tier="priority", input=4)


def test_a_batch_without_a_price() -> None:
    """A batch has a cost only if the model, or its zone, has prices for batches."""
    row = {"input": 2, "zones": {"eu": {"input": 3, "tiers": {"batch": {"input": 1.5}}}}}
    assert usd(row, tier="batch", input=1) is None
    assert 1.5 == usd(row, tier="batch", zone="eu", input=1)
    assert 1 == usd(row | {"tiers": {"batch": {"input": 1}}}, tier="batch", input=1)


def test_a_price_in_one_zone_only() -> None:
    """A model whose prices are those of a zone has no cost elsewhere."""
    row = {"zones": {"eu": {"input": 3}}}
    assert 3 == usd(row, zone="eu", input=1)
    assert usd(row, input=1) is None


def test_fee() -> None:
    """A fee is added for each input token, cached or not."""
    assert 2 * 2 + 3 * 1 + 5 * 0.1 == usd({"input": 2, "cached_input": 1}, fee=0.1, input=5, cached_input=3)


def test_unknown_input() -> None:
    """Unknown input tokens give no cost, not a cost of 0."""
    assert cost(NO_TOKENS, price({"input": 1})) is None
    assert cost(Tokens(output=5), price({"input": 1})) is None


COUNTS = st.none() | st.integers(-5, 2_000_000) | st.integers(min_value=10**300)
TOKENS = st.builds(Tokens, **dict.fromkeys(Tokens._fields, COUNTS))
NUMBERS = st.floats(0, 100)
RATES = st.dictionaries(st.sampled_from(PARTS), NUMBERS)
LEVELS = st.builds(lambda rates, above: {**rates, "above": above}, RATES, st.dictionaries(st.integers(1, 2_000_000), RATES, max_size=2))
TIERS = st.dictionaries(st.sampled_from(["flex", "batch"]), LEVELS)
ZONES = st.dictionaries(st.sampled_from(["eu"]), st.builds(lambda level, tiers: {**level, "tiers": tiers}, LEVELS, TIERS))
ROWS = st.builds(
    lambda level, plain, tiers, zones: price({**level, "input": plain, "tiers": tiers, "zones": zones}), LEVELS, NUMBERS, TIERS, ZONES
)
PLACES = st.fixed_dictionaries({"tier": st.sampled_from([None, "flex", "batch", "auto"]), "zone": st.sampled_from([None, "eu", "us"])})


@given(TOKENS, ROWS, PLACES)
def test_never_negative(tokens: Tokens, row: ModelPrice, place: dict[str, Any]) -> None:
    """No tokens and no prices give a negative cost or an error."""
    found = cost(tokens, row, **place)
    assert found is None or found >= 0


@given(TOKENS)
def test_each_token_in_one_part(tokens: Tokens) -> None:
    """The parts add up to input and output, whatever the counts that include each other."""
    split = parts(tokens)
    if tokens.input is None:
        assert split is None
    else:
        assert split
        assert min(split) >= 0
        whole = min(max(tokens.input, 0), 10**12), min(max(tokens.output or 0, 0), 10**12)
        assert whole == (sum(split[:5]), sum(split[5:]))


@given(TOKENS, PLACES, st.floats(0, 100))
def test_equal_prices(tokens: Tokens, place: dict[str, Any], rate: float) -> None:
    """If all kinds of tokens have the same price, the cost is the number of tokens times the price: none is counted twice."""
    level = dict.fromkeys(PARTS, rate)
    row = price(level | {"tiers": {"batch": level}, "zones": {"eu": level | {"tiers": {"batch": level}}}})
    found = cost(tokens, row, **place)
    split = parts(tokens)
    assert found == (pytest.approx(sum(split) * rate / MILLION) if split else None)


SMALL = st.integers(0, 300_000)
BUILT_IN = st.sampled_from(sorted(built_in())).map(lambda name: built_in()[name])


@given(BUILT_IN, PLACES, SMALL, SMALL, SMALL, SMALL, st.sampled_from(["input", "output"]), SMALL)
def test_monotone(row: ModelPrice, place: dict[str, Any], plain: int, cached: int, written: int, output: int, part: str, more: int) -> None:
    """With the built-in prices, more input or output never costs less."""
    tokens = Tokens(plain + cached + written, cached, written, output)
    grown = tokens._replace(**{part: getattr(tokens, part) + more})
    before, after = cost(tokens, row, **place), cost(grown, row, **place)
    assert (before is None) == (after is None)
    assert before is None or after is None or after >= before * (1 - 1e-12)
