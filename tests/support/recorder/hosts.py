"""A script for mitmdump that gives hosts other addresses, or a look-up that never ends: `HOSTS` has {name: [address, ...] or null}."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from typing import Any

_hosts: dict[str, list[str] | None] = json.loads(os.environ["HOSTS"])
_getaddrinfo = socket.getaddrinfo


def _look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
    if host not in _hosts:
        return _getaddrinfo(host, port, *args, **kwargs)
    addresses = _hosts[host]
    logging.getLogger("hosts").debug("looks up %s", host)
    if addresses is None:
        threading.Event().wait()
        raise AssertionError
    return [found for address in addresses for found in _getaddrinfo(address, port, *args, **kwargs)]


socket.getaddrinfo = _look_up
