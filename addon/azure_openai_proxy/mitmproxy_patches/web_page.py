"""mitmweb's page, made for what is read here: its column of comments is as wide as two words, and a view's paragraph is one long line.

Rules of style are put into the page; on a mitmweb that differs they do nothing.
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
    b".contentview pre>div{min-height:1.43em}"  # an empty line is one
    b"</style>"
)


class RoomForComments(OutputTransform):
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
    """In the list of this mitmweb from now on, or no longer."""
    app: Application = master.app  # type: ignore[attr-defined]
    app.transforms[:] = [one for one in app.transforms if one.__name__ != RoomForComments.__name__]  # after a reload another class
    if shown:
        app.transforms.insert(0, RoomForComments)  # before the one that compresses
