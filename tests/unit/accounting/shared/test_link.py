"""The connection to Redis: batches, failures, and the way back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from azure_openai_proxy.accounting.shared import link as module
from azure_openai_proxy.accounting.shared import scripts
from azure_openai_proxy.accounting.shared.link import PREFIX, Down, Link
from support.redis import RedisServer, missing
from support.shared import linked, until

if TYPE_CHECKING:
    from support.redis import RedisServer as Server


class Listener:
    def __init__(self) -> None:
        self.joins: list[bool] = []
        self.ticks = 0

    def joined(self, *, lost: bool) -> None:
        self.joins.append(lost)

    async def tick(self) -> None:
        self.ticks += 1


async def test_commands(redis_server: Server) -> None:
    """Commands of one moment are answered in their order, each with its own reply; the listener joins once and ticks."""
    listener = Listener()
    async with linked(Link(redis_server.url), listener) as link:
        assert link.up
        link.send("SET", "a", 1)
        replies = await asyncio.gather(*(link.ask("INCR", "a") for _ in range(1200)))
        assert list(range(2, 1202)) == replies
        await until(lambda: listener.ticks > 2)
    assert [True] == listener.joins
    with pytest.raises(Down):
        await link.ask("PING")


async def test_commands_that_wait_is_sent_at_the_end(redis_server: Server) -> None:
    """Closing a link sends the commands that wait."""
    async with linked(Link(redis_server.url)) as link:
        link.send("SET", "a", "b")
    assert b"$1\r\nb\r\n" == redis_server("GET", "a")


async def test_a_link_that_was_not_started(redis_server: Server) -> None:
    """A link that was never started can be closed, and is down."""
    link = Link(redis_server.url)
    link.send("SET", "a", "b")
    link.send_run(scripts.SETTLE, ["a"], "a", "1", "p", 0, 1)
    await link.close()
    assert b"$-1\r\n" == redis_server("GET", "a")


async def test_a_killed_server(redis_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Commands fail after the end of the server, the log says so once, and the next server is joined as one without data."""
    listener = Listener()
    with caplog.at_level(logging.INFO):
        async with linked(Link(redis_server.url, "Until then: nothing."), listener) as link:
            redis_server.kill()
            await until(lambda: not link.up)
            with pytest.raises(Down):
                await link.ask("PING")
            await until(lambda: "connecting" in link.reason.lower())
            redis_server.start()
            await until(lambda: link.up)
            assert await link.ask("PING")
    assert [True, True] == listener.joins
    down, up = caplog.messages
    assert down.startswith(f"The shared state cannot be reached, and is tried again every second: {redis_server.url}: ")
    assert down.endswith(". Until then: nothing.")
    assert f"The shared state is used again: {redis_server.url}" == up


async def test_a_lost_connection(redis_server: Server) -> None:
    """A server that closed the connection and has its data is joined as such."""
    listener = Listener()
    async with linked(Link(redis_server.url), listener) as link:
        redis_server("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: len(listener.joins) == 2)
        assert await link.ask("PING")
    assert [True, False] == listener.joins


async def test_a_server_that_does_not_answer(redis_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without a reply in time ends the connection."""
    monkeypatch.setattr(module, "REPLY_TIMEOUT", 0.05)
    async with linked(Link(redis_server.url)) as link:
        redis_server.pause()
        with pytest.raises(Down):
            await link.ask("PING")
        redis_server.resume()
        monkeypatch.setattr(module, "REPLY_TIMEOUT", 20.0)
        await until(lambda: link.up)


async def test_an_error_of_the_server(redis_server: Server) -> None:
    """An error fails its command, and the others of its batch have their replies; the link connects anew, with its scripts."""
    listener = Listener()
    async with linked(Link(redis_server.url), listener) as link:
        wrong, dropped, right = link.ask("NO-SUCH-COMMAND"), link.ask("GET", "a"), link.ask("PING")
        dropped.cancel()
        module._retrieve(dropped)
        with pytest.raises(Down, match="unknown command"):
            await wrong
        assert await right
        await until(lambda: len(listener.joins) == 2)


async def test_a_server_that_is_not_there(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not run does not keep the start waiting, and the log has no password."""
    link = Link("redis://user:pass%2Fword@127.0.0.1:1/3")
    async with linked(link):
        assert not link.up
    assert "redis://127.0.0.1:1/3" == str(link)
    assert 1 == len(caplog.messages)
    assert "word" not in caplog.text
    monkeypatch.setattr(module, "RECONNECT_DELAYS", (60.0,))
    assert "***" == link._describe(ValueError("\npass/word\nmore"))
    assert "ValueError" == link._describe(ValueError())


async def test_a_password(caplog: pytest.LogCaptureFixture) -> None:
    """A password is sent, and a wrong one is not in the log."""
    if reason := missing():
        pytest.skip(reason)
    with RedisServer("--requirepass", "the-password") as server:
        async with linked(Link(f"redis://:the-password@127.0.0.1:{server.port}")) as link:
            assert await link.ask("PING")
        async with linked(Link(f"redis://:wrong-password@127.0.0.1:{server.port}")) as link:
            assert not link.up
    assert "password" not in caplog.text.replace("username-password", "")


async def test_a_server_that_takes_no_scripts(caplog: pytest.LogCaptureFixture) -> None:
    """A server that refuses a command of the link is not used, and the log has its error."""
    if reason := missing():
        pytest.skip(reason)
    with RedisServer("--rename-command", "SCRIPT", "") as server:
        async with linked(Link(server.url)) as link:
            assert not link.up
    assert "unknown command 'SCRIPT'" in caplog.text


async def test_all_keys_have_the_prefix(redis_server: Server) -> None:
    """The server has no keys but those with the prefix."""
    async with linked(Link(redis_server.url)) as link:
        keys = await link.ask("KEYS", "*")
    assert [f"{PREFIX}epoch".encode()] == keys
