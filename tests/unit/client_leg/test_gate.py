"""Writers without a socket. tests/unit/mitmproxy_patches/test_upstream_leg.py and test_http1_server.py have them with real clients."""

from __future__ import annotations

import asyncio
from typing import Any

from azure_openai_proxy.client_leg.gate import Gate, Pause


async def test_a_gate() -> None:
    """It is one of the transports until it is removed, with a task that has ended, and `drain` and `is_closed` are those given."""
    transports: dict[Any, Any] = {}
    waited: list[int] = []

    async def drain() -> None:
        waited.append(1)

    gate = Gate(transports, drain, lambda: not waited)
    (io,) = transports.values()
    assert (gate, True) == (io.writer, gate.is_closed())
    io.handler.cancel()
    await asyncio.wait([each.handler for each in transports.values() if each.handler])  # as mitmproxy does once the client has left
    await io.writer.drain()
    assert ([1], False) == (waited, gate.is_closed())
    gate.remove()
    gate.remove()  # it may be gone with the connection
    assert {} == transports


async def test_a_pause() -> None:
    """It is open when it is removed."""
    transports: dict[Any, Any] = {}
    pause = Pause(transports)
    waiting = asyncio.ensure_future(pause.drain())
    await asyncio.sleep(0)
    assert (False, True) == (waiting.done(), pause.is_closed())
    pause.remove()
    await waiting
    assert {} == transports
