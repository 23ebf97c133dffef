"""Links to a Redis server for tests of the shared state."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from azure_openai_proxy.accounting.shared.link import Link, Listener

__all__ = ["linked", "until"]


@asynccontextmanager
async def linked(link: Link, *listeners: Listener) -> AsyncIterator[Link]:
    """A link that was started."""
    link.listeners += listeners
    await link.start()
    try:
        yield link
    finally:
        await link.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, as long as a slow machine may need."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
