"""Shortages of local resources."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from azure_openai_proxy.egress.shortage import APART, Shortages

FULL = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_shortage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many connections it prevents and however long it lasts; a later one has its own line."""
    now = 0.0
    shortages = Shortages(lambda: now)
    for _ in range(100):
        shortages.report(FULL)
        now += APART - 1
    assert ["The proxy cannot open connections: Too many open files. Raise the limit of the process (ulimit -n)."] == caplog.messages
    now += APART
    shortages.report(OSError("no memory"))
    assert "no memory" in caplog.messages[1]


@pytest.mark.parametrize("other", [True, False], ids=["mitmproxy's handler", "asyncio's handler"])
async def test_connections_that_cannot_be_accepted(other: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Only they are reported as a shortage; every other error is the earlier handler's."""
    loop = asyncio.get_running_loop()
    others: list[dict[str, Any]] = []
    before = loop.get_exception_handler()
    if other:
        loop.set_exception_handler(lambda _, context: others.append(context))
    earlier = loop.get_exception_handler()
    shortages = Shortages()
    shortages.watch(loop)
    loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": FULL, "socket": None})
    assert 1 == len(caplog.messages)
    strangers: list[dict[str, Any]] = [
        {"message": "a task", "exception": FULL},
        {"message": "no exception"},
        {"message": "a", "exception": OSError(), "socket": 1},
    ]
    for context in strangers:
        loop.call_exception_handler(context)
    assert strangers == others or not other
    assert other or ["a task", "no exception", "a"] == [message.partition("\n")[0] for message in caplog.messages[1:]]
    shortages.unwatch()
    assert earlier is loop.get_exception_handler()
    loop.set_exception_handler(before)


async def test_a_handler_that_was_set_meanwhile_stays() -> None:
    """The end of the watch changes only its own handler, and without a watch nothing."""
    loop = asyncio.get_running_loop()
    shortages = Shortages()
    shortages.unwatch()
    shortages.watch(loop)

    def later(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise AssertionError

    loop.set_exception_handler(later)
    shortages.unwatch()
    assert later is loop.get_exception_handler()
    loop.set_exception_handler(None)
