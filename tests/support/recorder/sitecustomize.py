"""Python runs this at the start of each mitmdump under test: it tells the test, through a pipe, of every host looked up, every
connection made and everything logged, printed or not.

`api.openai.com` leads to the decoy, so that a connection that should not be made is one that can be counted. `RECORDER_HOSTS` has more
names, each with the addresses that it has one look-up after the other; the last one stays.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from typing import Any

_pipe = int(os.environ["RECORDER_PIPE"])
_decoy_port = int(os.environ["RECORDER_DECOY_PORT"])
_hosts: dict[str, list[str]] = json.loads(os.environ.get("RECORDER_HOSTS", "{}"))
_one_at_a_time = threading.RLock()
_getaddrinfo = socket.getaddrinfo
_connect = socket.socket.connect
_to_openai: set[tuple[Any, Any]] = set()
"""Addresses that lead to the decoy although a caller kept the port it had asked for."""


def _tell(kind: str, what: str) -> None:
    note = json.dumps([kind, what]).encode() + b"\n"
    with _one_at_a_time:
        while note:
            note = note[os.write(_pipe, note) :]


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _tell("lookup", args[0].decode() if isinstance(args[0], bytes) else str(args[0]))
    elif event == "socket.connect" and isinstance(args[1], tuple):
        _tell("connect", f"{args[1][0]}:{args[1][1]}")


def _to_the_decoy(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
    if host in ("api.openai.com", b"api.openai.com"):
        _tell("lookup", "api.openai.com")
        _to_openai.add(("127.0.0.1", port))
        host, port = "127.0.0.1", _decoy_port
    elif addresses := _hosts.get(host):
        _tell("lookup", host)
        host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
    return _getaddrinfo(host, port, *args, **kwargs)


def _connect_to_the_decoy(self: socket.socket, address: Any) -> None:
    if isinstance(address, tuple) and address[:2] in _to_openai:
        address = ("127.0.0.1", _decoy_port)
    _connect(self, address)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _tell("log", self.format(record))


sys.addaudithook(_audit)
socket.getaddrinfo = _to_the_decoy
socket.socket.connect = _connect_to_the_decoy  # type: ignore[assignment, method-assign]
logging.getLogger().addHandler(_Handler())
