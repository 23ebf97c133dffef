"""One connection of redis-py, on which commands are sent together.

redis-py connects, authenticates and parses the replies. Its pipelines are not used: for each command they take more CPU time than
everything else that a request does about its limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from redis.asyncio import Connection

__all__ = ["Command", "RedisConnection"]

type Command = tuple[Any, ...]
"""Its name, and texts and numbers."""


class RedisConnection:
    """A connection to the server of `url`. `timeout`: seconds for the connection alone."""

    def __init__(self, url: str, timeout: float) -> None:
        from redis.asyncio import ConnectionPool, Redis  # noqa: PLC0415 - optional
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.exceptions import ResponseError  # noqa: PLC0415

        pool = ConnectionPool.from_url(
            url,
            socket_connect_timeout=timeout,
            socket_timeout=None,  # the caller has time limits of its own; redis-py would start a timer for each reply
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="azure-openai-proxy",
        )
        self._connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._pack = _packer(self._connection)
        self._read: Mapping[Any, Callable[[Any], Any]] = Redis(connection_pool=pool).response_callbacks
        self._error = ResponseError

    async def connect(self) -> None:
        await self._connection.connect()  # type: ignore[no-untyped-call]

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands together, and return their replies as redis-py reads them; those of scripts as they are.

        An error of the server is the reply to its command.

        Raises:
            redis.exceptions.RedisError: the connection failed, or the server is not ready for any command.
        """
        connection, pack, replies = self._connection, self._pack, list[Any]()
        await connection.send_packed_command(b"".join([pack(command) for command in commands]), check_health=False)
        for command in commands:
            try:
                reply = await connection.read_response()
            except self._error as error:
                reply = error
            else:
                if (name := command[0]) != "EVALSHA" and (read := self._read.get(name)):
                    reply = read(reply)
            replies.append(reply)
        return replies

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


def _packer(connection: Connection) -> Callable[[Any], bytes]:
    """What encodes a command in the server's protocol: hiredis, or redis-py, which takes ten times as long."""
    try:
        from hiredis import pack_command  # noqa: PLC0415 - optional
    except ImportError:
        return lambda command: b"".join(connection.pack_command(*command))
    return pack_command
