"""Mends for mitmproxy's HTTP layer, one connection at a time; together with its rooms the only user of mitmproxy's internals.

mitmproxy answers what it cannot serve in HTML and closes the connection. With these mends a client is told in the shape that `Rules`
gives, on HTTP/1.1 and HTTP/2, and its connection goes on wherever the two sides still agree on where a request ends. Nothing of
that is patched globally: `attach` gives the HTTP layer of one connection another class.

The rooms called fast_ save processor time and change nothing else. The rules' `fast_path` turns them off.

    http_layer       what the rest of the project sees
    http_rules       what the rooms ask of it
    http_stream      one request and its answer: a body over the limit, a body cut short, no way upstream, a stream that breaks off
    http_upload      a large body that is sent on as it comes
    http_websocket   a WebSocket after its upgrade
    http_resend      one request, sent until it is answered: a failed answer held back, another asked for, time-outs
    http1_server     one HTTP/1 client connection: heads that cannot be read, connections that are left with care
    fast_messages    headers with an index, messages whose types are not checked again
    fast_stream      the chunks of a stream, straight from the connection upstream to the client's
    fast_tls         the same through TLS, on either side
    fast_reads       from a socket to the layers without a task
    fast_hooks       an index of who has which hook, in place of asking every addon

What is touched, nearly all of it in `mitmproxy.proxy.layers.http` (`http_stream.compatible` and `http_resend.compatible` check it):

    HttpLayer        its class is replaced; `make_stream`, `get_connection` and the `Start` of `_handle_event` overridden, `connections`
                     and `streams` filled
    HttpStream       `_handle_event`, `check_invalid`, `check_killed`, `check_body_size`, `start_request_stream`, `flow_done`,
                     `make_server_connection`, `state_stream_request_body` overridden, the states and the buffer set; to resend,
                     `handle_event`, `handle_protocol_error` and two states overridden, `_paused` read
    WebsocketLayer   the class of its two connections is replaced, for `send2` and `events`, and that of their compression
    Http1Server      `read_headers`, `read_body`, `mark_done` and `send` are overridden, `buf`, `state`, `request`, `request_done` and
                     `response_done` read and set
    StreamReader     asyncio's, of a socket in mitmproxy's hands: its class is replaced, for `feed_data`; `ConnectionHandler.server_event`
                     is called from there, and its `transports` and `timeout_watchdog` are read
    TLSLayer         upstream's class is replaced, for `receive_data`; the OpenSSL connections of both sides are read from and written to
    events           `RequestHeaders` to upstream is given the keys that the flow does not show; `ResponseProtocolError` to the client is
                     where mitmproxy would write HTML, and is replaced
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from mitmproxy import ctx

from .interface import ABSOLUTE_FORM, CLIENT_HOST, Rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import connection, http
    from mitmproxy.master import Master
    from mitmproxy.proxy import layer

__all__ = [
    "Rules",
    "absolute_form",
    "attach",
    "client_host",
    "compatible",
    "enable_direct_reads",
    "hasten",
    "hastens",
    "mended",
    "show_comments",
]

logger = logging.getLogger(__name__)


def attach(nextlayer: layer.NextLayer, rules: Rules) -> None:
    """Mend the HTTP layers of this connection; for the `next_layer` hook."""
    if not _usable():
        return
    from . import http_stream  # noqa: PLC0415 - on a mitmproxy that differs this may not even be imported

    # A script's hook runs before the built-in one, which leaves alone what is decided already.
    ctx.master.addons.get("nextlayer").next_layer(nextlayer)
    http_stream.mend(nextlayer.context.layers, rules)


def enable_direct_reads(client: connection.Client, rules: Rules) -> None:
    """Take the shorter way from this client's connection; for the `client_connected` hook."""
    if rules.fast_path:
        from .fastpath import reads as fast_reads  # noqa: PLC0415 - see attach

        fast_reads.enable_direct_reads(client, client)


def hasten(master: Master, *, on: bool) -> None:
    """Take the shorter ways through what all connections share, or mitmproxy's own again."""
    if hastens():
        from .fastpath import headers as fast_headers  # noqa: PLC0415 - see attach
        from .fastpath import hooks as fast_hooks  # noqa: PLC0415 - see attach

        (fast_hooks.shorten if on else fast_hooks.restore)(master.addons)
        fast_headers.trust(on=on)


def show_comments(master: Master, one_line: Callable[[str], str], *, shown: bool) -> None:
    """Show or hide the comments of flows in the lists of mitmweb and the console. `one_line` makes text safe for a terminal."""
    if hasattr(master, "window"):
        from . import console_list  # noqa: PLC0415 - no other tool has its parts

        console_list.comments(master, one_line, shown=shown)
    elif hasattr(master, "app"):
        from . import web_page  # noqa: PLC0415 - as above

        web_page.comments(master, shown=shown)


def absolute_form(flow: http.HTTPFlow) -> bool:
    """Whether the request came in absolute form, a forward proxy's. False: in origin form, a gateway's, or inside a tunnel."""
    return bool(flow.metadata.get(ABSOLUTE_FORM, False))


def client_host(flow: http.HTTPFlow) -> str:
    """The Host that the client sent (`:authority` over HTTP/2); "" if there is none."""
    return str(flow.metadata.get(CLIENT_HOST) or flow.request.host_header or "")


def mended(flow: http.HTTPFlow) -> bool:
    """Whether `Rules.send_upstream` sends this flow's request, so that the flow need not hold its keys."""
    return flow.is_replay != "request" and _usable()


def compatible() -> str | None:
    """Why this mitmproxy cannot be mended; None when it can."""
    try:
        from . import http_stream  # noqa: PLC0415 - see attach
    except (ImportError, AttributeError) as error:
        return str(error)
    return http_stream.compatible()


@cache
def hastens() -> bool:
    """Whether the shorter ways can be taken. Cached, as the next ones."""
    if not _usable():
        return False
    from . import http_stream  # noqa: PLC0415 - see attach

    if reason := http_stream.compatible(http_stream.HASTY):
        logger.warning("This mitmproxy is not one of those known (%s): no shortcuts are taken through it.", reason)
    return not reason


@cache
def _usable() -> bool:
    """Whether to mend at all. Cached, so that a mitmproxy that differs is mentioned once."""
    if reason := compatible():
        logger.warning("This mitmproxy is not one of those known (%s): it keeps its HTML error pages, and bodies have no limit.", reason)
    return not reason
