"""State of backends that replicas share, through a real server."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from azure_openai_proxy.accounting.shared import backends as module
from azure_openai_proxy.accounting.shared.backends import STREAM, SharedBackends
from azure_openai_proxy.accounting.shared.link import Link
from azure_openai_proxy.api.backend import Backend, Base
from azure_openai_proxy.routing import learned_repairs, repair_changes
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.state import Shared
from support.shared import linked, until

if TYPE_CHECKING:
    import pytest

    from support.redis import RedisServer as Server

EAST = Backend(name="east", base=Base("https", "east.example", 443), token="k", apiversion="v1")
KEY = learned_repairs.Key("east", "gpt-4o", "/chat/completions")
DROP = repair_changes.Drop("temperature")


class Replica:
    def __init__(self, server: Server) -> None:
        self.routing = Shared(Pool())
        self.routing.use((EAST,))
        self.link = Link(server.url)
        self.shared = SharedBackends(self.link, self.routing)

    def knows(self) -> tuple[bool, bool, bool]:
        """Whether it knows a cool-down, an owner and a repair."""
        routing = self.routing
        return not routing.pool.is_up("east", "gpt-4o"), bool(routing.owners.newest(1)), bool(routing.learned.get(KEY))

    def learns(self) -> None:
        pool = self.routing.pool
        pool.rate_limited(pool.begin(EAST, "gpt-4o"), 60.0)
        self.routing.owners.add("resp_1", "east")
        self.routing.learned.add(KEY, [DROP])


async def test_replicas_learn_from_each_other(redis_server: Server) -> None:
    """Other replicas know each change of one, also one that joins later; nothing comes back to its sender."""
    one, two, late = Replica(redis_server), Replica(redis_server), Replica(redis_server)
    async with linked(one.link, one.shared), linked(two.link, two.shared):
        one.learns()
        await until(lambda: two.knows() == (True, True, True))
        assert [("resp_1", "east")] == two.routing.owners.newest(9)
        assert (DROP,) == two.routing.learned.get(KEY)
        async with linked(late.link, late.shared):
            await until(lambda: late.knows() == (True, True, True))
        entries = await one.link.ask("XRANGE", STREAM, "-", "+")
        assert {one.link.process.encode()} == {fields[b"p"] for _, fields in entries}


async def test_changes_of_an_outage(redis_server: Server) -> None:
    """Repairs, owners and cool-downs of an outage and of the time before are known when the server is back."""
    one, two = Replica(redis_server), Replica(redis_server)
    async with linked(one.link, one.shared):
        one.routing.owners.add("resp_1", "east")
        one.routing.learned.add(KEY, [DROP])
        redis_server.kill()
        await until(lambda: not one.link.up)
        pool = one.routing.pool
        pool.rate_limited(pool.begin(EAST, "gpt-4o"), 60.0)
        redis_server.start()
        async with linked(two.link, two.shared):
            await until(lambda: two.knows() == (True, True, True))


async def test_a_lost_connection(redis_server: Server) -> None:
    """A process that lost its connection learns the changes of that time; a change that is over is not sent."""
    one, two = Replica(redis_server), Replica(redis_server)
    async with linked(one.link, one.shared), linked(two.link, two.shared):
        one.shared._changed("failing", "east", "gpt-4o")
        redis_server("CLIENT", "KILL", "TYPE", "normal")
        one.learns()
        await until(lambda: two.knows() == (True, True, True))


async def test_many_changes(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many changes are in several entries, and are read in several steps; beyond a number, changes are not kept for the server."""
    monkeypatch.setattr(module, "AT_ONCE", 3)
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    one, two = Replica(redis_server), Replica(redis_server)
    for number in range(12):
        one.routing.owners.add(f"resp_{number}", "east")
        one.shared._changed("absent", "east", f"d{number}")
    one.shared._changed("down", "west", "d")
    async with linked(one.link, one.shared):
        one.routing.owners.publish = None
        await until(lambda: not one.shared._owners)
        async with linked(two.link, two.shared):
            await until(lambda: len(two.routing.owners) >= 10)


async def test_entries_of_another_version(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Entries that a process does not understand are skipped, and later entries are read."""
    replica = Replica(redis_server)
    strange: list[Any] = [["owner", 1, 2], ["repair", ["east"], []], ["other", "east", "d", []], "x", None, ["up", "east", "d", "x"]]
    with caplog.at_level(logging.WARNING):
        async with linked(replica.link, replica.shared):
            for fields in (
                ["d", "[]"],
                ["p", "x", "d", "["],
                ["p", "x", "d", json.dumps(strange)],
                ["p", "x", "d", '[["limit","east","d",["x",1,0]]]'],
                ["p", "x", "d", '[["tokens","east","d",[Infinity,1,0]]]'],
                ["p", "x", "d", "[" * 100_000],
            ):
                await replica.link.ask("XADD", STREAM, "*", *fields)
            await replica.link.ask("XADD", STREAM, "*", "p", "x", "d", '[["owner","resp_2","east"]]')
            await until(lambda: replica.routing.owners.newest(9) == [("resp_2", "east")])
    skipped = [message.removeprefix("An entry of the shared state is skipped: ") for message in caplog.messages]
    assert ["KeyError", "JSONDecodeError", "TypeError", "OverflowError"] == skipped[:4]
    assert skipped[4] in {"RecursionError", "JSONDecodeError"}  # the depth that Python reads depends on its version


async def test_the_end(redis_server: Server) -> None:
    """After its end nothing is collected, and repairs for a client's own key are never shared."""
    replica = Replica(redis_server)
    replica.routing.learned.add(KEY._replace(scope=b"own"), [DROP])
    assert [] == replica.shared._waiting()
    replica.shared.close()
    replica.learns()
    assert [] == replica.shared._waiting()
