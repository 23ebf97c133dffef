"""The head of an HTTP/1.1 request, from mitmproxy's request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mitmproxy import http

    from .connect import Destination

__all__ = ["request_head"]


def request_head(request: http.Request, destination: Destination, *, streamed: bool) -> tuple[bytes, bool]:
    """Return the bytes of the request line and headers, and whether a streamed body is sent in chunks.

    The values of the headers were validated when the request was built.
    """
    data = request.data
    target = data.path
    proxy = destination.proxy
    lines: list[bytes] = []
    host: bytes | None = None
    cookies: list[bytes] = []
    chunked = False
    whole = False
    for name, value in data.headers.fields:
        folded = name.lower()
        if folded == b"host":
            host = value
            continue
        if folded == b"cookie":
            cookies.append(value)
            continue
        if folded == b"transfer-encoding":
            if not streamed:
                whole = True
                continue
            chunked = True
        lines.append(b"%b: %b\r\n" % (name, value))
    if whole:  # the client sent chunks, and the body was buffered
        lines = [line for line in lines if not line.lower().startswith(b"content-length:")]
        lines.append(b"content-length: %d\r\n" % len(request.raw_content or b""))
    if host is None:
        host = data.authority or destination.netloc.encode()
    if cookies:
        lines.append(b"cookie: %b\r\n" % b"; ".join(cookies))
    if proxy and not destination.tls:
        target = b"http://%b%b" % (destination.netloc.encode(), target)
        if proxy.authorization:
            lines.append(b"proxy-authorization: %b\r\n" % proxy.authorization)
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (data.method, target, host, b"".join(lines)), chunked
