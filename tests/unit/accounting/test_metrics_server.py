"""The HTTP server of the metrics."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st

from azure_openai_proxy.accounting import metrics_server
from azure_openai_proxy.accounting.metrics_server import MetricsServer, Page
from azure_openai_proxy.config.parsers import Address
from azure_openai_proxy.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def page(accept: str) -> Page:
    return Page(f"accept={accept}\n".encode(), "text/plain")


@asynccontextmanager
async def serving(render: Callable[[str], Awaitable[Page]] = page) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(Address("127.0.0.1", 0), render)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def connect(server: MetricsServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert server._server
    return await asyncio.open_connection(*server._server.sockets[0].getsockname()[:2], limit=16 << 20)


async def exchange(server: MetricsServer, request: bytes) -> bytes:
    """The whole response, until the server closes; empty if it closes without one."""
    reader, writer = await connect(server)
    try:
        writer.write(request)
        return await rest(reader)
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(-1), 30)
    except ConnectionResetError:
        return b""


async def test_a_page() -> None:
    """GET /metrics has the page, with the length, and the connection ends."""
    async with serving() as server:
        head, _, body = (await exchange(server, GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n")
    assert b"Connection: close" in head
    assert b"accept=\n" == body


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"GET /metrics?a=1 HTTP/1.1\r\nAccept: text/plain\r\n\r\n", b"200 OK"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET http://api.openai.com/metrics HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", b"405 Method Not Allowed"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"get /metrics HTTP/1.1\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", b"431 Request Header Fields Too Large"),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", b"400 Bad Request"),
    ],
)
async def test_status(request_: bytes, status: bytes) -> None:
    """Only GET /metrics has a page: other paths are 404, other methods 405, and what is not HTTP 400 or 431."""
    async with serving() as server:
        response = await exchange(server, request_)
    assert response.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert (b"\r\nAllow: GET\r\n" in response) == status.startswith(b"405")


@pytest.mark.parametrize(
    "host, status",
    [
        (b"Host: localhost:9464", b"200"),
        (b"host:127.0.0.1", b"200"),
        (b"Host: [::1]:9464", b"200"),
        (b"A: b", b"200"),
        (b"Host: evil.example", b"403"),
        (b"Host: 127.0.0.1.evil.example:9464", b"403"),
        (b"Host: localhost\r\nHost: evil.example", b"403"),
        (b"Host: ", b"403"),
    ],
)
async def test_names_of_a_loopback_address(host: bytes, status: bytes) -> None:
    """On a loopback address a web page cannot read the metrics by a name of its own that resolves to this machine."""
    async with serving() as server:
        response = await exchange(server, b"GET /metrics HTTP/1.1\r\n" + host + b"\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("host, status", [(b"metrics.example:9464", b"200"), (b"evil.example", b"403")])
async def test_a_name_of_a_loopback_address(host: bytes, status: bytes) -> None:
    """If the configured host is a name that resolves to a loopback address, it is the only other name."""
    async with serving() as server:
        server._address = Address("metrics.example", 0)
        response = await exchange(server, b"GET /metrics HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 " + status)


async def test_names_of_other_addresses() -> None:
    """On any other address every name is accepted, such as that of a service."""
    async with serving() as server:
        server._on_loopback = False
        response = await exchange(server, b"GET /metrics HTTP/1.1\r\nHost: azure-openai-proxy:9464\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200")


async def test_accept() -> None:
    """The header Accept chooses the format, whatever its case."""
    async with serving() as server:
        response = await exchange(server, b"GET /metrics HTTP/1.1\r\naCCept: application/openmetrics-text\r\n\r\n")
    assert response.endswith(b"accept=application/openmetrics-text\n")


@hypothesis.given(
    st.lists(
        st.binary(max_size=300) | st.sampled_from([b"GET ", b"/metrics", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: ", b"\n"]), max_size=12
    )
)
def test_any_bytes(parts: list[bytes]) -> None:
    """Whatever a client sends before it half-closes, it gets a response of HTTP or none, and the server goes on."""

    async def run() -> None:
        async with serving() as server:
            reader, writer = await connect(server)
            with suppress(ConnectionError):
                writer.write(b"".join(parts))
                writer.write_eof()
            response = await rest(reader)
            writer.close()
            assert response == b"" or response.startswith(b"HTTP/1.1 ")
            assert (await exchange(server, GET)).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


async def test_slow_and_absent_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends no complete head, or leaves, ends without a response, and others are served meanwhile."""
    monkeypatch.setattr(metrics_server, "HEAD_WITHIN", 0.2)
    async with serving() as server:
        slow, slow_writer = await connect(server)
        slow_writer.write(GET[:-4])
        _, gone = await connect(server)
        gone.write(GET[:10])
        gone.close()
        assert (await exchange(server, GET)).startswith(b"HTTP/1.1 200")
        assert b"" == await rest(slow)
        slow_writer.close()
        while server._open:
            await asyncio.sleep(0)
    assert not server._open


async def test_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing loses its connection after a while."""
    monkeypatch.setattr(metrics_server, "BODY_WITHIN", 0.2)

    async def large(_: str) -> Page:
        return Page(b"x" * (16 << 20), "text/plain")

    async with serving(large) as server:
        _, writer = await connect(server)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET)
        while not server._open:
            await asyncio.sleep(0.001)
        while server._open:
            await asyncio.sleep(0.001)
        writer.close()
    assert not server._open


async def test_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections beyond the bound are closed at once, and new ones are served when others end."""
    monkeypatch.setattr(metrics_server, "MOST_CONNECTIONS", 3)
    async with serving() as server:
        idle = [await connect(server) for _ in range(3)]
        while len(server._open) < 3:
            await asyncio.sleep(0)
        assert b"" == await exchange(server, GET)
        for _, writer in idle:
            writer.close()
        while server._open:
            await asyncio.sleep(0)
        assert (await exchange(server, GET)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_sends_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on sending after its response is cut off."""
    monkeypatch.setattr(metrics_server, "LINGER", 0.1)
    async with serving() as server:
        reader, writer = await connect(server)
        writer.write(GET + b"more")
        response = await reader.read(-1)
        while server._open:
            await asyncio.sleep(0.001)
        writer.close()
    assert response.startswith(b"HTTP/1.1 200")


async def test_an_error_in_rendering(caplog: pytest.LogCaptureFixture) -> None:
    """An error in rendering is logged, ends the connection, and the server goes on."""
    fails = [True]

    async def broken(accept: str) -> Page:
        if fails.pop() if fails else False:
            raise RuntimeError("no page")
        return await page(accept)

    async with serving(broken) as server:
        assert b"" == await exchange(server, GET)
        assert (await exchange(server, GET)).startswith(b"HTTP/1.1 200")
    assert ["The metrics could not be served"] == caplog.messages


async def test_close_ends_connections() -> None:
    """Closing ends idle connections at once, and the port is free again."""
    async with serving() as server:
        reader, writer = await connect(server)
        while not server._open:
            await asyncio.sleep(0)
        assert server._server
        host, port = server._server.sockets[0].getsockname()[:2]
    assert b"" == await rest(reader)
    writer.close()
    again = MetricsServer(Address(host, port), page)
    await again.start()
    await again.close()
    assert f"http://{host}:{port}/metrics" == again.url == server.url.replace(":0/", f":{port}/")


async def test_an_address_of_another_machine() -> None:
    """An address that is not one of this machine is one line, and every interface has a URL."""
    server = MetricsServer(Address("192.0.2.1", 9464), page)
    with pytest.raises(SettingsError, match=r"azure_openai_metrics: cannot listen on 192\.0\.2\.1:9464 \((?!None).*\): write an address"):
        await server.start()
    await server.close()
    assert "http://localhost:9464/metrics" == MetricsServer(Address("", 9464), page).url
