"""The inspector's page and the comments of flows in mitmweb. It imports tornado, so only mitmweb imports this module.

`mitmproxy_patches/web_page.py` adds these classes to mitmweb's application.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from tornado.iostream import StreamClosedError
from tornado.web import OutputTransform, RequestHandler

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders, HTTPServerRequest

    from .server import Server

__all__ = ["LINK", "PATH", "STYLE", "CommentStyle", "Mount", "PageLink", "SiteRequests", "mount"]

PATH = "/azure/"
LINK = (
    b'<a id="azure-openai-inspector" href="./azure/" style="position:fixed;top:4px;right:130px;z-index:9;padding:2px 8px;border-radius:4px;'
    b'font:14px/20px sans-serif;color:#fff;background:#0b5394">LLM threads</a>'
)
STYLE = (
    b"<style>"
    b".flow-table .col-comment{width:48%}.flow-table td.col-comment{text-align:left}"
    b".contentview pre{white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere}"
    b".contentview pre>div{min-height:1.43em}"  # show empty lines
    b"</style>"
)


class PageInsertion(OutputTransform):
    """Inserts bytes into mitmweb's own page."""

    before: ClassVar[bytes]
    inserted: ClassVar[bytes]

    def __init__(self, request: HTTPServerRequest) -> None:
        self._page = request.path == "/"

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: ARG002, FBT001 - tornado's signature
    ) -> tuple[int, HTTPHeaders, bytes]:
        if self._page and status_code == 200 and self.before in chunk:
            chunk = chunk.replace(self.before, self.inserted + self.before, 1)
            headers["Content-Length"] = str(len(chunk))
        return status_code, headers, chunk


class CommentStyle(PageInsertion):
    """A wider comment column, and line wrapping in content views.

    By default the column has space for two words, and each paragraph of a view is one long line. On an mitmweb with other class names the
    rules have no effect.
    """

    before, inserted = b"</head>", STYLE


class PageLink(PageInsertion):
    """A link to the inspector's page."""

    before, inserted = b"</body>", LINK


class SiteRequests(RequestHandler):
    """Passes requests to the site. It does not authenticate them: mitmweb's own request handler, which is added as a base, does."""

    site: ClassVar[Server]
    streaming: asyncio.Task[None] | None = None

    def auth_fail(self, invalid_password: bool) -> None:  # noqa: FBT001 - mitmproxy's signature
        """Called by mitmweb's authentication."""
        self.render("login.html", invalid_password=invalid_password)

    async def get(self, path: str) -> None:
        await self.answer("GET", path)

    async def post(self, path: str) -> None:
        if not path:  # the login form
            self.redirect(PATH)
            return
        await self.answer("POST", path)

    def on_connection_close(self) -> None:
        if self.streaming:
            self.streaming.cancel()

    async def answer(self, method: str, path: str) -> None:
        # A script of another page must not read the token. tornado checks it.
        token = self.xsrf_token.decode() if self.request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate" else ""
        query = {name: self.get_query_argument(name) for name in self.request.query_arguments if name != "token"}
        reply = await self.site.respond(method, path, query, self.request.body, token)
        self.set_status(reply.status)
        for name, value in reply.headers.items():
            self.set_header(name, value)
        if isinstance(reply.body, bytes):
            self.finish(reply.body)
            return
        self.streaming = asyncio.current_task()
        with suppress(StreamClosedError, asyncio.CancelledError):  # the page was closed, or mitmweb ends
            async with aclosing(reply.body) as parts:
                async for part in parts:
                    self.write(part)
                    await self.flush()


class Mount(NamedTuple):
    """What is added to mitmweb."""

    pattern: str
    handler: type[SiteRequests]
    link: type[PageLink]


def mount(site: Server) -> Mount:
    return Mount(f"{PATH}(.*)", type("Handler", (SiteRequests,), {"site": site}), PageLink)
