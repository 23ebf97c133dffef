"""What requests of clients share: keys, prices and budgets."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from azure_openai_proxy.accounting.prices import Prices
from azure_openai_proxy.accounting.record import CallRecord, Tokens
from azure_openai_proxy.accounting.teams import Teams
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.api.model_mapping import Mapper
from azure_openai_proxy.config.clients import Budget, Client, ClientKey, Group, digest
from azure_openai_proxy.config.settings import Settings

if TYPE_CHECKING:
    import pytest

BASE = Base("https", "r.openai.azure.com", 443)
EAST, WEST = (
    Backend(name=name, base=BASE, apiversion="v1", models=models)
    for name, models in (("east", Mapper.parse("gpt-4o=gpt-4o")), ("west", None))
)
ALICE = Client(name="alice", keys=(ClientKey(digest("sk-a")),), backends=("west",), budget=Budget(1.0, "day"), group="team")
TEAM = Group(name="team", budget=Budget(10.0))
SETTINGS = Settings(backends=(EAST, WEST), clients=(ALICE,), groups=(TEAM,))
NOW = dt.datetime(2026, 11, 28, tzinfo=dt.UTC)


def teams(settings: Settings = SETTINGS) -> Teams:
    found = Teams(Prices(), clock=NOW.timestamp)
    found.use(settings)
    found.use(settings)
    return found


def call(**members: object) -> CallRecord:
    return CallRecord(**{"time": 0.0, "request_id": "", "trace_id": "", "status": 200} | members)  # type: ignore[arg-type]


def test_when_a_key_is_needed() -> None:
    """As soon as there was a client, or the ledger was not read yet, unless the setting says otherwise."""
    assert "off" == teams(Settings()).auth(Settings())
    known = teams()
    assert ["required", "optional"] == [known.auth(SETTINGS), known.auth(Settings(client_auth="optional"))]
    known.use(Settings())
    assert "required" == known.auth(Settings())
    waiting = teams(Settings())
    waiting.directory.waiting = "not read"
    assert "required" == waiting.auth(Settings())


def test_the_backends_of_a_client() -> None:
    """Only those that it may use are in its settings, those of a running request too."""
    known = teams()
    assert (WEST,) == known.settings_of(ALICE, SETTINGS).backends
    assert known.settings_of(ALICE, SETTINGS) is known.settings_of(ALICE, SETTINGS)
    assert (WEST,) == known.settings_of(ALICE, Settings(backends=(WEST,))).backends
    assert SETTINGS is known.settings_of(Client(name="b"), SETTINGS)


def test_the_price_before_an_answer() -> None:
    """By the model, by its deployment, or by the model with which the deployment last answered."""
    known = teams()
    assert ("gpt-4o", "gpt-4o") == known.price_name(SETTINGS, "gpt-4o", native=False)
    assert ("", "mine") == known.price_name(SETTINGS, "mine", native=False)
    assert ("", "mine") == known.price_name(Settings(backends=(EAST,)), "mine", native=False)
    known.note_answer(call(backend="west", deployment="mine", response_model="gpt-4o-2024-11-20"))
    known.note_answer(call(backend="west", deployment="mine"))
    assert ("gpt-4o-2024-11-20", "mine") == known.price_name(SETTINGS, "mine", native=False)


def test_the_cost_of_an_answer() -> None:
    """A model without a price costs what the model costs that admitted it."""
    known, tokens = teams(), Tokens(input=1000, output=10)
    usual = known.cost(call(tokens=tokens, response_model="gpt-4o"), "")
    assert usual
    assert usual == known.cost(call(tokens=tokens, response_model="new-model"), "gpt-4o")
    assert None is known.cost(call(tokens=tokens, response_model="new-model"), "")
    assert usual == known.cost(call(response_model="gpt-4o"), "", tokens)


def test_a_budget_of_which_most_is_spent(caplog: pytest.LogCaptureFixture) -> None:
    """At 80 % a line of the log says so, once in a period."""
    known = teams()
    for usd in (0.5, 0.4, 0.05):
        known.charge(ALICE, usd)
    assert ["The client alice has spent 0.90 of its budget of 1 USD (day)."] == [record.message for record in caplog.records]
    shown = {name: round(state.remaining, 6) for name, state in known.budget_states()}
    assert {"alice": 0.05, "group team": 9.05} == shown
    known.use(Settings(clients=(Client(name="b"),), groups=(Group(name="g"),)))
    assert [] == list(known.budget_states())
