"""An upstream that answers with exactly the bytes it is given."""

from __future__ import annotations

import socketserver
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Upstream"]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        headers = {}
        while (header := self.rfile.readline()).strip():
            name, _, value = header.partition(b":")
            headers[name.strip().lower()] = value.strip()
        self.rfile.read(int(headers.get(b"content-length", 0)))
        for piece in self.server.answer(headers):
            self.wfile.write(piece)
            self.wfile.flush()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    answer: Callable[[dict[bytes, bytes]], Sequence[bytes]]


class Upstream:
    """`answer` makes the pieces of an answer, head and all, from the request's headers. Each connection has one request."""

    def __init__(self, answer: Callable[[dict[bytes, bytes]], Sequence[bytes]]) -> None:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.answer = answer
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
