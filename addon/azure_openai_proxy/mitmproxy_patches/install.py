"""Installs the patches of mitmproxy, each in a hook or at startup, and provides the values that they record on flows.

`attach` replaces the class of the HTTP layer of each client connection. Only the fast path and the comments in the lists of flows patch
objects shared by all connections. A feature is off if this mitmproxy lacks an attribute that it needs (see `compat`).
docs/mitmproxy-internals.md describes each patch.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx

from . import compat
from .interface import ABSOLUTE_FORM, CLIENT_HOST, HttpPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import connection, http
    from mitmproxy.master import Master
    from mitmproxy.proxy import layer

__all__ = [
    "HttpPolicy",
    "absolute_form",
    "attach",
    "check",
    "client_host",
    "enable_direct_reads",
    "fast_path",
    "fast_path_available",
    "sends_upstream",
    "set_fast_path",
    "show_comments",
]

logger = logging.getLogger(__name__)


def check() -> None:
    """At startup, log a warning for each feature that is off with this mitmproxy."""
    for feature in (compat.HTTP, compat.CONNECTIONS, compat.SHUTDOWN):
        _ = feature.usable


def attach(nextlayer: layer.NextLayer, rules: HttpPolicy) -> None:
    """Patch the HTTP layers of this connection; for the `next_layer` hook."""
    if not compat.HTTP.usable:
        return
    from . import http_stream  # noqa: PLC0415 - the import may fail with an untested mitmproxy

    # A script's hook runs before the built-in one, which would skip a layer that is already chosen.
    ctx.master.addons.get("nextlayer").next_layer(nextlayer)
    fast = fast_path() if rules.fast_path else None
    http_stream.patch(nextlayer.context.layers, rules, fast.FastConnection if fast else http_stream.Connection)


def enable_direct_reads(client: connection.Client, rules: HttpPolicy) -> None:
    """Enable direct reads (see `fastpath.reads`) for this client connection; for the `client_connected` hook."""
    if rules.fast_path and (fast := fast_path()):
        fast.client_connected(client, client)


def set_fast_path(master: Master, *, on: bool) -> None:
    """Apply or revert the patches of the fast path to objects shared by all connections."""
    if fast := fast_path():
        fast.enable(master, on=on)


@cache
def fast_path() -> Any:
    """The package `fastpath`, or None if it was deleted or is not tested with this mitmproxy."""
    if not compat.HTTP.usable or not importlib.util.find_spec(f"{__package__}.fastpath"):
        return None
    if version := compat.untested():
        logger.warning("The fast path is not tested with %s. %s", version, compat.FAST_PATH.lost)
        return None
    return importlib.import_module(f"{__package__}.fastpath") if compat.FAST_PATH.usable else None


def fast_path_available() -> bool:
    """Whether the fast path can be used."""
    return fast_path() is not None


def show_comments(master: Master, one_line: Callable[[str], str], *, shown: bool) -> None:
    """Show or hide the comments of flows in the lists of mitmweb and the console. `one_line` makes text safe for a terminal."""
    if hasattr(master, "window"):
        if master.window is None or not compat.CONSOLE.usable:  # while scripts load, the console has no window and cannot be checked
            return
        from . import console_list  # noqa: PLC0415 - imports mitmproxy's console

        console_list.comments(master, one_line, shown=shown)
    elif hasattr(master, "app") and compat.WEB.usable:
        from . import web_page  # noqa: PLC0415 - as above

        web_page.comments(master, shown=shown)


def absolute_form(flow: http.HTTPFlow) -> bool:
    """Whether the request target is in absolute form, as for a forward proxy. False for origin form (gateway) and inside a tunnel."""
    return bool(flow.metadata.get(ABSOLUTE_FORM, False))


def client_host(flow: http.HTTPFlow) -> str:
    """The Host header that the client sent (`:authority` over HTTP/2), or ""."""
    return str(flow.metadata.get(CLIENT_HOST) or flow.request.host_header or "")


def sends_upstream(flow: http.HTTPFlow) -> bool:
    """Whether the upstream leg sends this flow's request instead of mitmproxy, so that the flow need not contain the keys."""
    return flow.is_replay != "request" and compat.HTTP.usable
