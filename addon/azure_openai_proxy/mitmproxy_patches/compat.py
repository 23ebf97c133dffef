"""The private attributes of mitmproxy, wsproto, h2, OpenSSL and asyncio that each feature uses, and the samples that must have them.

`compatibility.Feature` compares them. docs/mitmproxy-internals.md describes each feature.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.connection import Client

from azure_openai_proxy.compatibility import Feature

__all__ = [
    "CONNECTIONS",
    "CONSOLE",
    "FAST_PATH",
    "FEATURES",
    "HTTP",
    "PORTS",
    "SHUTDOWN",
    "TESTED",
    "WEB",
    "WEB_SITE",
]

TESTED = {
    "mitmproxy": ("12.0", "12.1", "12.2", "12.3"),
    "h11": ("0.16",),
    "Python": ("3.12", "3.13"),
}
"""Minor versions with which the fast path is tested. For their patch releases, the check below decides."""


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
    http_layer = layers.HttpLayer(context, layers.HTTPMode.regular)
    stream = layers.HttpStream(context.fork(), 1)
    list(stream.handle_event(events.Start()))
    head = _events.RequestHeaders(1, http.Request.make("GET", "http://localhost/"), end_stream=True)
    hook = next(stream.handle_event(head))
    server2: Any = _http2.Http2Server(context.fork())
    upgraded = http.HTTPFlow(context.client, context.server)
    upgraded.response = http.Response.make(101, headers={"sec-websocket-extensions": "permessage-deflate"})
    websocket: Any = WebsocketLayer(context.fork(), upgraded)
    next(websocket.handle_event(events.Start()))
    constructors = {name: made for each in (commands, events, _base, _events, _hooks, _http1, layers) for name, made in vars(each).items()}
    return {
        **samples,
        "Constructors": SimpleNamespace(**constructors),
        "HTTPMode": layers.HTTPMode,
        "HttpConnection": _base.HttpConnection,
        "ErrorCode": _events.ErrorCode,
        "NextLayerAddon": NextLayerAddon(),
        "NextLayer": next_layer,
        "TLSLayer": ClientTLSLayer(context.fork()),
        "HttpLayer": http_layer,
        "HttpStream": stream,
        "StreamBuffer": stream.request_body_buf,
        "StartHook": hook,
        "Http1Server": _http1.Http1Server(context.fork()),
        "Http2Server": server2,
        "BufferedH2Connection": getattr(server2, "h2_conn", None),
        "SendH2Data": _http_h2.SendH2Data(b"", end_stream=False),
        "WebsocketLayer": websocket,
        "WebsocketConnection": websocket.client_ws,
        "FrameProtocol": websocket.client_ws._proto,  # noqa: SLF001
    }


def _fast_path() -> dict[str, object]:
    from h2.stream import H2Stream  # noqa: PLC0415
    from mitmproxy.addonmanager import AddonManager  # noqa: PLC0415
    from mitmproxy.addons.onboarding import Onboarding  # noqa: PLC0415

    samples = _http()
    handler: Any = samples["ConnectionHandler"]
    return samples | {
        "Master": ctx.master,
        "AddonManager": AddonManager(ctx.master),
        "Onboarding": Onboarding(),
        "H2Stream": H2Stream(1, samples["Http2Server"].h2_conf, 0, 0),  # type: ignore[attr-defined]
        "TimeoutWatchdog": getattr(handler, "timeout_watchdog", None),
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
    }


def _web() -> dict[str, object]:
    from mitmproxy.tools.web.app import RequestHandler  # noqa: PLC0415
    from tornado.web import OutputTransform  # noqa: PLC0415

    app = ctx.master.app  # type: ignore[attr-defined]
    return {
        "Application": app,
        "Router": getattr(app, "default_router", None),
        "OutputTransform": OutputTransform,
        "RequestHandler": RequestHandler,
    }


_TRANSPORTS = {"Proxyserver": "connections", "ConnectionHandler": "transports", "ConnectionIO": "writer"}
_PAGE = {"Application": "transforms", "OutputTransform": "transform_first_chunk(status_code headers chunk finishing)"}

HTTP = Feature(
    "Requests to Azure are sent by mitmproxy itself, with the key visible on the flow until the response begins. Off are: failover, "
    "retries and repairs, time-outs, pooled connections and their limit, errors in JSON, the limit and the streaming of request bodies, "
    "the limit of WebSocket messages, refusals before the body is read, and host names of the gateway that are neither local nor in "
    "azure_openai_hosts.",
    _http,
    {
        "Proxyserver": "connections",
        "Context": "client server options layers fork()",
        "ConnectionHandler": "transports server_event(event)",
        "ConnectionIO": "handler reader writer",
        "NextLayerAddon": "next_layer(nextlayer)",
        "NextLayer": "context",
        "HTTPMode": "transparent",
        "HttpLayer": "context connections streams _handle_event(event) make_stream(stream_id) event_to_child(child event)",
        "HttpStream": "__init__(context stream_id) _handle_event(event) context mode flow stream_id child_layer request_body_buf"
        " response_body_buf client_state server_state check_invalid(request) check_killed(emit_error_hook) check_body_size(request)"
        " handle_protocol_error(event) make_server_connection() start_request_stream() flow_done() passthrough(event)"
        " state_uninitialized state_wait_for_request_headers state_wait_for_response_headers state_consume_request_body(event)"
        " state_consume_response_body state_stream_request_body(event) state_stream_response_body state_errored",
        "StreamBuffer": "clear() __bytes__() __len__()",
        "StartHook": "blocking",
        "Http1Server": "__init__(context) _handle_event(event) conn stream_id",
        "Http2Server": "__init__(context) _handle_event(event) h2_conf h2_conn protocol_error(message error_code)",
        "BufferedH2Connection": "stream_buffers local_settings acknowledge_received_data(acknowledged_size stream_id)"
        " data_to_send(amount) initiate_connection() receive_data(data)",
        "SendH2Data": "data",
        "HttpConnection": "__init__(context conn) _handle_event(event)",
        "ErrorCode": "http_status_code()",
        "Constructors": "ReceiveHttp(event) SendHttp(event connection) DropStream(stream_id)"
        " RequestHeaders(stream_id request end_stream replay_flow) ResponseHeaders(stream_id response end_stream)"
        " RequestData(stream_id data) ResponseData(stream_id data) ResponseTrailers(stream_id trailers)"
        " RequestEndOfMessage(stream_id) ResponseEndOfMessage(stream_id)"
        " RequestProtocolError(stream_id message code) ResponseProtocolError(stream_id message code)"
        " HttpResponseHook(flow) HttpResponseHeadersHook(flow) make_error_response(status_code message)"
        " SendData(connection data) DataReceived(connection data)",
        "TLSLayer": "tls tunnel_state send_close(command) send_data(data) tls_interact()",
        "WebsocketLayer": "client_ws server_ws flow _paused_event_queue",
        "WebsocketConnection": "_proto state frame_buf events() send2(event)",
        "FrameProtocol": "extensions",
    },
    f"{__package__}.http_layer",
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
    _TRANSPORTS | {"Proxyserver": "connections servers", "Servers": "is_updating"},
)

FAST_PATH = Feature(
    "The fast path is off: requests take more processor time, and nothing else changes.",
    _fast_path,
    {
        "Master": "addons options",
        "AddonManager": "master chain add(addons) handle_lifecycle(event) register(addon) remove(addon) trigger_event(event)",
        "Onboarding": "host should_serve(flow)",
        "ConnectionHandler": "log(message level exc_info) timeout_watchdog handle_connection(connection) drain_writers()",
        "TimeoutWatchdog": "register_activity()",
        "HttpStream": "debug _paused",
        "Http2Server": "is_open_for_us(stream_id)",
        "BufferedH2Connection": "streams max_outbound_frame_size outbound_flow_control_window local_flow_control_window(stream_id)"
        " send_data(stream_id data end_stream pad_length)",
        "H2Stream": "outbound_flow_control_window",
        "TLSLayer": "conn",
    },
    f"{__package__}.fastpath",
)
"""What the fast path uses besides `HTTP`, without which it is off too."""

CONSOLE = Feature(
    "The console's list does not show the comments of flows.",
    _console,
    {
        "Window": "stacks",
        "WindowStack": "windows",
        "FlowListBox": "body",
        "FlowItem": "get_text()",
        "FlowListWalker": "view_changed()",
    },
    f"{__package__}.console_list",
)

WEB = Feature(
    "mitmweb's list shows the comments of flows in a narrow column.",
    _web,
    _PAGE,
    f"{__package__}.web_page",
)

WEB_SITE = Feature(
    "The inspector's page /azure/ in mitmweb is missing.",
    _web,
    _PAGE
    | {
        "Application": "transforms default_router add_handlers(host_pattern host_handlers)",
        "Router": "rules",
        "RequestHandler": "_require_auth(fn) auth_fail(invalid_password)",
    },
    f"{__package__}.web_page",
)

FEATURES = {name: value for name, value in vars().items() if isinstance(value, Feature)}
