"""Installs the patches of mitmproxy, each in a hook or at startup.

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

from azure_openai_proxy.compatibility import untested

from . import compat

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import connection
    from mitmproxy.master import Master
    from mitmproxy.proxy import layer
    from tornado.web import OutputTransform

    from azure_openai_proxy.client_leg.interface import HttpPolicy

    from .web_page import Mount

__all__ = ["attach", "check", "enable_direct_reads", "fast_path", "patches_http", "serve_site", "set_fast_path", "show_comments"]

logger = logging.getLogger(__name__)


def check() -> None:
    """At startup, log a warning for each feature that is off with this mitmproxy."""
    for feature in (compat.HTTP, compat.CONNECTIONS, compat.SHUTDOWN):
        _ = feature.usable


def attach(nextlayer: layer.NextLayer, policy: HttpPolicy) -> None:
    """Patch the HTTP layers of this connection; for the `next_layer` hook."""
    if not compat.HTTP.usable:
        return
    from . import http_layer  # noqa: PLC0415 - the import may fail with an untested mitmproxy

    # A script's hook runs before the built-in one, which would skip a layer that is already chosen.
    ctx.master.addons.get("nextlayer").next_layer(nextlayer)
    fast = fast_path() if policy.fast_path else None
    http_layer.patch(nextlayer.context.layers, policy, fast.direct_writer if fast else None)


def enable_direct_reads(client: connection.Client, policy: HttpPolicy) -> None:
    """Enable direct reads (see `fastpath.reads`) for this client connection; for the `client_connected` hook."""
    if policy.fast_path and (fast := fast_path()):
        fast.enable_direct_reads(client, client)


def set_fast_path(master: Master, *, on: bool) -> None:
    """Apply or revert the patches of the fast path to objects shared by all connections."""
    if fast := fast_path():
        fast.enable(master, on=on)


@cache
def fast_path() -> Any:
    """The package `fastpath`, or None if it was deleted or is not tested with this mitmproxy."""
    if not compat.HTTP.usable or not importlib.util.find_spec(f"{__package__}.fastpath"):
        return None
    if version := untested(compat.TESTED):
        logger.warning("The fast path is not tested with %s. %s", version, compat.FAST_PATH.lost)
        return None
    return importlib.import_module(f"{__package__}.fastpath") if compat.FAST_PATH.usable else None


def show_comments(master: Master, one_line: Callable[[str], str], style: Callable[[], type[OutputTransform]], *, shown: bool) -> None:
    """Show or hide the comments of flows in the lists of the console and mitmweb.

    `one_line` makes text safe for a terminal; `style` returns the style rules for mitmweb's page.
    """
    if _is_tool(master, "console"):
        # While scripts load, the console has no window and cannot be checked.
        if getattr(master, "window", ...) is None or not compat.CONSOLE.usable:
            return
        from . import console_list  # noqa: PLC0415 - imports mitmproxy's console

        console_list.comments(master, one_line, shown=shown)
    elif _is_tool(master, "web") and compat.WEB.usable:
        from . import web_page  # noqa: PLC0415 - as above

        insertion = style()
        web_page.insert(master, insertion.__name__, insertion if shown else None)


def serve_site(master: Master, site: Callable[[], Mount] | None) -> None:
    """Serve the inspector's page in mitmweb, or no longer. Other tools have no page, and `site` is not called."""
    if _is_tool(master, "web") and compat.WEB_SITE.usable:
        from . import web_page  # noqa: PLC0415 - imports mitmweb

        web_page.serve(master, site() if site else None)


def _is_tool(master: Master, tool: str) -> bool:
    """Whether `master` is of this tool, by its class: the check must notice if one of its attributes is renamed."""
    return any(kind.__module__.startswith(f"mitmproxy.tools.{tool}.") for kind in type(master).__mro__)


def patches_http() -> bool:
    """Whether the upstream leg sends the requests to Azure, and the form of each request target is recorded when it arrives."""
    return compat.HTTP.usable
