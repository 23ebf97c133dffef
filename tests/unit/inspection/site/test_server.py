"""The paths of the page, and the files that may be read below them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from azure_openai_proxy.inspection.site import server
from azure_openai_proxy.inspection.site.server import BadRequest, Query, Reply, Server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


async def ask(method: str, path: str, body: bytes = b"", served: Server | None = None, **query: str) -> Reply:
    return await (served or Server()).respond(method, path, query, body, 'token"<')


def value(reply: Reply) -> Any:
    assert isinstance(reply.body, bytes)
    return json.loads(reply.body)


async def test_the_page_has_its_token_and_a_strict_policy() -> None:
    """The token is escaped, nothing is cached or framed, and no script but the page's own may run."""
    reply = await ask("GET", "")
    assert isinstance(reply.body, bytes)
    assert b'content="token&quot;&lt;"' in reply.body
    assert {
        "Cache-Control": "no-store",
        "X-Frame-Options": "DENY",
        "Content-Type": "text/html; charset=utf-8",
    }.items() <= reply.headers.items()
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name, kind", [("main.js", "text/javascript"), ("page.css", "text/css")])
async def test_static_files(name: str, kind: str) -> None:
    """Each has its type, by which a browser accepts it as a module."""
    reply = await ask("GET", f"static/{name}")
    assert (200, f"{kind}; charset=utf-8") == (reply.status, reply.headers["Content-Type"])


@pytest.mark.parametrize(
    "path",
    ["static/../server.py", "static/", "static/nothing.js", "static/index.html", "index.html", "../addon.py", "api/nothing", "static/.."],
)
async def test_nothing_else_is_served(path: str) -> None:
    """No other file of the package, and no folder."""
    reply = await ask("GET", path)
    assert (404, {"error": "There is no such page."}) == (reply.status, value(reply))


async def test_functions_get_the_query_or_the_body() -> None:
    """A GET's query and a POST's JSON object; the value that is returned is JSON."""
    served = Server()

    async def get(query: Query) -> object:
        return {"n": query.number("n", 7, 50)}

    async def post(body: dict[str, Any]) -> object:
        return body

    served.gets["one"], served.posts["two"] = get, post
    assert {"n": 7} == value(await ask("GET", "api/one", served=served))
    assert {"n": 50} == value(await ask("GET", "api/one", served=served, n="1000"))
    assert {"a": 1} == value(await ask("POST", "api/two", b'{"a": 1}', served=served))
    assert [404, 404] == [(await ask("POST", path, b"{}", served=served)).status for path in ("api/one", "static/main.js")]


@pytest.mark.parametrize(
    "body, status, error",
    [
        (b"{", 400, "The body must be JSON."),
        (b"[" * 100_000, 400, "The body must be JSON."),
        (b"[]", 400, "The body must be a JSON object."),
        (b" " * (server.LONGEST_BODY + 1), 413, "The body is too large."),
    ],
)
async def test_a_body_that_is_no_object(body: bytes, status: int, error: str) -> None:
    """The reason is returned."""
    served = Server()

    async def post(_: dict[str, Any]) -> object:
        raise NotImplementedError

    served.posts["one"] = post
    reply = await ask("POST", "api/one", body, served)
    assert (status, {"error": error}) == (reply.status, value(reply))


@pytest.mark.parametrize("text", ["x", "-1", "\u0661", "9" * 10])
def test_a_number_that_is_none(text: str) -> None:
    """It must have ASCII digits only, and not too many."""
    with pytest.raises(BadRequest, match="n must be a number"):
        Query({"n": text}).number("n", 0, 10)


async def test_numbers_that_no_browser_reads() -> None:
    """NaN and infinity, which a request may have, become null."""

    async def numbers(_: Query) -> Any:
        return {"a": [math.nan, (1.5, math.inf)], "b": "NaN"}

    served = Server()
    served.gets["numbers"] = numbers
    assert {"a": [None, [1.5, None]], "b": "NaN"} == value(await ask("GET", "api/numbers", served=served))


async def test_a_failure_of_a_function_is_a_sentence() -> None:
    """An unexpected value in a flow does not end as a page of mitmweb."""
    served = Server()

    async def get(_: Query) -> object:
        raise KeyError("a")

    served.gets["one"] = get
    reply = await ask("GET", "api/one", served=served)
    assert (500, {"error": "This flow cannot be shown."}) == (reply.status, value(reply))


async def test_events_are_sent_as_they_come() -> None:
    """A value is one event, nothing a comment, and mitmweb does not compress the stream."""

    async def values() -> AsyncGenerator[object]:
        yield {"a": 1}
        yield None

    reply = server.event_stream(values())
    assert not isinstance(reply.body, bytes)
    assert [b'data: {"a": 1}\n\n', b": nothing new\n\n"] == [part async for part in reply.body]
    assert "identity" == reply.headers["Content-Encoding"]
