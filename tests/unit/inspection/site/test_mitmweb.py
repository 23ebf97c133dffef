"""The page on mitmweb's port. tests/e2e/test_inspector_browser.py looks at it in a browser."""

from __future__ import annotations

import asyncio
import secrets
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from mitmproxy import ctx
from mitmproxy.tools.web.app import RequestHandler
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application

from azure_openai_proxy.inspection.site import mitmweb
from azure_openai_proxy.mitmproxy_patches import compat, install

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping


class Reply(NamedTuple):
    body: bytes | AsyncGenerator[bytes]
    status: int = 200
    headers: Mapping[str, str] = {"Content-Type": "text/plain", "X-Frame-Options": "SAMEORIGIN"}


class Site:
    """Returns what it was asked."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.closed = asyncio.Event()

    async def respond(self, method: str, path: str, query: Mapping[str, str], body: bytes, xsrf_token: str) -> Reply:
        if path == "stream":
            return Reply(self.parts(int(query["parts"])))
        return Reply(f"{self.name}{method} {path} {dict(query)} {body.decode()} {bool(xsrf_token)}".encode(), 201)

    async def parts(self, number: int) -> AsyncGenerator[bytes]:
        try:
            for _ in range(number):
                yield b"part\n"
                await asyncio.sleep(0)
            if number == 1:
                await asyncio.Event().wait()
        finally:
            self.closed.set()


def mounted(site: Site | None = None) -> mitmweb.Mount:
    return mitmweb.mount(site or Site())  # type: ignore[arg-type]


class WebMaster(SimpleNamespace):
    """A master of mitmweb without a proxy."""

    __module__ = "mitmproxy.tools.web.master"


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    settings: dict[str, Any] = {
        "is_valid_password": "secret".__eq__,
        "auth_cookie_name": lambda: "mitmproxy-auth",
        "cookie_secret": secrets.token_bytes(32),
        "xsrf_cookies": True,
        "template_path": str(mitmweb.__file__).rpartition("/")[0],
    }
    master = WebMaster(app=Application([("/", RequestHandler)], **settings))
    monkeypatch.setattr(ctx, "master", master, raising=False)
    vars(compat.WEB_SITE).pop("usable", None)
    yield master
    vars(compat.WEB_SITE).pop("usable", None)


@pytest.fixture
async def client(master: Any) -> AsyncIterator[httpx.AsyncClient]:
    socket, port = bind_unused_port()
    server = HTTPServer(master.app)
    server.add_sockets([socket])
    headers = {"x-xsrftoken": "0123456789abcdef", "cookie": "_xsrf=0123456789abcdef"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
        yield client
    server.stop()
    await server.close_all_connections()


async def test_requests_reach_the_site(master: Any, client: httpx.AsyncClient) -> None:
    """With the query but the password, the body, and the token if a person opens the page; its headers replace mitmweb's."""
    install.serve_site(master, mounted)
    page = await client.get("/azure/", params={"token": "secret", "a": "1"})
    assert (201, "GET  {'a': '1'}  True", "SAMEORIGIN") == (page.status_code, page.text, page.headers["X-Frame-Options"])
    script = await client.get("/azure/x", params={"token": "secret"}, headers={"sec-fetch-mode": "cors"})
    assert "GET x {}  False" == script.text
    assert "POST y {} body True" == (await client.post("/azure/y", params={"token": "secret"}, content=b"body")).text
    assert (302, "/azure/") == ((login := await client.post("/azure/", params={"token": "secret"})).status_code, login.headers["location"])


async def test_a_stream_ends_with_its_page(master: Any, client: httpx.AsyncClient) -> None:
    """Parts are sent as they come; when the page is closed, the generator is closed."""
    site = Site()
    install.serve_site(master, lambda: mounted(site))
    assert "part\npart\n" == (await client.get("/azure/stream", params={"token": "secret", "parts": 2})).text
    for parts in (1, 10**9):  # it waits, or sends
        await close_early(client, site, parts)


async def close_early(client: httpx.AsyncClient, site: Site, parts: int) -> None:
    site.closed.clear()
    async with client.stream("GET", "/azure/stream", params={"token": "secret", "parts": parts}) as response:
        assert b"part\n" in await anext(response.aiter_raw())
    await asyncio.wait_for(site.closed.wait(), 20)
    assert site.closed.is_set()


def test_a_request_without_a_stream_may_be_closed_too() -> None:
    """Its handler goes on."""
    handler: Any = SimpleNamespace(streaming=None)
    assert mitmweb.SiteRequests.on_connection_close(handler) is None  # type: ignore[func-returns-value]


async def test_nothing_is_shown_without_the_password(master: Any, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither page nor data, and a form of another site is refused."""
    install.serve_site(master, mounted)
    monkeypatch.setattr(mitmweb.SiteRequests, "render", lambda self, name, **_: self.finish(name))
    for answer in (await client.get("/azure/"), await client.get("/azure/api/threads", params={"token": "guess"})):
        assert (403, "login.html") == (answer.status_code, answer.text)
    client.headers.pop("x-xsrftoken")
    assert 403 == (await client.post("/azure/y", params={"token": "secret"})).status_code


async def test_the_site_is_replaced_and_removed(master: Any, client: httpx.AsyncClient) -> None:
    """A reload leaves the new one alone; at the end mitmweb is as it was."""
    rules, transforms = list(master.app.default_router.rules), list(master.app.transforms)
    install.serve_site(master, lambda: mounted(Site("old ")))
    install.serve_site(master, lambda: mounted(Site("new ")))
    assert (await client.get("/azure/x", params={"token": "secret"})).text.startswith("new GET")
    install.serve_site(master, None)
    assert 404 == (await client.get("/azure/x", params={"token": "secret"})).status_code
    assert (rules, transforms) == (master.app.default_router.rules, master.app.transforms)


@pytest.mark.parametrize("path, status, linked", [("/", 200, True), ("/?token=a", 200, True), ("/", 403, False), ("/flows", 200, False)])
async def test_mitmwebs_page_has_a_link(path: str, status: int, linked: bool, master: Any) -> None:
    """Its page alone, and its length is right."""
    install.serve_site(master, mounted)
    transform = master.app.transforms[0](SimpleNamespace(path=path.partition("?")[0]))
    headers: Any = {"Content-Length": "13"}
    body = transform.transform_first_chunk(status, headers, b"<body></body>", True)[2]
    assert (b"<body>" + mitmweb.LINK * linked + b"</body>", str(len(body))) == (body, headers["Content-Length"])


def test_other_tools_have_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a mitmdump the site is not even made."""

    def never() -> mitmweb.Mount:
        raise NotImplementedError

    master: Any = SimpleNamespace()
    install.serve_site(master, never)
    assert not hasattr(master, "app")


def test_a_renamed_attribute_of_mitmweb_is_a_warning(master: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Mitmweb goes on without the page, and one warning says so."""
    del master.app
    install.serve_site(master, mounted)
    install.serve_site(master, None)
    (line,) = caplog.messages
    assert "no attribute 'app'" in line
    assert line.endswith(compat.WEB_SITE.lost)
