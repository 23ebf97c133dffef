"""A script for mitmdump that says when the start is over: it listens before the scripts are loaded, and an error in them ends it."""

from __future__ import annotations

import asyncio
import logging

background: set[asyncio.Task[None]] = set()


async def announce() -> None:
    for _ in range(5):  # turns of the loop: in the next one mitmdump ends if an error was logged
        await asyncio.sleep(0)
    logging.getLogger("recorder").debug("ready")


def running() -> None:
    background.add(asyncio.create_task(announce()))
