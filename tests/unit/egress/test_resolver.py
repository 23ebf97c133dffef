"""Addresses of upstream hosts: cached, and one look-up of each at a time."""

from __future__ import annotations

import asyncio
import errno
import queue
import socket
import threading
from typing import Self

import pytest

from azure_openai_proxy.egress import resolver as module
from azure_openai_proxy.egress.resolver import FRESH, LOOKUP_INTERVAL, STALE, Resolver, interleaved


class Names:
    """A look-up that waits for each of its answers, and a clock."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.asked: list[str] = []
        self._answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()
        self.resolver = Resolver(self.lookup, lambda: self.time)

    def lookup(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answer = self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def then(self, *answers: list[str] | Exception) -> Self:
        for answer in answers:
            self._answers.put(answer)
        return self

    async def resolve(self) -> list[str]:
        return await self.resolver.resolve("host", 443)


FAILS = OSError(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "2001:db8::5"])
async def test_addresses_are_not_looked_up(address: str) -> None:
    """A host that is an address is its only one."""
    names = Names()
    assert [address] == await names.resolver.resolve(address, 443)
    assert [] == names.asked


async def test_fresh_addresses_are_used() -> None:
    """Within 30 seconds nothing is looked up again; after that it is."""
    names = Names().then(["10.0.0.1"], ["10.0.0.2"])
    assert ["10.0.0.1"] == await names.resolve()
    names.time += FRESH - 1
    assert ["10.0.0.1"] == await names.resolve()
    names.time += 1
    assert ["10.0.0.2"] == await names.resolve()
    assert 2 == len(names.asked)


async def test_all_who_wait_share_a_look_up() -> None:
    """Twenty requests at once ask once; one that leaves takes nothing from the others."""
    names = Names()
    waiting = [asyncio.create_task(names.resolve()) for _ in range(20)]
    await asyncio.sleep(0)
    waiting.pop().cancel()
    names.then(["10.0.0.1"])
    assert [["10.0.0.1"]] * 19 == await asyncio.gather(*waiting)
    assert ["host"] == names.asked


async def test_a_slow_name_holds_up_no_other() -> None:
    """However many look-ups hang, another host's is made."""
    release = threading.Event()

    def lookup(host: str, port: int) -> list[str]:
        if host != "quick":
            release.wait()
        return ["10.0.0.1"]

    resolver = Resolver(lookup)
    hanging = [asyncio.create_task(resolver.resolve(f"slow-{number}", 443)) for number in range(60)]
    await asyncio.sleep(0)
    assert ["10.0.0.1"] == await resolver.resolve("quick", 443)
    assert not any(task.done() for task in hanging)
    release.set()
    await asyncio.gather(*hanging)


async def test_stale_addresses_serve_while_look_ups_fail() -> None:
    """For ten minutes; DNS is asked again every few seconds, not by every request."""
    names = Names().then(["10.0.0.1"], FAILS, FAILS, FAILS)
    await names.resolve()
    names.time += FRESH
    for _ in range(3):
        assert ["10.0.0.1"] == await names.resolve()
    assert 2 == len(names.asked)
    names.time += LOOKUP_INTERVAL
    assert ["10.0.0.1"] == await names.resolve()
    assert 3 == len(names.asked)
    names.time += STALE
    with pytest.raises(OSError, match="Temporary failure"):
        await names.resolve()


async def test_stale_addresses_serve_while_a_look_up_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request does not wait for DNS that says nothing; the look-up goes on, and its result is used."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    names = Names().then(["10.0.0.1"])
    await names.resolve()
    names.time += FRESH
    assert ["10.0.0.1"] == await names.resolve()
    names.then(["10.0.0.2"])
    names.time += LOOKUP_INTERVAL
    monkeypatch.setattr(module, "PATIENCE", 30)
    assert ["10.0.0.2"] == await names.resolve()
    assert 2 == len(names.asked)


async def test_forgotten_addresses_are_looked_up_again() -> None:
    """If no connection to any of them succeeds, the next request waits for a new lookup."""
    names = Names().then(["10.0.0.1"], ["10.0.0.2"])
    await names.resolve()
    names.resolver.forget("host", 443)
    names.resolver.forget("another", 443)
    assert ["10.0.0.2"] == await names.resolve()


async def test_forgotten_addresses_serve_when_dns_fails() -> None:
    """They may have been unreachable for the same cause, and have come back before DNS."""
    names = Names().then(["10.0.0.1"], FAILS)
    await names.resolve()
    names.resolver.forget("host", 443)
    assert ["10.0.0.1"] == await names.resolve()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (FAILS, "Temporary failure"),
        ([], "host has no address"),
        (UnicodeError("label too long"), "'host' is not a host name"),
        (ValueError("null"), "'host' is not a"),
    ],
)
async def test_names_that_do_not_resolve(answer: list[str] | Exception, says: str) -> None:
    """Any failure of the lookup is an OSError, and the next request looks up again."""
    names = Names().then(answer, ["10.0.0.1"])
    with pytest.raises(OSError, match=says):
        await names.resolve()
    assert ["10.0.0.1"] == await names.resolve()


async def test_no_thread_for_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shortage of threads fails the request at once, and the next one may do better."""

    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names = Names().then(["10.0.0.1"])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more)
        with pytest.raises(OSError, match="can't start new thread") as failed:
            await names.resolve()
    assert errno.ENOMEM == failed.value.errno
    assert ["10.0.0.1"] == await names.resolve()


def test_a_look_up_that_outlives_its_loop() -> None:
    """The proxy ends while DNS is slow: nothing is printed, nothing is waited for."""
    names = Names()
    before = threading.enumerate()  # a look-up of an earlier test may still run

    async def leave() -> None:
        task = asyncio.create_task(names.resolve())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "resolve host" and thread not in before]
    names.then(["10.0.0.1"])
    thread.join()
    assert thread.daemon


def test_the_families_take_turns() -> None:
    """The system's first choice stays first (RFC 8305, section 4)."""
    assert ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"] == interleaved(["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"])
    assert ["1.1.1.1", "::1", "2.2.2.2"] == interleaved(["1.1.1.1", "2.2.2.2", "::1"])
    assert [] == interleaved([])


def test_the_system_is_asked() -> None:
    """Without another look-up it is getaddrinfo, each address once."""
    found = module._lookup("localhost", 443)
    assert found
    assert set(found) <= {"127.0.0.1", "::1"}
    assert len(set(found)) == len(found)


def test_a_shortage_of_descriptors_is_told_from_a_name_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """getaddrinfo says the same of both; with no descriptor left the error is that."""

    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def none_left(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(socket.gaierror):
        module._lookup("host", 443)
    monkeypatch.setattr(socket, "socket", none_left)
    with pytest.raises(OSError, match="Too many") as failed:
        module._lookup("host", 443)
    assert errno.EMFILE == failed.value.errno
