"""The cost of a call from its tokens and the prices of its model."""

from __future__ import annotations

import operator
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.config.prices import Level, ModelPrice, Rates

    from .record import Tokens

__all__ = ["BATCH", "Parts", "Tariff", "parts", "tariff"]

BATCH = "batch"
"""The tier of batches."""
_MOST = 10**12  # tokens of one call


class Parts(NamedTuple):
    """The tokens of a call, each in exactly one part: the first five add up to the input, the last two to the output."""

    input: int
    cached_input: int
    cache_write_input: int
    audio_input: int
    cached_audio_input: int
    output: int
    audio_output: int


class Tariff(NamedTuple):
    """The prices of a model in a tier and a zone, resolved: for each size of a request, the USD per million tokens of each of `Parts`."""

    limits: tuple[int, ...]  # of input tokens, ascending; a request with more has the next prices
    prices: tuple[tuple[float, ...], ...]  # one more than `limits`

    def usd(self, tokens: Tokens) -> float | None:
        """Return the cost; None if the input is unknown."""
        limits, prices = self
        input_, cached, written, output, _, audio, spoken, _ = tokens
        plain = not (cached or written or audio or spoken or limits)  # most calls, in half of the time
        if plain and input_ is not None and output is not None and 0 <= input_ <= _MOST and 0 <= output <= _MOST:
            return (input_ * prices[0][0] + output * prices[0][5]) / 1e6
        split = parts(tokens)
        if split is None:
            return None
        total: float = sum(map(operator.mul, split, prices[bisect_left(limits, sum(split[:5]))]))
        return total / 1e6


def parts(tokens: Tokens) -> Parts | None:
    """Split the tokens, whose counts include each other. None: the input is unknown.

    A count that exceeds the one that includes it is reduced to it.
    """
    if tokens.input is None:
        return None
    rest = _count(tokens.input)
    output = _count(tokens.output)
    spoken = min(_count(tokens.audio_output), output)
    if not (tokens.cached_input or tokens.cache_write_input or tokens.audio_input):
        return Parts(rest, 0, 0, 0, 0, output - spoken, spoken)
    cached = min(_count(tokens.cached_input), rest)
    cached_audio = min(_count(tokens.cached_audio_input), _count(tokens.audio_input), cached)
    rest -= cached
    written = min(_count(tokens.cache_write_input), rest)
    rest -= written
    audio = min(_count(tokens.audio_input) - cached_audio, rest)
    return Parts(rest - audio, cached - cached_audio, written, audio, cached_audio, output - spoken, spoken)


def tariff(price: ModelPrice, *, tier: str | None = None, zone: str | None = None, fee: float | None = None) -> Tariff | None:
    """Resolve prices, with `fee` for each million input tokens on top. None: there is no price.

    A batch needs a tier of its own. Any other tier without prices costs the prices of the zone or of the model.
    """
    inner = price.zones.get(zone or "")
    level = (inner.tiers if inner else price.tiers).get(tier or "")
    if level is None and tier == BATCH:
        return None
    levels = [price.level, *([inner.level] if inner else []), *([level] if level else [])]
    limits = sorted({limit for each in levels for limit, _ in each.above})
    prices = [_resolved(levels, total) for total in (0, *(limit + 1 for limit in limits))]
    if any(each is None for each in prices):
        return None
    return Tariff(tuple(limits), tuple((*(rate + (fee or 0) for rate in each[:5]), *each[5:]) for each in prices if each))


def _resolved(levels: Sequence[Level], total: int) -> tuple[float, ...] | None:
    """The prices of a request with so many input tokens, in the order of `Parts`. Later levels are more specific and come first."""
    rates: list[Rates] = []
    for level in reversed(levels):
        rates += [each for limit, each in reversed(level.above) if total > limit][:1]
        rates.append(level.rates)

    def first(part: str) -> float | None:
        return next((value for each in rates if (value := getattr(each, part)) is not None), None)

    plain = first("input")
    if plain is None:
        return None
    cached, written, output = (_or(first(part), plain) for part in ("cached_input", "cache_write_input", "output"))
    audio = _or(first("audio_input"), plain)
    return plain, cached, written, audio, _or(first("cached_audio_input"), audio), output, _or(first("audio_output"), output)


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _count(count: int | None) -> int:
    return min(count, _MOST) if count and count > 0 else 0
