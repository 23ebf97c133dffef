"""Which price applies to a call: the built-in table, the file of `azure_openai_prices`, and the names to look up."""

from __future__ import annotations

import functools
import importlib.resources
import json
import logging
import re
from typing import TYPE_CHECKING

from azure_openai_proxy.config.prices import parse_models
from azure_openai_proxy.formats import quoting

from .cost import tariff

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from azure_openai_proxy.config.prices import ModelPrice, PriceFile

    from .cost import Tariff
    from .record import CallKind, CallRecord, Tokens

__all__ = ["DATA", "Prices", "built_in"]

logger = logging.getLogger(__name__)

DATA = "prices.json"
_DATE = re.compile(r"-(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4})$")  # gpt-4o-2024-11-20, gpt-35-turbo-0125
_MOST_NAMES = 100
_LONGEST_NAME = 200
_MOST_TARIFFS = 500


@functools.cache
def built_in() -> Mapping[str, ModelPrice]:
    """The prices that the package contains, by model name in lower case."""
    data = json.loads(importlib.resources.files(__package__).joinpath(DATA).read_bytes())
    return parse_models(data["models"])


class Prices:
    """Calculates costs, and logs each model without a price once."""

    def __init__(self) -> None:
        self._missing: set[str] = set()
        self._file: PriceFile | None = None
        self._tariffs: dict[tuple[str | None, ...], Tariff | None] = {}  # of the present file
        self._kinds: dict[CallKind, Tariff | None] = {}  # likewise

    def cost(
        self,
        tokens: Tokens,
        *,
        response_model: str | None,
        model: str | None = None,
        deployment: str | None = None,
        served_deployment: str | None = None,
        tier: str | None = None,
        zone: str | None = None,
        file: PriceFile | None = None,
    ) -> float | None:
        """Return the cost of a call in USD; None without a price or with an unknown number of input tokens.

        `response_model` is the name in the response, `model` the client's, `deployment` the one requested at Azure and
        `served_deployment` the one that Azure's headers name; `tier` is the service tier served ("batch" for a batch), `zone` the
        backend's data zone, `file` the one of the settings.
        """
        if tokens.input is None:
            return None
        self._use(file)
        key = (response_model, model, deployment, served_deployment, tier, zone)
        if key not in self._tariffs:
            if len(self._tariffs) >= _MOST_TARIFFS:
                self._tariffs.clear()
            self._tariffs[key] = self._tariff(*key)
        found = self._tariffs[key]
        return found.usd(tokens) if found else None

    def of_call(self, call: CallRecord, file: PriceFile | None = None) -> Tariff | None:
        """Return the prices of calls of the same kind as `call`, which are looked up once; None without a price."""
        self._use(file)
        kind = call.kind
        if kind is None:
            return self._of_call(call)
        if kind not in self._kinds:
            if len(self._kinds) >= _MOST_TARIFFS:
                self._kinds.clear()
            self._kinds[kind] = self._of_call(call)
        return self._kinds[kind]

    def _of_call(self, call: CallRecord) -> Tariff | None:
        tier = call.price_tier or call.service_tier
        return self._tariff(call.response_model, call.model, call.deployment, call.served_deployment, tier, call.zone)

    def _use(self, file: PriceFile | None) -> None:
        if file is not self._file:
            self._file = file
            self._tariffs.clear()
            self._kinds.clear()

    def has(self, name: str, *, zone: str | None = None, file: PriceFile | None = None) -> bool:
        """Return whether a model of this name has a price."""
        found = _find((file.models, built_in()) if file else (built_in(),), name, fee=False)
        return found is not None and tariff(found, zone=zone) is not None

    def _tariff(
        self,
        response_model: str | None,
        model: str | None,
        deployment: str | None,
        served_deployment: str | None,
        tier: str | None,
        zone: str | None,
    ) -> Tariff | None:
        tables = (self._file.models, built_in()) if self._file else (built_in(),)
        echo = response_model in (deployment, served_deployment)
        names = _names(None if echo else response_model, model, deployment)
        priced = next(filter(None, (_find(tables, name, fee=False) for name in names)), None)
        found = None
        if priced:
            fees = (_find(tables, name, fee=True) for name in (response_model, model, deployment) if name)
            found = tariff(priced, tier=tier, zone=zone, fee=next((row.fee for row in fees if row), None))
        if found is None:
            self._report(names[0] if names else "", tier)
        return found

    def _report(self, name: str, tier: str | None) -> None:
        name = name[:_LONGEST_NAME]
        if not name or name in self._missing or len(self._missing) >= _MOST_NAMES:
            return
        self._missing.add(name)
        what = quoting.line(name) + (" in a batch" if tier == "batch" else "")
        logger.warning("No price for %s: its calls have no cost. Add it to the file of azure_openai_prices.", what)
        if len(self._missing) == _MOST_NAMES:
            logger.warning("Further models without a price are not logged.")


def _names(response_model: str | None, model: str | None, deployment: str | None) -> tuple[str, ...]:
    """The names to look up, in order. Without a name in the response, which may only repeat the deployment's, the client's model counts."""
    if response_model:
        return (response_model,)
    return tuple(dict.fromkeys(name for name in (model, deployment) if name))


def _find(tables: tuple[Mapping[str, ModelPrice], ...], name: str, *, fee: bool) -> ModelPrice | None:
    """The row of a model, in each table under the exact name or under the name without its date.

    A row that has only a fee is found with `fee` alone, which finds rows with a fee.
    """
    for table in tables:
        for key in _keys(name):
            row = table.get(key)
            if row and (row.fee is not None if fee else row.level.rates.input is not None or row.zones):
                return row
    return None


def _keys(name: str) -> Iterator[str]:
    if len(name) <= _LONGEST_NAME:
        key = name.lower()
        yield key
        if (undated := _DATE.sub("", key)) != key:
            yield undated
