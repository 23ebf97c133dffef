"""A client that sends exactly the given bytes, and keeps its connection as long as it may."""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING, NamedTuple, Self

from support.processes import PATIENCE

if TYPE_CHECKING:
    from email.message import Message

__all__ = ["Answer", "Raw"]


class Answer(NamedTuple):
    status: int
    headers: Message
    body: bytes


class Raw:
    """What one answer has too much, the next one has in front of it: then there is no next one to be read."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def ask(self, method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes | None = None) -> Answer:
        lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: localhost", *(name + b": " + value for name, value in headers)]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), PATIENCE)
        self._socket.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))
        try:
            answer = http.client.HTTPResponse(self._socket, method=method)
            answer.begin()
            read = Answer(answer.status, answer.headers, answer.read())
        except BaseException:
            self._close()
            raise
        if answer.will_close or any(name == b"connection" and b"close" in value.lower() for name, value in headers):
            self._close()
        return read

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
