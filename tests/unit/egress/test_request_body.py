"""The pieces of a streamed request body."""

from __future__ import annotations

import asyncio

from azure_openai_proxy.egress.request_body import Body


async def test_pieces_in_their_order() -> None:
    """The size is that of the pieces that are left, and a wait ends with the next piece or the end."""
    body = Body(streamed=True)
    waiting = asyncio.create_task(body.more())
    await asyncio.sleep(0)
    body.add(b"ab")
    await waiting
    body.add(b"c")
    assert (3, b"ab", 1) == (body.size, body.take(), body.size)
    assert b"c" == body.take()
    waiting = asyncio.create_task(body.more())
    await asyncio.sleep(0)
    body.end()
    await waiting
    assert body.complete


def test_nothing_is_kept_after_the_end() -> None:
    """Of a request that is over no piece is kept."""
    body = Body(streamed=True)
    body.add(b"ab")
    body.discard()
    body.add(b"c")
    assert (0, True, 0) == (body.size, body.complete, len(body.pieces))
