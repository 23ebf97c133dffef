"""Clients with keys, their limits and their budgets: what all requests share."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from .budgets import Budgets
from .clients import Directory
from .limits import LocalLimits
from .lru import Lru

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Awaitable, Callable, Iterator

    from azure_openai_proxy.config.clients import Client
    from azure_openai_proxy.config.prices import PriceFile
    from azure_openai_proxy.config.settings import Settings

    from .budgets import BudgetState
    from .limits import LimitStore
    from .prices import Prices
    from .record import CallRecord, Tokens

__all__ = ["Guess", "Teams"]

logger = logging.getLogger(__name__)

ALERT = 0.8
"""Part of a budget whose use is logged."""
MOST_ANSWERS = 1000
"""Deployments of which the last model that answered is remembered, and pieces of work whose usage another request will show."""


type Spent = Callable[[str, dt.date, dt.date], Awaitable[float | None]]
"""The amount that a client spent from one day to another, from the ledger; None without one."""


class Guess(NamedTuple):
    """Work whose usage is known later: a response in the background, a batch. Its client pays for it, whichever client asks for it."""

    client: Client
    admitted_as: str = ""
    usd: float = 0.0  # charged by an estimate
    tokens: int = 0  # counted by an estimate


class Teams:
    """The directory of clients, the counters of limits, and the sums of budgets."""

    def __init__(self, prices: Prices, spent: Spent | None = None, clock: Callable[[], float] = time.time) -> None:
        self.directory = Directory()
        self.limits: LimitStore = LocalLimits(clock)
        self.budgets = Budgets(clock)
        self.spent = spent
        self.refusals: Counter[tuple[str, str]] = Counter()  # by client and limit
        self.prices = prices
        self.price_file: PriceFile | None = None
        self.guessed: Lru[str, Guess | None] = Lru(MOST_ANSWERS)  # by the ids of responses and batches
        self._settings: Settings | None = None
        self._restricted: dict[str, Settings] = {}
        self._answered: Lru[tuple[str, str], str] = Lru(MOST_ANSWERS)
        self._alerted: set[tuple[str, dt.datetime]] = set()

    def use(self, settings: Settings) -> None:
        """Apply changed settings."""
        if settings is self._settings:
            return
        before, self._settings = self._settings, settings
        self.price_file = settings.prices
        self._restricted.clear()
        if before is None or (before.clients, before.groups) != (settings.clients, settings.groups):
            self.directory.use_file(settings.clients, settings.groups)

    def auth(self, settings: Settings) -> Literal["required", "optional", "off"]:
        """Whether requests need a key."""
        if settings.client_auth:
            return settings.client_auth
        return "required" if self.directory.had_clients or self.directory.waiting else "off"

    def settings_of(self, client: Client, settings: Settings) -> Settings:
        """The settings with only those backends that a client may use."""
        if not client.backends:
            return settings
        if settings is not self._settings or client.name not in self._restricted:
            backends = tuple(backend for backend in settings.backends if backend.name in client.backends)
            self._restricted[client.name] = dataclasses.replace(settings, backends=backends)
        return self._restricted[client.name]

    # Prices

    def cost(self, call: CallRecord, admitted_as: str, tokens: Tokens | None = None) -> float | None:
        """The cost of a call, or of `tokens` instead of its own; at the price of `admitted_as` if its own model has none."""
        of = self.prices.cost
        tokens = tokens or call.tokens
        tier, file = call.price_tier or call.service_tier, self.price_file
        usd = of(
            tokens,
            response_model=call.response_model,
            model=call.model,
            deployment=call.deployment,
            served_deployment=call.served_deployment,
            tier=tier,
            zone=call.zone,
            file=file,
        )
        return of(tokens, response_model=admitted_as, zone=call.zone, file=file) if usd is None and admitted_as else usd

    def priced(self, name: str, zone: str | None = None) -> bool:
        return self.prices.has(name, zone=zone, file=self.price_file)

    def price_name(self, settings: Settings, model: str, *, native: bool) -> tuple[str, str]:
        """The name by which the price of a request is known before its answer, "" if by none; and the deployment to price."""
        deployments = []
        for backend in settings.backends:
            if not backend.serves(model):
                continue
            deployment = backend.deployment(model, settings.mapper, native=native)
            deployments.append(deployment)
            answered = self._answered.get((backend.name, deployment), "")
            for name in filter(None, (model, deployment, answered)):
                if self.priced(name, backend.zone or None):
                    return name, deployment
        return "", deployments[0] if deployments else model

    def note_answer(self, call: CallRecord) -> None:
        """Remember which model a deployment answered with."""
        if call.response_model and call.backend and call.deployment and call.names_work:
            self._answered.add((call.backend, call.deployment), call.response_model)

    # Budgets

    def charge(self, client: Client, usd: float) -> None:
        """Charge an amount to the budgets of a client and its group, and log a budget of which 80 % are spent, once a period."""
        for state in self.budgets.charge(client, self.directory.group(client), usd):
            if state.used >= ALERT * state.budget.usd and (state.owner, state.start) not in self._alerted:
                self._alerted = {one for one in self._alerted if one[0] != state.owner} | {(state.owner, state.start)}
                logger.warning(
                    "The %s has spent %.2f of its budget of %g USD (%s).", state.owner, state.used, state.budget.usd, state.budget.period
                )

    def budget_states(self) -> Iterator[tuple[str, BudgetState]]:
        """All budgets, by the names of the clients; a group's by `group NAME`."""
        for client in self.directory.clients.values():
            if client.budget:
                yield client.name, self.budgets.state(f"client {client.name}", client.budget)
        for group in self.directory.groups.values():
            if group.budget:
                yield f"group {group.name}", self.budgets.state(f"group {group.name}", group.budget)
