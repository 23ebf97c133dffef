"""The patches, as the rest of the project sees them: where they are put in place, and what holds without them.

Nothing is patched for the whole process but by the fast path: `attach` gives the HTTP layer of one connection another class. What cannot be
patched safely is left alone (see `compat`); docs/mitmproxy-internals.md describes each patch.
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
    """Warn of every feature that this mitmproxy does not allow; for the start."""
    for feature in (compat.HTTP, compat.CONNECTIONS, compat.SHUTDOWN):
        _ = feature.usable


def attach(nextlayer: layer.NextLayer, rules: HttpPolicy) -> None:
    """Patch the HTTP layers of this connection; for the `next_layer` hook."""
    if not compat.HTTP.usable:
        return
    from . import http_stream  # noqa: PLC0415 - on a mitmproxy that differs this may not even be imported

    # A script's hook runs before the built-in one, which leaves alone what is decided already.
    ctx.master.addons.get("nextlayer").next_layer(nextlayer)
    fast = fast_path() if rules.fast_path else None
    http_stream.patch(nextlayer.context.layers, rules, fast.FastConnection if fast else http_stream.Connection)


def enable_direct_reads(client: connection.Client, rules: HttpPolicy) -> None:
    """Let the fast path read from this client's connection; for the `client_connected` hook."""
    if rules.fast_path and (fast := fast_path()):
        fast.client_connected(client, client)


def set_fast_path(master: Master, *, on: bool) -> None:
    """Let the fast path patch what all connections share, or restore it."""
    if fast := fast_path():
        fast.enable(master, on=on)


@cache
def fast_path() -> Any:
    """The package `fastpath`, if it is there and this mitmproxy is one that it was tested with."""
    if not compat.HTTP.usable or not importlib.util.find_spec(f"{__package__}.fastpath"):
        return None
    if version := compat.untested():
        logger.warning("The fast path is not tested with %s. %s", version, compat.FAST_PATH.lost)
        return None
    return importlib.import_module(f"{__package__}.fastpath") if compat.FAST_PATH.usable else None


def fast_path_available() -> bool:
    """Whether the fast path can be taken."""
    return fast_path() is not None


def show_comments(master: Master, one_line: Callable[[str], str], *, shown: bool) -> None:
    """Show or hide the comments of flows in the lists of mitmweb and the console. `one_line` makes text safe for a terminal."""
    if hasattr(master, "window"):
        if master.window is None or not compat.CONSOLE.usable:  # while scripts load, the console has no window and cannot be checked
            return
        from . import console_list  # noqa: PLC0415 - no other tool has its parts

        console_list.comments(master, one_line, shown=shown)
    elif hasattr(master, "app") and compat.WEB.usable:
        from . import web_page  # noqa: PLC0415 - as above

        web_page.comments(master, shown=shown)


def absolute_form(flow: http.HTTPFlow) -> bool:
    """Whether the request came in absolute form, a forward proxy's. False: in origin form, a gateway's, or inside a tunnel."""
    return bool(flow.metadata.get(ABSOLUTE_FORM, False))


def client_host(flow: http.HTTPFlow) -> str:
    """The Host that the client sent (`:authority` over HTTP/2); "" if there is none."""
    return str(flow.metadata.get(CLIENT_HOST) or flow.request.host_header or "")


def sends_upstream(flow: http.HTTPFlow) -> bool:
    """Whether `HttpPolicy.send_upstream` sends this flow's request, so that the flow need not hold its keys."""
    return flow.is_replay != "request" and compat.HTTP.usable
