"""The client's side of a request, as far as it needs no private API.

HTTP/1 connections, TLS, headers, bodies, messages of a WebSocket, errors, flow control, disconnected clients, and what saves time in
mitmproxy's public parts: an index of its hooks without the addons that need no call, parsed authorities, no checks of types.

`mitmproxy_patches` connects it to mitmproxy's layers; `gateway` reads the values of `interface`. It may import `errors` only.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = [
    "failures",
    "flow_control",
    "gate",
    "headers",
    "hook_index",
    "http1",
    "http1_connection",
    "http1_requests",
    "http2",
    "idle_addons",
    "interface",
    "large_body",
    "message_limit",
    "message_types",
    "option_values",
    "probes",
    "request_body",
    "request_target",
    "sockets",
    "tls",
    "writes",
]
