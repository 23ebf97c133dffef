"""The sums of budgets in a real server."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from azure_openai_proxy.accounting.budgets import TOTAL, Budgets, period_start
from azure_openai_proxy.accounting.clients import Directory
from azure_openai_proxy.accounting.ledger_clients import LedgerClients
from azure_openai_proxy.accounting.limits import LocalLimits
from azure_openai_proxy.accounting.shared import budgets
from azure_openai_proxy.accounting.shared.state import SharedState
from azure_openai_proxy.config.clients import Budget, Client, Group
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.state import Shared
from support.shared import until

if TYPE_CHECKING:
    import pytest

    from azure_openai_proxy.accounting.limits import LimitStore
    from support.redis import RedisServer as Server

ALICE = Client(name="alice", budget=Budget(10, "day"), group="search")
BOB = Client(name="bob", group="search")
GROUP = Group(name="search", budget=Budget(100, "total"))
TOTALS = "{azure-openai-proxy}:budgets:total:1970-01-01"


class Replica:
    def __init__(self) -> None:
        self.directory = Directory()
        self.directory.use_file([ALICE, BOB], [GROUP])
        self.budgets = Budgets()
        self.limits: LimitStore = LocalLimits()
        self.ledger = LedgerClients(self.directory, self.budgets)
        self.state = SharedState(Shared(Pool()), self, self.ledger)
        self.budgets.on_charge = self.state.charged

    @property
    def used(self) -> tuple[float, float]:
        now = dt.datetime.now(dt.UTC)
        return self.budgets.used("client alice", period_start("day", now)), self.budgets.used("group search", TOTAL)

    def charge(self, client: Client, usd: float) -> None:
        self.budgets.charge(client, GROUP, usd)


async def test_replicas_share_budgets(redis_server: Server) -> None:
    """Other replicas know each charge of one, without a ledger, also a replica that begins later."""
    one, two, late = Replica(), Replica(), Replica()
    settings = Settings(shared_state=redis_server.url)
    assert one.state.differs(settings)
    for replica in (one, two):
        await replica.state.follow(lambda: settings)
    one.charge(ALICE, 1.0)
    two.charge(BOB, 2.0)
    two.charge(ALICE, 4.0)
    await until(lambda: one.used == two.used == (5.0, 7.0))
    await late.state.follow(lambda: settings)
    await until(lambda: late.used == (5.0, 7.0))
    for replica in (one, two, late):
        await replica.state.close()


async def test_a_server_without_data(redis_server: Server) -> None:
    """A server that lost its data continues the sums that the first replica knows, with the charges of the outage."""
    one, two = Replica(), Replica()
    settings = Settings(shared_state=redis_server.url)
    for replica in (one, two):
        await replica.state.follow(lambda: settings)
    one.charge(ALICE, 1.0)
    await until(lambda: two.used == (1.0, 1.0))
    redis_server.kill()
    await until(lambda: not one.state.up and not two.state.up)
    one.charge(ALICE, 2.0)
    assert (3.0, 3.0) == one.used
    redis_server.start()
    await until(lambda: two.used == (3.0, 3.0))
    for replica in (one, two):
        await replica.state.close()


async def test_the_end_of_a_budget(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the end of a budget a request asks for the sum of all replicas, and waits for the reply if no limit makes it wait."""
    monkeypatch.setattr(budgets, "POLL_EVERY", 1_000_000)
    one, two = Replica(), Replica()
    assert None is two.budgets.refresh(ALICE, GROUP, wait=True)
    for replica in (one, two):
        await replica.state.follow(lambda: Settings(shared_state=redis_server.url))

    async def refresh() -> tuple[float, float]:
        waiting = two.budgets.refresh(ALICE, GROUP, wait=True)
        assert waiting
        await waiting
        return two.used

    assert (0.0, 0.0) == await refresh()
    one.charge(ALICE, 9.0)
    await until(lambda: redis_server("HGET", TOTALS, "group search") == b"$1\r\n9\r\n")
    assert (9.0, 9.0) == await refresh()
    one.charge(BOB, 1.0)
    await until(lambda: redis_server("HGET", TOTALS, "group search") == b"$2\r\n10\r\n")
    assert None is two.budgets.refresh(ALICE, GROUP, wait=False)
    await until(lambda: two.used == (9.0, 10.0))
    two.charge(BOB, 0.5)
    assert None is two.budgets.refresh(BOB, GROUP, wait=True)  # 180 such calls are left
    redis_server.pause()
    waiting = two.budgets.refresh(ALICE, GROUP, wait=True)
    assert waiting
    redis_server.kill()
    await waiting
    two.charge(ALICE, 1.0)
    assert two.budgets.state("client alice", Budget(10, "day")).gone
    for replica in (one, two):
        await replica.state.close()
    assert None is two.budgets.on_refresh


async def test_a_charge_that_was_not_received(redis_server: Server) -> None:
    """A charge that was under way when the server died is sent again."""
    replica = Replica()
    await replica.state.follow(lambda: Settings(shared_state=redis_server.url))
    redis_server.pause()
    replica.charge(ALICE, 1.0)
    redis_server.kill()
    await until(lambda: not replica.state.up)
    redis_server.start()
    await until(lambda: redis_server("HGET", TOTALS, "group search") == b"$1\r\n1\r\n")
    await replica.state.close()


async def test_the_client_was_deleted(redis_server: Server) -> None:
    """The charge of a client that was deleted meanwhile has no owner."""
    replica = Replica()
    await replica.state.follow(lambda: Settings(shared_state=redis_server.url))
    replica.charge(Client(name="carol"), 1.0)
    assert (0.0, 1.0) == replica.used
    assert b"*0\r\n" == redis_server("KEYS", "*budgets*")
    await replica.state.close()


async def test_the_life_of_the_state(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The shared state follows the settings: without a server each process has its own limits."""
    replica = Replica()
    assert (None, "") == (replica.state.up, replica.state.detail)
    replica.charge(ALICE, 1.0)
    settings = Settings(shared_state=redis_server.url)
    await replica.state.follow(lambda: settings)
    shared = replica.limits
    assert (True, "") == (replica.state.up, replica.state.detail)
    assert replica.ledger.shared
    await replica.state.follow(lambda: settings)
    assert shared is replica.limits
    await replica.state.follow(lambda: Settings(shared_state="redis://127.0.0.1:1", shared_state_failure="refuse"))
    assert shared is not replica.limits
    assert (False, "the shared state cannot be reached, clients with limits are refused") == (replica.state.up, replica.state.detail)
    assert "requests of limited clients are refused" in caplog.text
    await replica.state.follow(lambda: Settings(shared_state="redis://127.0.0.1:1"))
    assert "the shared state cannot be reached, each process counts on its own" == replica.state.detail
    await replica.state.follow(Settings)
    assert LocalLimits is type(replica.limits)
    assert [False] == [replica.ledger.shared]
    assert (1.0, 1.0) == replica.used
    await replica.state.close()


async def test_sums_that_are_no_numbers(redis_server: Server) -> None:
    """They are replaced by the sum that a replica knows at its next charge, and stop no reading of the others."""
    one = Replica()
    settings = Settings(shared_state=redis_server.url)
    await one.state.follow(lambda: settings)
    redis_server("HSET", TOTALS, "client other", "many")
    for known, text in enumerate(("many", "inf", "nan", "-5"), 1):
        redis_server("HSET", TOTALS, "group search", text)
        one.charge(BOB, 1.0)
        replaced = f"$1\r\n{known}\r\n".encode()

        def is_replaced(replaced: bytes = replaced) -> bool:
            return redis_server("HGET", TOTALS, "group search") == replaced

        await until(is_replaced)
        assert known == one.used[1]
    redis_server("HSET", TOTALS, "group search", "50")
    await until(lambda: one.used[1] == 50.0)
    await one.state.close()
