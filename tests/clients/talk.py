"""A client with one realtime session: `talk.py BASE KEY CA [PROXY]`. It prints the type of the first event.

In one thread: two that read and write one TLS connection at once are not safe in every Python.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import sys
from pathlib import Path
from urllib.parse import urlsplit

from websockets.asyncio.client import connect

PATIENCE = 30


def by_socks(proxy: str, host: str, port: int) -> socket.socket:
    """A connection to a name through a SOCKS5 proxy that asks for no password."""
    at = urlsplit(proxy)
    connection = socket.create_connection((at.hostname, at.port), PATIENCE)
    connection.sendall(b"\x05\x01\x00")
    assert connection.recv(2) == b"\x05\x00"
    connection.sendall(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big"))
    assert connection.recv(10)[:2] == b"\x05\x00"
    connection.setblocking(False)
    return connection


async def main() -> None:
    Path("/proc/self/comm").write_text("talk")  # what local capture knows it by
    base, key, ca, *proxies = sys.argv[1:]
    trust = ssl.create_default_context(cafile=ca)
    url = urlsplit(base)
    proxy = next(filter(None, proxies), None)
    options = {"proxy": proxy} | ({"proxy_ssl": trust} if proxy and proxy.startswith("https:") else {})
    if proxy and proxy.startswith("socks"):
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        options = {"proxy": None, "sock": by_socks(proxy, str(url.hostname), port)}
    if url.scheme == "https":
        options["ssl"] = trust
    headers = {"Authorization": f"Bearer {key}"}
    address = base.replace("http", "ws", 1) + "/v1/realtime?model=gpt-realtime"
    async with connect(address, additional_headers=headers, open_timeout=PATIENCE, **options) as session, asyncio.timeout(PATIENCE):
        print(json.loads(await session.recv())["type"])


asyncio.run(main())
