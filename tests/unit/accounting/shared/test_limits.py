"""The counters of limits in a real server, and without it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.limits import WINDOW, Claim, Refused, Reservation, Unavailable, Use
from azure_openai_proxy.accounting.shared import deadlines, scripts
from azure_openai_proxy.accounting.shared import limits as module
from azure_openai_proxy.accounting.shared.limits import SharedLimits
from azure_openai_proxy.accounting.shared.link import PREFIX, Down, Link, _PendingCommand
from support.shared import linked, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from azure_openai_proxy.accounting.limits import Outcome
    from support.redis import RedisServer as Server

REQUESTS = Claim("client alice", "requests_per_minute", 3, 1, "client alice:requests_per_minute")
TOKENS = Claim("client alice", "tokens_per_minute", 1000, 900, "client alice:tokens_per_minute")
PLACE = Claim("client alice", "max_parallel", 2, 1, "client alice:max_parallel")
ALL = [REQUESTS, TOKENS, PLACE]


class Replica:
    def __init__(self, server: Server, *, refuse: bool = False) -> None:
        self.link = Link(server.url)
        self.limits = SharedLimits(self.link, refuse=refuse)

    async def reserve(self, *claims: Claim) -> Outcome:
        outcome = self.limits.reserve(claims)
        return outcome if isinstance(outcome, Reservation | Refused | Unavailable) else await outcome

    async def reserved(self, *claims: Claim) -> Reservation:
        outcome = await self.reserve(*claims)
        assert isinstance(outcome, Reservation), outcome
        return outcome

    async def refused(self, *claims: Claim) -> Refused:
        outcome = await self.reserve(*claims)
        assert isinstance(outcome, Refused), outcome
        return outcome

    async def used(self, claim: Claim) -> int:
        """What the server has counted."""
        sums: dict[bytes, bytes] = await self.link.ask("HGETALL", PREFIX + claim.key)
        return sum(map(int, sums.values()))


def used(uses: Sequence[Use]) -> list[int]:
    return [use.used for use in uses]


async def test_replicas_share_limits(redis_server: Server) -> None:
    """All claims of a request are reserved together or not at all, over replicas; the refusal names the limit and an exact wait."""
    one, two = Replica(redis_server), Replica(redis_server)
    async with linked(one.link, one.limits), linked(two.link, two.limits):
        first = await one.reserved(*ALL)
        uses = one.limits.look(first.claims)
        assert [1, 900, 1] == used(uses)
        assert all(59 <= use.reset <= 60 for use in uses[:2])
        refusal = await two.refused(*ALL)
        assert (TOKENS, [1, 900, 1]) == (refusal.claim, used(refusal.uses))
        assert 50 < refusal.wait <= 60
        two.limits.settle(await two.reserved(REQUESTS, PLACE))
        assert [2, 900, 1] == used((await two.refused(*ALL)).uses)
        assert [2, 900, 1] == used(two.limits.look(ALL))
        assert [1, 900, 1] == used(one.limits.look(ALL))
        await two.reserved(PLACE)
        refusal = await two.refused(PLACE)
        assert (PLACE, 1.0) == (refusal.claim, refusal.wait)


async def test_settling(redis_server: Server) -> None:
    """The end of a request frees its place and replaces its tokens by the real ones, once; a refund gives everything back."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        reservation = await replica.reserved(*ALL)
        for _ in range(2):
            replica.limits.settle(reservation, 16)
        assert [1, 16, 0] == [await replica.used(claim) for claim in ALL]
        assert [1, 16, 0] == used(replica.limits.look(ALL))
        replica.limits.settle(await replica.reserved(*ALL))
        assert [2, 916, 0] == [await replica.used(claim) for claim in ALL]
        small = TOKENS._replace(take=50)
        replica.limits.settle(await replica.reserved(REQUESTS, small, PLACE), refund=True)
        assert [2, 916, 0] == [await replica.used(claim) for claim in ALL]
        replica.limits.settle(await replica.reserved(small._replace(take=0)), 0)
        assert 916 == await replica.used(TOKENS)


async def test_the_places_of_a_killed_process(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of a process without a sign of life do not count; those of a process that is alive do."""
    killed, other = Replica(redis_server), Replica(redis_server)
    assert scripts.LIVE + module.BEAT_EVERY < 30
    async with linked(killed.link, killed.limits), linked(other.link, other.limits):
        for _ in range(2):
            await killed.reserved(PLACE)
        await other.refused(PLACE)
        monkeypatch.setattr(killed.link, "listeners", [])
        await other.link.ask("HSET", f"{PREFIX}live", killed.link.process, int(time.time()) - scripts.LIVE - 1)
        await other.reserved(PLACE)
        assert 1 == await other.used(PLACE)


async def test_a_process_that_was_taken_for_dead(redis_server: Server) -> None:
    """A process that was suspended for long tells its places again."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        await replica.reserved(PLACE)
        await replica.link.ask("DEL", f"{PREFIX}live", PREFIX + PLACE.key)
        replica.limits._next_beat = 0.0
        async with asyncio.timeout(20):
            while await replica.used(PLACE) != 1:
                await asyncio.sleep(0.01)
        assert await replica.link.ask("HGET", f"{PREFIX}live", replica.link.process)


async def test_the_server_is_down(redis_server: Server) -> None:
    """Without the server a process goes on with its own counters, which know its last minute, and brings them to a server without data."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        before = await replica.reserved(*ALL)
        redis_server.kill()
        await until(lambda: not replica.link.up)
        assert [1, 900, 1] == used(replica.limits.look(ALL))
        assert TOKENS == (await replica.refused(*ALL)).claim
        during = await replica.reserved(REQUESTS, TOKENS._replace(take=50), PLACE)
        replica.limits.settle(before, 100)
        third = await replica.reserved(REQUESTS, PLACE)
        redis_server.start()
        await until(lambda: replica.link.up)
        assert [3, 150, 2] == [await replica.used(claim) for claim in ALL]
        replica.limits.settle(during, 10)
        replica.limits.settle(third, refund=True)
        assert [2, 110, 0] == [await replica.used(claim) for claim in ALL]
        replica.limits.settle(await replica.reserved(REQUESTS, PLACE))
        assert REQUESTS == (await replica.refused(REQUESTS)).claim


async def test_a_server_that_kept_its_data(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a lost connection the server gets only the amounts that it does not know."""
    monkeypatch.setattr(SharedLimits, "tick", lambda _: asyncio.sleep(0))  # it would use the link that is set down here
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        before = await replica.reserved(*ALL)
        replica.link.up = False
        during = await replica.reserved(REQUESTS, TOKENS._replace(take=50), PLACE)
        replica.limits.settle(before)
        replica.limits.settle(await replica.reserved(REQUESTS, TOKENS._replace(take=20), PLACE), 5)
        redis_server("CLIENT", "KILL", "TYPE", "normal")
        replica.link._put(_PendingCommand(("PING",)))  # notices it
        await until(lambda: replica.link.up)
        assert [3, 955, 1] == [await replica.used(claim) for claim in ALL]
        replica.limits.settle(during, 0)
        assert [3, 905, 0] == [await replica.used(claim) for claim in ALL]


async def test_a_place_that_is_free_after_an_outage(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that ends while the link is down gives its place back at a server that kept its data."""
    monkeypatch.setattr(SharedLimits, "tick", lambda _: asyncio.sleep(0))  # as above
    replica, other = Replica(redis_server), Replica(redis_server)
    async with linked(replica.link, replica.limits), linked(other.link, other.limits):
        before = await replica.reserved(PLACE)
        replica.link.up = False
        replica.limits.settle(before)
        redis_server("CLIENT", "KILL", "TYPE", "normal")
        replica.link._put(_PendingCommand(("PING",)))  # notices it
        await until(lambda: replica.link.up)
        await until(lambda: other.link.up)
        assert [0, 0] == [await one.used(PLACE) for one in (replica, other)]


def test_a_server_that_is_down_for_long() -> None:
    """Only the amounts of the last minute are kept for it."""
    now = [1000.0]
    limits = SharedLimits(Link("redis://127.0.0.1:1"), refuse=False, clock=lambda: now[0])
    for _ in range(3 * WINDOW):
        reservation = limits.reserve([REQUESTS._replace(limit=1000), TOKENS._replace(take=5)])
        assert isinstance(reservation, Reservation)
        now[0] += 1
        limits.settle(reservation, 7)
    assert WINDOW == len(limits._unsent)
    assert {(TOKENS.key, 7), (REQUESTS.key, 1)} == {item for amounts in limits._unsent.values() for item in amounts.items()}
    refunded = limits.reserve([REQUESTS._replace(limit=1000)])
    assert isinstance(refunded, Reservation)
    limits.settle(refunded, refund=True)
    limits.joined(lost=False)
    assert {} == limits._unsent


async def test_refusing(redis_server: Server) -> None:
    """With `refuse`, a request without the server is refused, and the client gets no address and no error of the server."""
    replica = Replica(redis_server, refuse=True)
    outcome = await replica.reserve(*ALL)
    assert isinstance(outcome, Unavailable)
    assert outcome.reason == "The counters of azure_openai_shared_state cannot be reached: the proxy's log says why."
    async with linked(replica.link, replica.limits):
        await replica.reserved(*ALL)


async def test_a_server_that_dies_during_a_request(redis_server: Server) -> None:
    """A request that waits for a reply when the connection is lost goes on alone."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        redis_server.pause()
        waiting = asyncio.ensure_future(replica.reserve(*ALL))
        await asyncio.sleep(0)
        redis_server.kill()
        assert isinstance(await waiting, Reservation)


async def test_a_late_reply(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose reply is late goes on alone, and the server has it once in the end."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        monkeypatch.setattr(deadlines, "REPLY_TIMEOUT", 0.01)
        redis_server.pause()
        reservation = await replica.reserved(*ALL)
        assert [1, 900, 1] == used(replica.limits._own.look(ALL))
        redis_server.resume()
        monkeypatch.setattr(deadlines, "REPLY_TIMEOUT", 20.0)
        async with asyncio.timeout(20):
            while [1, 900, 1] != [await replica.used(claim) for claim in ALL]:
                await asyncio.sleep(0.01)
        replica.limits.settle(reservation, 7)
        assert [1, 7, 0] == [await replica.used(claim) for claim in ALL]


async def test_a_client_that_leaves(redis_server: Server) -> None:
    """The reservation of a request whose client left before the reply is given back; a refusal gives nothing back."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        for claims in (ALL, [TOKENS._replace(take=1001)]):
            redis_server.pause()
            task = asyncio.ensure_future(replica.reserve(*claims))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            redis_server.resume()
            async with asyncio.timeout(20):
                while any([await replica.used(claim) for claim in ALL]):
                    await asyncio.sleep(0.01)


async def test_a_client_that_leaves_when_the_reply_comes(redis_server: Server) -> None:
    """The reservation of a request whose client left in the moment of the reply is given back; after a failure nothing is."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        for fails in (False, True):
            task = asyncio.ensure_future(replica.reserve(*ALL))
            await asyncio.sleep(0)
            question = replica.link._queue.pop()
            reply = await replica.link.ask(*question.command)
            if fails:
                question.failed(Down("lost"))
            else:
                question.answered(reply)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [int(fails), 900 * fails, int(fails)] == [await replica.used(claim) for claim in ALL]


async def test_the_look_of_a_counter_that_is_old(redis_server: Server) -> None:
    """A use that was seen over a minute ago is that of this process."""
    now = time.time()
    link = Link(redis_server.url)
    limits = SharedLimits(link, refuse=False, clock=lambda: now)
    async with linked(link, limits):
        outcome = limits.reserve([REQUESTS])
        assert not isinstance(outcome, Reservation | Refused | Unavailable)
        await outcome
        assert [1] == used(limits.look([REQUESTS]))
        now += 61
        assert [0] == used(limits.look([REQUESTS]))


async def test_old_amounts_are_not_sent(redis_server: Server) -> None:
    """Amounts of more than a minute ago are not brought to the server."""
    replica = Replica(redis_server)
    replica.limits._count(REQUESTS.key, int(time.time()) - 61, 1)
    replica.limits._count(REQUESTS.key, int(time.time()), 2)
    replica.limits._count(REQUESTS.key, int(time.time()), 0)
    replica.limits._own.take([])
    async with linked(replica.link):
        for _ in range(2):
            await replica.limits.tick()
        assert 2 == await replica.used(REQUESTS)


async def test_counters_that_are_no_numbers(redis_server: Server) -> None:
    """Other text in the counters counts nothing, and the link stays up."""
    replica = Replica(redis_server)
    async with linked(replica.link, replica.limits):
        for claim, field in ((REQUESTS, "soon"), (TOKENS, str(int(time.time()))), (PLACE, replica.link.process)):
            redis_server("HSET", PREFIX + claim.key, field, "many")
        redis_server("HSET", PREFIX + "live", "other", "x")
        claims = [REQUESTS, REQUESTS._replace(owner="bob"), PLACE._replace(take=0)]
        await replica.reserved(*claims)
        assert [1, 1, 0] == used(replica.limits.look(claims))
        assert replica.link.up
