"""WebSocket frames of the benchmark: whole messages of up to 64 kB."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ACCEPT", "KEY", "echoes", "framed", "frames"]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Remove and return the unmasked payloads of the complete frames."""
    while len(buffer) > 8:
        masked, length, at = buffer[1] & 0x80, buffer[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(buffer[2:4]), 4
        end = at + length + (4 if masked else 0)
        if len(buffer) < end:
            return
        yield _masked(bytes(buffer[at + 4 : end]), bytes(buffer[at : at + 4])) if masked else bytes(buffer[at:end])
        del buffer[:end]


def _masked(payload: bytes, mask: bytes) -> bytes:
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(len(payload))


def framed(payload: bytes, mask: bytes = b"") -> bytes:
    length = len(payload).to_bytes(1) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2)
    if not mask:
        return b"\x81" + length + payload
    return b"\x81" + (length[0] | 0x80).to_bytes(1) + length[1:] + mask + _masked(payload, mask)


def echoes(buffer: bytearray) -> bytes:
    """The frames with which the upstream answers the complete ones, which are removed from `buffer`."""
    return b"".join(map(framed, frames(buffer)))
