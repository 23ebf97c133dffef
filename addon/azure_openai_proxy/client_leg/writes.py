"""Fewer writes to a client: consecutive ones are one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mitmproxy.proxy import commands

if TYPE_CHECKING:
    from mitmproxy.proxy.layer import CommandGenerator

__all__ = ["SMALL", "joined"]

SMALL = 1 << 16
"""Writes below this size in bytes are merged, which copies them but saves a system call."""


def joined(doing: CommandGenerator[None]) -> CommandGenerator[None]:
    """The same commands, with consecutive writes to the same peer merged into one, e.g. a head and its body."""
    held: commands.SendData | None = None
    try:
        for command in doing:
            if type(command) is not commands.SendData:
                if held:
                    yield held
                    held = None
                yield command
            elif not held:
                held = command
            elif held.connection is command.connection and len(held.data) < SMALL and len(command.data) < SMALL:
                held.data += command.data
            else:
                yield held
                held = command
    except Exception:
        if held:
            yield held  # the data written before the error
        raise
    if held:
        yield held
