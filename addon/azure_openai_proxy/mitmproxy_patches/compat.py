"""Compatibility check: all private attributes of mitmproxy, wsproto, h2, OpenSSL and asyncio that this package uses.

A feature is on only if sample objects have every attribute and signature that the feature uses. The samples are instantiated, because most
attributes are set by `__init__`, and driven where attributes are set later. docs/mitmproxy-internals.md describes each feature.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import re
import sys
from contextlib import closing
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mitmproxy import ctx, http
from mitmproxy import version as mitmproxy_version
from mitmproxy.connection import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CONNECTIONS", "CONSOLE", "FAST_PATH", "FEATURES", "HTTP", "PORTS", "SHUTDOWN", "TESTED", "WEB", "Feature", "untested"]

logger = logging.getLogger(__name__)

TESTED = {
    "mitmproxy": ("12.0", "12.1", "12.2", "12.3"),
    "h11": ("0.16",),
    "Python": ("3.12", "3.13", "3.14"),
}
"""Minor versions with which the fast path is tested. For their patch releases, the check below decides."""

_MEMBER = re.compile(r"(\w+)(\(.*?\))?")
_ABSENT = object()


def untested() -> str | None:
    """The first installed package with a version that is not in TESTED; None if there is none."""
    installed = {"mitmproxy": mitmproxy_version.VERSION, "h11": version("h11"), "Python": "{}.{}".format(*sys.version_info)}
    for name, number in installed.items():
        if ".".join(number.split(".")[:2]) not in TESTED[name]:
            return f"{name} {number}"
    return None


class Feature:
    """A set of patches that is on or off as a whole. `lost` is the sentence for the warning if it is off."""

    def __init__(self, lost: str, samples: Callable[[], dict[str, object]], *uses: Mapping[str, str], modules: str = "") -> None:
        self.lost = lost
        self.samples = samples
        self.uses = uses
        """For each sample its attributes. The parameters of a method follow its name, without `self`."""
        self.modules = modules.split()
        """Modules of this package that import private names."""

    @cached_property
    def usable(self) -> bool:
        """Whether nothing is missing. Otherwise a warning is logged once."""
        if missing := self.missing():
            logger.warning("This mitmproxy (%s) differs from those known: %s. %s", mitmproxy_version.VERSION, missing, self.lost)
        return not missing

    def missing(self) -> str | None:
        try:
            samples = self.samples()
            for name in self.modules:
                importlib.import_module(f"{__package__}.{name}")
        except Exception as error:  # noqa: BLE001 - a changed class can raise anything
            return f"{type(error).__name__}: {error}"
        for uses in self.uses:
            for name, members in uses.items():
                for member, parameters in _MEMBER.findall(members):
                    found = inspect.getattr_static(samples[name], member, _ABSENT)
                    if found is _ABSENT:
                        return f"{name} has no attribute {member}"
                    if parameters and parameters != (actual := _parameters(found)):
                        return f"{name}.{member} takes {actual} and not {parameters}"
        return None


def _parameters(member: Any) -> str:
    return f"({' '.join(name for name in inspect.signature(member).parameters if name != 'self')})"


def _connections() -> dict[str, object]:
    from mitmproxy.addons.proxyserver import Proxyserver  # noqa: PLC0415 - a failed import means that the feature is missing
    from mitmproxy.options import Options  # noqa: PLC0415
    from mitmproxy.proxy.context import Context  # noqa: PLC0415
    from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO  # noqa: PLC0415

    class Handler(ConnectionHandler):
        async def handle_hook(self, hook: object) -> None: ...

    options, proxyserver = Options(), Proxyserver()
    proxyserver.load(options)  # its options
    context = Context(Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0), options)
    handler = Handler(context)
    return {
        "Proxyserver": proxyserver,
        "Servers": getattr(proxyserver, "servers", None),
        "Context": context,
        "ConnectionHandler": handler,
        "ConnectionIO": ConnectionIO(),
    }


def _http() -> dict[str, object]:
    from mitmproxy.addons.next_layer import NextLayer as NextLayerAddon  # noqa: PLC0415
    from mitmproxy.proxy import commands, events, layer  # noqa: PLC0415
    from mitmproxy.proxy.layers import http as layers  # noqa: PLC0415
    from mitmproxy.proxy.layers.http import _base, _events, _hooks, _http1, _http2, _http_h2  # noqa: PLC0415
    from mitmproxy.proxy.layers.tls import ClientTLSLayer  # noqa: PLC0415
    from mitmproxy.proxy.layers.websocket import WebsocketLayer  # noqa: PLC0415

    samples = _connections()
    context: Any = samples["Context"]
    next_layer = layer.NextLayer(context)
    home = layers.HttpLayer(context, layers.HTTPMode.regular)
    stream = layers.HttpStream(context.fork(), 1)
    list(stream.handle_event(events.Start()))
    head = _events.RequestHeaders(1, http.Request.make("GET", "http://localhost/"), end_stream=True)
    hook = next(stream.handle_event(head))
    server = _http1.Http1Server(context.fork())
    server2: Any = _http2.Http2Server(context.fork())
    upgraded = http.HTTPFlow(context.client, context.server)
    upgraded.response = http.Response.make(101, headers={"sec-websocket-extensions": "permessage-deflate"})
    websocket: Any = WebsocketLayer(context.fork(), upgraded)
    next(websocket.handle_event(events.Start()))
    frames = websocket.client_ws._proto  # noqa: SLF001
    classes = {name: kind for module in (commands, events, _base, _events, _hooks, layers) for name, kind in vars(module).items()}
    return {
        **classes,
        **samples,
        "NextLayerAddon": NextLayerAddon(),
        "NextLayer": next_layer,
        "TLSLayer": ClientTLSLayer(context.fork()),
        "HttpLayer": home,
        "HttpStream": stream,
        "StreamBuffer": stream.request_body_buf,
        "StartHook": hook,
        "Http1Server": server,
        "ReceiveBuffer": server.buf,
        "Http2Server": server2,
        "BufferedH2Connection": getattr(server2, "h2_conn", None),
        "SendH2Data": _http_h2.SendH2Data(b"", end_stream=False),
        "WebsocketLayer": websocket,
        "WebsocketConnection": websocket.client_ws,
        "FrameProtocol": frames,
        "PerMessageDeflate": frames.extensions[0],
    }


class _Transport(asyncio.Transport):
    def is_closing(self) -> bool:  # called when the writer is deleted
        return True


def _fast_path() -> dict[str, object]:
    from mitmproxy.addonmanager import AddonManager  # noqa: PLC0415
    from mitmproxy.addons.onboarding import Onboarding  # noqa: PLC0415
    from mitmproxy.log import LegacyLogEvents  # noqa: PLC0415
    from OpenSSL import SSL  # noqa: PLC0415

    samples = _http()
    handler: Any = samples["ConnectionHandler"]
    with closing(asyncio.new_event_loop()) as loop:
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        writer = asyncio.StreamWriter(_Transport(), protocol, reader, loop)
    return samples | {
        "Master": ctx.master,
        "AddonManager": AddonManager(ctx.master),
        "LegacyLogEvents": LegacyLogEvents(ctx.master),
        "Onboarding": Onboarding(),
        "MessageData": http.MessageData,
        "Headers": http.Headers(),
        "TimeoutWatchdog": getattr(handler, "timeout_watchdog", None),
        "StreamReader": reader,
        "StreamWriter": writer,
        "StreamReaderProtocol": protocol,
        "SSLConnection": SSL.Connection,
    }


def _console() -> dict[str, object]:
    from mitmproxy.tools.console import flowlist  # noqa: PLC0415

    window: Any = ctx.master.window  # type: ignore[attr-defined]
    stack = window.stacks[0]
    listed = stack.windows["flowlist"]
    return {
        "FlowItem": flowlist.FlowItem,
        "Window": window,
        "WindowStack": stack,
        "FlowListBox": listed,
        "FlowListWalker": getattr(listed, "body", None),
        "ConsoleMaster": ctx.master,
    }


def _web() -> dict[str, object]:
    from tornado.web import OutputTransform  # noqa: PLC0415

    app = ctx.master.app  # type: ignore[attr-defined]
    return {"Application": app, "OutputTransform": OutputTransform}


_TRANSPORTS = {
    "Proxyserver": "connections",
    "ConnectionHandler": "transports",
    "ConnectionIO": "writer",
}

HTTP = Feature(
    "Requests to Azure are sent by mitmproxy itself, with the key visible on the flow until the response begins. Off are: failover, "
    "retries and repairs, time-outs, pooled connections and their limit, errors in JSON, the limit and the streaming of request bodies, "
    "the limit of WebSocket messages, refusals before the body is read, and telling a forward proxy's requests from the gateway's.",
    _http,
    _TRANSPORTS,
    {
        "Context": "client server options layers fork()",
        "ConnectionHandler": "server_event(event)",
        "ConnectionIO": "handler reader",
        "NextLayerAddon": "next_layer(nextlayer)",
        "NextLayer": "context",
        "HTTPMode": "transparent",
        "HttpLayer": "context connections streams command_sources _handle_event(event) make_stream(stream_id)"
        " get_connection(event reuse) event_to_child(child event)",
        "HttpStream": "__init__(context stream_id) _handle_event(event) context mode flow stream_id child_layer request_body_buf"
        " response_body_buf client_state server_state check_invalid(request) check_killed(emit_error_hook) check_body_size(request)"
        " handle_protocol_error(event) make_server_connection() start_request_stream() flow_done() passthrough(event)"
        " state_uninitialized state_wait_for_request_headers state_wait_for_response_headers state_consume_response_body"
        " state_stream_request_body(event) state_stream_response_body state_errored",
        "StreamBuffer": "clear() __bytes__() __len__()",
        "StartHook": "blocking",
        "Http1Server": "__init__(context) _handle_event(event) conn buf state stream_id request response request_done response_done"
        " wait(event) read_headers(event) read_body(event) send(event) done(event) mark_done(request response)",
        "ReceiveBuffer": "maybe_extract_at_most(count) __bytes__() __len__()",
        "Http2Server": "__init__(context) _handle_event(event) h2_conf h2_conn protocol_error(message error_code)",
        "BufferedH2Connection": "stream_buffers local_settings acknowledge_received_data(acknowledged_size stream_id)"
        " data_to_send(amount) initiate_connection() receive_data(data)",
        "SendH2Data": "data",
        "HttpConnection": "__init__(context conn) _handle_event(event)",
        "ReceiveHttp": "__init__(event)",
        "SendHttp": "__init__(event connection)",
        "GetHttpConnectionCompleted": "__init__(command reply)",
        "DropStream": "__init__(stream_id)",
        "RequestHeaders": "__init__(stream_id request end_stream replay_flow)",
        "ResponseHeaders": "__init__(stream_id response end_stream)",
        "RequestData": "__init__(stream_id data)",
        "ResponseData": "__init__(stream_id data)",
        "RequestProtocolError": "__init__(stream_id message code)",
        "ResponseProtocolError": "__init__(stream_id message code)",
        "ResponseTrailers": "__init__(stream_id trailers)",
        "ResponseEndOfMessage": "__init__(stream_id)",
        "HttpErrorHook": "__init__(flow)",
        "HttpResponseHook": "__init__(flow)",
        "HttpResponseHeadersHook": "__init__(flow)",
        "SendData": "__init__(connection data)",
        "CloseTcpConnection": "__init__(connection half_close)",
        "RequestWakeup": "__init__(delay)",
        "DataReceived": "__init__(connection data)",
        "TLSLayer": "tls tunnel_state send_close(command) tls_interact()",
        "WebsocketLayer": "client_ws server_ws flow _paused_event_queue",
        "WebsocketConnection": "_proto state frame_buf events() send2(event)",
        "FrameProtocol": "extensions",
        "PerMessageDeflate": "_inbound_compressed _inbound_is_compressible _decompressor frame_inbound_payload_data(proto data)"
        " frame_inbound_complete(proto fin)",
    },
    modules="http_stream",
)
"""All patches for requests and responses, including the upstream leg."""

CONNECTIONS = Feature(
    "A connection that turns out to lead to a refused address is abandoned and not closed, and mitmproxy may leave sockets open.",
    _connections,
    _TRANSPORTS,
)

PORTS = Feature(
    "When many clients connect at the same moment, the system may refuse some of them.",
    _connections,
    {"Proxyserver": "servers", "Servers": "changed __iter__()"},
)

SHUTDOWN = Feature(
    "On SIGTERM the proxy does not see whether ports are closed and responses have left its buffers: their last bytes may be lost.",
    _connections,
    _TRANSPORTS,
    {"Proxyserver": "servers", "Servers": "is_updating"},
)

FAST_PATH = Feature(
    "The fast path is off: requests take more processor time, and nothing else changes.",
    _fast_path,
    {
        "Master": "addons options _legacy_log_events",
        "AddonManager": "master chain add(addons) clear() handle_lifecycle(event) register(addon) remove(addon) trigger_event(event)",
        "LegacyLogEvents": "master emit(record)",
        "Onboarding": "host should_serve(flow)",
        "MessageData": "__init__",
        "Headers": "fields _kconv(key) _reduce_values(values) get_all(name) get(key default) __getitem__(key) __contains__(key)",
        "ConnectionHandler": "log(message level exc_info) timeout_watchdog server_event(event) handle_connection(connection)"
        " drain_writers()",
        "TimeoutWatchdog": "register_activity()",
        "ConnectionIO": "reader writer",
        "StreamReader": "_waiter _loop feed_data(data) _wait_for_data(func_name)",
        "StreamWriter": "_protocol is_closing() write(data)",
        "StreamReaderProtocol": "_paused",
        "HttpLayer": "connections",
        "HttpStream": "context debug _paused flow server_state state_stream_response_body response_body_buf",
        "Http1Server": "_paused",
        "StartHook": "blocking",
        "TLSLayer": "conn tls tunnel_state",
        "SSLConnection": "bio_read sendall",
    },
    modules="fastpath",
)

CONSOLE = Feature(
    "The console's list does not show the comments of flows.",
    _console,
    {
        "ConsoleMaster": "view",
        "Window": "stacks",
        "WindowStack": "windows",
        "FlowListBox": "body",
        "FlowItem": "get_text()",
        "FlowListWalker": "master get_focus() _get(pos) view_changed()",
    },
    modules="console_list",
)

WEB = Feature(
    "mitmweb's list shows the comments of flows in a narrow column.",
    _web,
    {"Application": "transforms", "OutputTransform": "transform_first_chunk(status_code headers chunk finishing)"},
    modules="web_page",
)

FEATURES = {
    "HTTP": HTTP,
    "CONNECTIONS": CONNECTIONS,
    "PORTS": PORTS,
    "SHUTDOWN": SHUTDOWN,
    "FAST_PATH": FAST_PATH,
    "CONSOLE": CONSOLE,
    "WEB": WEB,
}
