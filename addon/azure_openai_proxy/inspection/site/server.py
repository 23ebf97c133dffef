"""The server of the inspector's page: its files, and the JSON that it shows.

Requests are authenticated and protected against other sites by mitmweb (`mitmproxy_patches/web_page.py`). Every response has bounds:
lists come in pages, and long texts are cut.
"""

from __future__ import annotations

import html
import json
import logging
import math
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

__all__ = ["SHARED_POLICY", "BadRequest", "Query", "Reply", "Server", "event_stream"]

logger = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src data:; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SHARED_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; frame-ancestors 'self'"
_HEAD = {"Cache-Control": "no-store", "Content-Security-Policy": POLICY, "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
_TYPES = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
LONGEST_BODY = 64 << 20


class Reply(NamedTuple):
    body: bytes | AsyncGenerator[bytes]
    status: int = 200
    headers: Mapping[str, str] = _HEAD


class BadRequest(Exception):
    """A request that cannot be answered, with the reason."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Query(dict[str, str]):
    """The query of a request."""

    def number(self, name: str, default: int, most: int) -> int:
        text = self.get(name, "")
        if not text:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise BadRequest(f"{name} must be a number.")
        return min(int(text), most)


class Server:
    """Maps paths to functions. `gets` are called with the query, `posts` with the JSON body; both return a JSON value or a reply."""

    def __init__(self) -> None:
        self.gets: dict[str, Callable[[Query], Awaitable[Any]]] = {}
        self.posts: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {}

    async def respond(self, method: str, path: str, query: Mapping[str, str], body: bytes, xsrf_token: str) -> Reply:
        try:
            if method == "GET" and path.startswith("api/") and (get := self.gets.get(path[4:])):
                return _reply(await get(Query(query)))
            if method == "POST" and path.startswith("api/") and (post := self.posts.get(path[4:])):
                return _reply(await post(_json(body)))
            if method == "GET":
                return _file(path, xsrf_token)
        except BadRequest as error:
            return _reply({"error": str(error)}, error.status)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            # A flow file is untrusted: a value that no reader expects must not end as an error page without a word.
            logger.debug("The inspector's page could not be served: %s", path, exc_info=True)
            return _reply({"error": "This flow cannot be shown."}, 500)
        return _reply({"error": "There is no such page."}, 404)


def _reply(value: Any, status: int = 200) -> Reply:
    if isinstance(value, Reply):
        return value
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        written = json.dumps(_finite(value), ensure_ascii=False)
    return Reply(written.encode("utf-8", "replace"), status, {**_HEAD, "Content-Type": "application/json; charset=utf-8"})


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which no browser reads."""
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(body: bytes) -> dict[str, Any]:
    if len(body) > LONGEST_BODY:
        raise BadRequest("The body is too large.", 413)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("The body must be JSON.") from None
    if not isinstance(value, dict):
        raise BadRequest("The body must be a JSON object.")
    return value


def _file(path: str, xsrf_token: str) -> Reply:
    """The page itself, and its files below `static/`."""
    name = "index.html" if path == "" else path.removeprefix("static/")
    folder = resources.files(__package__) / "static"
    if (path and not path.startswith("static/")) or name not in {one.name for one in folder.iterdir()} or (path and name == "index.html"):
        raise BadRequest("There is no such page.", 404)
    content = (folder / name).read_bytes()
    if not path:
        content = content.replace(b"XSRF_TOKEN", html.escape(xsrf_token).encode())
    return Reply(content, 200, {**_HEAD, "Content-Type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"})


async def events(values: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:
    """Values as server-sent events; None becomes a comment."""
    async for value in values:
        yield b": nothing new\n\n" if value is None else b"data: " + json.dumps(value).encode() + b"\n\n"


def event_stream(values: AsyncGenerator[Any]) -> Reply:
    # mitmweb would compress it, and leave the compressor of an interrupted stream open.
    return Reply(events(values), 200, {**_HEAD, "Content-Type": "text/event-stream; charset=utf-8", "Content-Encoding": "identity"})
