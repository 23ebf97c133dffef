"""Rewriting of URLs in Azure's responses: URLs of Azure's API become URLs of the proxy, where the client's key and models are valid."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from azure_openai_proxy.formats import json_edit

from .backend import AZURE_HOSTS

if TYPE_CHECKING:
    from mitmproxy import http

    from .backend import Base
    from .large_bodies import LargeBody

__all__ = ["MEMBERS", "in_body", "in_headers", "ours", "suspect"]

_HEADERS = ("location", "operation-location", "azure-asyncoperation", "content-location")
MEMBERS = ("next", "next_link", "nextLink")


def ours(url: str, base: Base, here: str, *, native: bool) -> str:
    """Return the proxy's URL for `url`; `url` itself if it is not below the API at `base`.

    `here` is the proxy's address as the client knows it. A `native` client uses Azure's paths and keeps them.
    """
    try:
        named = urlsplit(url)
    except ValueError:
        return url
    host = named.netloc.lower()
    if host not in ("", base.netloc) and not host.endswith(AZURE_HOSTS):  # a gateway may forward Azure's own host names
        return url
    path = named.path.removeprefix(base.prefix)
    if not path.startswith("/openai/"):
        return url
    if not native and path.startswith("/openai/v1/"):
        path = path.removeprefix("/openai")
    return named._replace(scheme="", netloc="", path=f"{here if host else ''}{path}").geturl()


def in_headers(headers: http.Headers, base: Base, *, native: bool) -> None:
    """Rewrite URLs in headers, in place, to a path only: it is valid for every route to the proxy."""
    for name in _HEADERS:
        if name in headers:
            headers[name] = ours(headers[name], base, "", native=native)


def in_body(content: bytes, base: Base, here: str, *, native: bool, large: LargeBody | None = None) -> bytes:
    """Rewrite the URL of the next page in a JSON response; return `content` itself if there is none. `large`: the scanned body with
    `MEMBERS` located.
    """
    if not suspect(content):
        return content

    def new(url: str) -> str:
        return ours(url, base, here, native=native)

    if large:
        return json_edit.renamed(content, large.strings(*MEMBERS), new)
    return json_edit.rename(content, MEMBERS, new) if content.lstrip().startswith(b"{") else content


def suspect(content: bytes) -> bool:
    """Return whether a response may contain a URL of Azure's API."""
    return b"/openai/" in content or b"\\/openai\\/" in content
