"""Adds CSS to mitmweb's page: a wider comment column, and line wrapping in content views.

By default the column has space for two words, and each paragraph of a view is one long line. On an mitmweb with other class names the rules
have no effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado.web import OutputTransform

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from tornado.httputil import HTTPHeaders, HTTPServerRequest
    from tornado.web import Application

__all__ = ["comments"]

STYLE = (
    b"<style>"
    b".flow-table .col-comment{width:40%}.flow-table td.col-comment{text-align:left}"
    b".contentview pre{white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere}"
    b".contentview pre>div{min-height:1.43em}"  # show empty lines
    b"</style>"
)


class CommentStyle(OutputTransform):
    def __init__(self, request: HTTPServerRequest) -> None:
        self._page = request.path == "/"

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: ARG002, FBT001 - tornado's signature
    ) -> tuple[int, HTTPHeaders, bytes]:
        if self._page and b"</head>" in chunk:
            chunk = chunk.replace(b"</head>", STYLE + b"</head>", 1)
            headers["Content-Length"] = str(len(chunk))
        return status_code, headers, chunk


def comments(master: Master, *, shown: bool) -> None:
    """Add the style to the pages of this mitmweb, or remove it."""
    app: Application = master.app  # type: ignore[attr-defined]
    app.transforms[:] = [one for one in app.transforms if one.__name__ != CommentStyle.__name__]  # by name: reloads create new classes
    if shown:
        app.transforms.insert(0, CommentStyle)  # before the compression
