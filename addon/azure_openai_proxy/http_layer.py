"""Mends for mitmproxy's HTTP layer, one connection at a time; together with its rooms the only user of mitmproxy's internals.

mitmproxy answers what it cannot serve in HTML and closes the connection. With these mends a client is told in the shape that `Rules`
gives, on HTTP/1.1 and HTTP/2, and its connection goes on wherever the two sides still agree on where a request ends. Nothing is
patched globally: `attach` gives the HTTP layer of one connection another class.

    http_layer       what the rest of the project sees
    http_stream      one request and its answer: a body over the limit, a body cut short, no way upstream, a stream that breaks off
    http_upload      a large body that is sent on as it comes
    http_websocket   a WebSocket after its upgrade
    http1_server     one HTTP/1 client connection: heads that cannot be read, connections that are left with care

What is touched, all of it in `mitmproxy.proxy.layers.http` (`http_stream.compatible` checks it):

    HttpLayer        its class is replaced; `make_stream` and the `Start` of `_handle_event` overridden, `connections`, `streams` filled
    HttpStream       `_handle_event`, `check_invalid`, `check_killed`, `check_body_size`, `start_request_stream`, `flow_done` overridden,
                     `state_stream_request_body` called, the states and the buffer set
    WebsocketLayer   the class of its two connections is replaced, for `send2`
    Http1Server      `read_headers`, `read_body` and `send` are overridden, `buf`, `state`, `request_done` and `response_done` read and set
    events           `ResponseProtocolError` to the client is where mitmproxy would write HTML; it is replaced there
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mitmproxy import ctx

if TYPE_CHECKING:
    from mitmproxy import http
    from mitmproxy.proxy import layer

__all__ = ["Failure", "Rules", "absolute_form", "attach", "compatible"]

logger = logging.getLogger(__name__)

ABSOLUTE_FORM = "azure_openai_absolute_form"
"""The name in a flow's metadata, which a saved flow keeps."""


class Failure(NamedTuple):
    """Why a request gets no answer from upstream."""

    status: int
    code: str
    message: str


class Rules(Protocol):
    """What the mends ask. The flow may be one that no hook has seen, and may lack a host; None is for a head that nobody can read."""

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        """Bytes that the request's body may have. None: not ours, mitmproxy's own rules hold."""

    def goes_on(self, flow: http.HTTPFlow) -> bool:
        """Whether a large body may be sent on before all of it has come; then `max_body` does not hold."""

    def begin(self, flow: http.HTTPFlow, start: bytes) -> None:
        """Make the request the one for upstream, with `stream` set for its body, or give it a response. `start` is what has come so far."""

    def answer(self, failure: Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        """What the client is told. None: not ours, mitmproxy does what it always does."""


def attach(nextlayer: layer.NextLayer, rules: Rules) -> None:
    """Mend the HTTP layers of this connection; for the `next_layer` hook."""
    if not _usable():
        return
    from . import http_stream  # noqa: PLC0415 - on a mitmproxy that differs this may not even be imported

    # A script's hook runs before the built-in one, which leaves alone what is decided already.
    ctx.master.addons.get("nextlayer").next_layer(nextlayer)
    http_stream.mend(nextlayer.context.layers, rules)


def absolute_form(flow: http.HTTPFlow) -> bool:
    """Whether the request came in absolute form, a forward proxy's. False: in origin form, a gateway's, or inside a tunnel."""
    return bool(flow.metadata.get(ABSOLUTE_FORM, False))


def compatible() -> str | None:
    """Why this mitmproxy cannot be mended; None when it can."""
    try:
        from . import http_stream  # noqa: PLC0415 - see attach
    except (ImportError, AttributeError) as error:
        return str(error)
    return http_stream.compatible()


@cache
def _usable() -> bool:
    """Whether to mend at all. Cached, so that a mitmproxy that differs is mentioned once."""
    if reason := compatible():
        logger.warning("This mitmproxy is not one of those known (%s): it keeps its HTML error pages, and bodies have no limit.", reason)
    return not reason
