"""Memory growth of a warm target during an upload and a download of 1 GB, over plain sockets that buffer one block."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from typing import TYPE_CHECKING

from .jobs import KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from .session import Row
    from .targets import Running

__all__ = ["BOUND", "rows"]

BOUND = 40
"""MB that a process may grow by; `tests/e2e/test_large_bodies.py` asserts it at 200 MB."""

_SIZE = 1_000_000_000
_BLOCK = bytes(1_000_000)
_PATIENCE = 120.0  # seconds without a byte
_START = b'--bench\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
_END = b"\r\n--bench--\r\n"
_HEAD = b"%b HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n%b\r\n"
_FORM = b"Content-Type: multipart/form-data; boundary=bench\r\nContent-Length: %d\r\n" % (len(_START) + _SIZE + len(_END))


def rows(running: Running) -> list[Row]:
    """The growth of the peak memory in MB and the duration, for both directions."""
    return [{"process": running.target.name, "a large body": name, **_grown(running, move)} for name, move in _MOVES.items()]


def _grown(running: Running, move: Callable[[socket.socket], int]) -> Row:
    running.forget_peak()
    before, begun = running.cost().memory, time.monotonic()
    with closing(socket.create_connection(("127.0.0.1", running.port), _PATIENCE)) as connection:
        moved = move(connection)
    took, grown = time.monotonic() - begun, running.cost().peak - before
    return {"seconds": took, "growth of memory MB": grown, "bound": BOUND, "bytes lost": _SIZE - moved}


def _upload(connection: socket.socket) -> int:
    connection.sendall(_HEAD % (b"POST /v1/files", _FORM) + _START)
    for _ in range(_SIZE // len(_BLOCK)):
        connection.sendall(_BLOCK)
    connection.sendall(_END)
    received = b""  # the first bytes may arrive during the upload
    while b"\r\n" not in received and (more := connection.recv(1 << 16)):
        received += more
    return _SIZE if received.startswith(b"HTTP/1.1 200") else 0


def _download(connection: socket.socket) -> int:
    """The number of received bytes of the file. A changed framing would yield more or fewer than expected."""
    connection.sendall(_HEAD % (b"GET /v1/files/file-%d/content" % _SIZE, b"Connection: close\r\n"))
    received = connection.recv(1 << 16)
    while b"\r\n\r\n" not in received and (more := connection.recv(1 << 16)):
        received += more
    moved, into = len(received.partition(b"\r\n\r\n")[2]), bytearray(1 << 18)
    while moved < _SIZE and (count := connection.recv_into(into)):
        moved += count
    return moved


_MOVES = {"upload of 1 GB": _upload, "download of 1 GB": _download}
