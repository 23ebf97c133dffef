"""What was spent in the period of a budget."""

from __future__ import annotations

import datetime as dt

import pytest

from azure_openai_proxy.accounting.budgets import TOTAL, Budgets, Charge, owners, period_start
from azure_openai_proxy.config.clients import Budget, Client, Group, Period


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("day", utc(2026, 11, 28), utc(2026, 11, 29)),
        ("week", utc(2026, 11, 23), utc(2026, 11, 30)),
        ("month", utc(2026, 11, 1), utc(2026, 12, 1)),
        ("total", TOTAL, None),
    ],
)
def test_periods_are_of_the_calendar(period: Period, start: dt.datetime, end: dt.datetime | None) -> None:
    """Days, weeks from Monday and months begin at midnight UTC; `total` never ends."""
    now = utc(2026, 11, 28, 23, 59, 59)
    assert start == period_start(period, now)
    state = Budgets(now.timestamp).state("client a", Budget(1.0, period))
    assert (start, end) == (state.start, state.resets_at)


def test_charges_go_to_client_and_group() -> None:
    """Each budget counts its own period, the crossing charge included."""
    now = [utc(2026, 11, 28, 12).timestamp()]
    budgets, charges = Budgets(lambda: now[0]), list[Charge]()
    client, group = Client(name="a", group="g", budget=Budget(1.0, "day")), Group(name="g", budget=Budget(5.0))
    budgets.charge(client, group, 0.4)
    budgets.on_charge = charges.append
    budgets.charge(client, group, 0.7)
    own, shared = budgets.states(client, group)
    assert (1.1, True, 0.0) == (round(own.used, 6), own.gone, own.remaining)
    assert (1.1, False, 3.9) == (round(shared.used, 6), shared.gone, round(shared.remaining, 6))
    assert [Charge("a", "g", 0.7, now[0])] == charges
    now[0] += 86400
    assert [0.0, 1.1] == [round(state.used, 6) for state in budgets.states(client, group)]
    budgets.set_used("group g", utc(2026, 11, 1), 5.0)
    assert budgets.states(client, group)[1].gone
    assert [] == owners(Client(name="b"), Group(name="h"))
    budgets.charge(client, None, 0.1)
    assert "" == charges[-1].group
