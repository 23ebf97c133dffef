"""One connection to a real server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ResponseError

from azure_openai_proxy.accounting.shared.redis_connection import RedisConnection

if TYPE_CHECKING:
    from support.redis import RedisServer as Server


@pytest.mark.parametrize("fast", [True, False])
async def test_commands_together(redis_server: Server, monkeypatch: pytest.MonkeyPatch, *, fast: bool) -> None:
    """Each command has its own reply, an error too, with and without hiredis."""
    with monkeypatch.context() as patched:
        if not fast:
            patched.setitem(sys.modules, "hiredis", None)
        connection = RedisConnection(redis_server.url, 20.0)
    await connection.connect()
    made, got, wrong, number = await connection.exchange([("SET", "a b", "\u00e4 \r\n"), ("GET", b"a b"), ("NO-SUCH",), ("INCRBY", "n", 3)])
    assert (True, "\u00e4 \r\n".encode(), 3) == (made, got, number)
    assert isinstance(wrong, ResponseError)
    assert [{b"one": b"1", b"two": b"2"}] == (await connection.exchange([("HSET", "h", "one", 1, "two", 2), ("HGETALL", "h")]))[1:]
    await connection.close()
