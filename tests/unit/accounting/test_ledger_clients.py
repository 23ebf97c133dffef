"""The managed clients and budgets of a process, as the ledger says."""

from __future__ import annotations

import datetime as dt
import logging

import pytest

from azure_openai_proxy.accounting.budgets import TOTAL, Budgets, period_start
from azure_openai_proxy.accounting.clients import Directory
from azure_openai_proxy.accounting.ledger.state import LedgerState
from azure_openai_proxy.accounting.ledger_clients import WAITING, LedgerClients
from azure_openai_proxy.config.clients import Budget, Client, ClientKey, Group, digest

NOW = dt.datetime(2026, 8, 13, 12, tzinfo=dt.UTC)
DAY = NOW.date()
ALICE = Client(name="alice", keys=(ClientKey(digest("sk-a")),), budget=Budget(10, "day"), group="search")
BOB = Client(name="bob", keys=(ClientKey(digest("sk-b")),), group="search")
GROUP = Group(name="search", budget=Budget(100, "total"))


class Made:
    def __init__(self) -> None:
        self.directory = Directory()
        self.budgets = Budgets(NOW.timestamp)
        self.clients = LedgerClients(self.directory, self.budgets)
        self.budgets.on_charge = self.clients.charged
        self.directory.use_file([], [GROUP])

    def used(self) -> tuple[float, float]:
        return self.budgets.used("client alice", period_start("day", NOW)), self.budgets.used("group search", TOTAL)


@pytest.mark.parametrize("ledger, off, waits", [(True, False, True), (True, True, False), (False, False, False)])
def test_waiting(ledger: bool, off: bool, waits: bool) -> None:
    """With a ledger, and keys not off, requests wait until it was read once, and never again."""
    made = Made()
    made.clients.expect(ledger=ledger, off=off)
    assert (WAITING if waits else "") == made.directory.waiting
    assert "azure_openai_ledger" in WAITING
    made.clients.apply(LedgerState((), ever=False, others={}))
    made.clients.expect(ledger=True, off=False)
    assert ("", False) == (made.directory.waiting, made.directory.had_clients)


def test_keys() -> None:
    """The keys of the database are known, and end when it no longer has them; keys stay required."""
    made = Made()
    made.clients.apply(LedgerState((ALICE,), ever=True, others={}))
    assert ALICE == made.directory.find("sk-a")
    made.clients.apply(LedgerState((), ever=True, others={}))
    assert made.directory.find("sk-a") is None
    assert made.directory.had_clients


def test_a_ledger_that_had_keys() -> None:
    """A ledger whose last key was deleted before this process began still requires keys."""
    made = Made()
    made.clients.apply(LedgerState((), ever=True, others={}))
    assert made.directory.had_clients


def test_budgets() -> None:
    """A budget's sum has the costs that others wrote and the charges of this process; a group's is that of its members."""
    made = Made()
    others = {("alice", DAY): 1.0, ("alice", TOTAL.date()): 2.0, ("bob", TOTAL.date()): 4.0}
    made.clients.apply(LedgerState((ALICE, BOB), ever=True, others=others))
    assert (1.0, 6.0) == made.used()
    made.budgets.charge(ALICE, GROUP, 8.0)
    made.budgets.charge(BOB, GROUP, 16.0)
    assert (9.0, 30.0) == made.used()
    made.clients.apply(LedgerState((ALICE, BOB), ever=True, others=others | {("alice", DAY): 1.5}))
    assert (9.5, 30.0) == made.used()
    made.clients.shared = True
    made.budgets.set_used("client alice", period_start("day", NOW), 10.0)
    made.clients.apply(LedgerState((ALICE, BOB), ever=True, others=others))
    assert (10.0, 30.0) == made.used()


def test_an_unknown_group(caplog: pytest.LogCaptureFixture) -> None:
    """A managed key whose group the file does not have is logged once, and again if the group is removed a second time."""
    made = Made()
    state = LedgerState((Client(name="carol", group="none"), BOB), ever=True, others={})
    line = "The key carol is refused: it is in the group none, which azure_openai_client_groups does not have"
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made.clients.apply(state)
        assert [line] == caplog.messages
        made.directory.use_file([], [GROUP, Group(name="none")])
        made.clients.apply(state)
        made.directory.use_file([], [GROUP])
        made.clients.apply(state)
    assert [line, line] == caplog.messages
