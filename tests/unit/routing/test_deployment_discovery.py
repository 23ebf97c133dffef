"""Discovery of the deployments of a resource."""

from __future__ import annotations

import asyncio
import http.client
import logging
import ssl
from typing import TYPE_CHECKING

import pytest
from mitmproxy.options import Options

from azure_openai_proxy.api.backend import Backend, parse_endpoint
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.routing import deployment_discovery
from azure_openai_proxy.routing.deployment_discovery import Discovery, fetch, parse

if TYPE_CHECKING:
    from collections.abc import Callable

LIST = b'{"object":"list","data":[{"id":"a","status":"succeeded"},{"id":"b"},{"id":"c","status":"failed"},{"id":3},"d"]}'


def settings(endpoint: str = "http://127.0.0.1:9", token: str = "key", *, discover: bool = True, mode: str = "azure") -> Settings:
    backend = Backend(name="default", base=parse_endpoint(endpoint)[0], token=token, apiversion="v1")
    return Settings(backends=(backend,), discover_models=discover, mode="openai" if mode == "openai" else "azure")


def test_the_deployments_that_can_be_asked() -> None:
    """A failed deployment is not listed."""
    assert ("a", "b") == parse(LIST)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"error":{}}', b'{"data":1}'])
def test_a_response_that_is_not_a_list(content: bytes) -> None:
    """A response that is not a list raises ValueError; Azure may retire the operation."""
    with pytest.raises(ValueError):  # noqa: PT011 - JSON's own or ours
        parse(content)


async def test_the_question() -> None:
    """The query sends the resource's key in one header and ignores the environment's proxy."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(LIST), LIST))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        backend = settings(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix").backend
        assert backend
        names = await asyncio.to_thread(fetch, backend, ssl.create_default_context())

    assert ("a", "b") == names
    assert asked[0].startswith(b"GET /prefix/openai/deployments?api-version=2023-03-15-preview HTTP/1.1\r\n")
    assert b"Api-Key: key\r\n" in asked[0]


@pytest.mark.parametrize(
    "status, location",
    [
        *((status, "http://{host}/elsewhere") for status in (301, 302, 303, 307, 308)),
        (302, "/openai/deployments"),
        (307, "ftp://{host}/"),
        (307, ""),
    ],
)
async def test_no_redirect_is_followed(status: int, location: str) -> None:
    """A redirect is not followed, not even to the same host, because the request carries the key."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        to = location.format(host=f"localhost:{port}")
        writer.write(f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        backend = settings(f"http://127.0.0.1:{port}").backend
        assert backend
        with pytest.raises(OSError, match=str(status)):
            await asyncio.to_thread(fetch, backend, ssl.create_default_context())

    assert 1 == len(asked)


class Asking:
    """Replaces `fetch`; `asked` counts the queries, and each one waits only for its response."""

    def __init__(self, *answers: tuple[str, ...] | Exception) -> None:
        self.answers = list(answers)
        self.asked = asyncio.Semaphore(0)
        self._loop = asyncio.get_running_loop()

    def __call__(self, *_: object) -> tuple[str, ...]:
        answer = self.answers.pop(0) if self.answers else ("last",)
        self._loop.call_soon_threadsafe(self.asked.release)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def heard(follower: Discovery, names: tuple[str, ...]) -> None:
    async with asyncio.timeout(10):
        while follower.names != names:
            await asyncio.sleep(0)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Asking], None]:
    monkeypatch.setattr(deployment_discovery, "REFRESH", 0)
    return lambda asking: monkeypatch.setattr(deployment_discovery, "fetch", asking)


async def test_it_polls_and_keeps_the_names(patch: Callable[[Asking], None], caplog: pytest.LogCaptureFixture) -> None:
    """A failure is logged once and keeps the known names, and the next success replaces them."""
    broken = (ValueError("no list"), RecursionError("deep"), http.client.BadStatusLine("SSH-2.0"))
    asking = Asking(("a",), OSError("no way"), *broken, ("b",), OSError("again"))
    patch(asking)
    follower = Discovery()
    with caplog.at_level(logging.WARNING):
        follower.follow(settings(), Options())
        await heard(follower, ("last",))
        follower.follow(settings(discover=False), Options())

    assert (2, ()) == (len(caplog.records), follower.names)


async def test_it_follows_the_settings(patch: Callable[[Asking], None]) -> None:
    """A new backend resets the names, and unchanged settings keep them."""
    asking = Asking(("a",))
    patch(asking)
    follower = Discovery()
    options = Options(ssl_insecure=True)
    follower.follow(settings(), options)
    task = follower._task
    follower.follow(settings(), options)
    assert task is follower._task
    await heard(follower, ("last",))
    follower.follow(settings("http://127.0.0.1:10"), options)
    assert () == follower.names
    await heard(follower, ("last",))
    task = follower._task
    assert task
    follower.close()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("unasked", [settings(discover=False), settings(token=""), settings(mode="openai"), Settings()])
def test_it_is_off_without_option_or_key(unasked: Settings) -> None:
    """Without the option or without a key no deployments are queried."""
    follower = Discovery()
    follower.follow(unasked, Options())
    assert (None, ()) == (follower._task, follower.names)
