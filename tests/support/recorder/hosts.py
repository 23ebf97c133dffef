"""A script for mitmdump that gives hosts other addresses, or a look-up that never ends: `HOSTS` has {name: [address, ...] or null}.

`HOSTS_FILE` is a file with the same, which is read for each look-up.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

_getaddrinfo = socket.getaddrinfo


def _hosts() -> dict[str, list[str] | None]:
    file = os.environ.get("HOSTS_FILE")
    found: dict[str, list[str] | None] = json.loads(Path(file).read_text(encoding="utf-8") if file else os.environ["HOSTS"])
    return found


def _look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
    hosts = _hosts()
    if host not in hosts:
        return _getaddrinfo(host, port, *args, **kwargs)
    addresses = hosts[host]
    logging.getLogger("hosts").debug("looks up %s", host)
    if addresses is None:
        threading.Event().wait()
        raise AssertionError
    return [found for address in addresses for found in _getaddrinfo(address, port, *args, **kwargs)]


socket.getaddrinfo = _look_up
