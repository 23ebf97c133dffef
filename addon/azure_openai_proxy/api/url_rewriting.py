"""Addresses in Azure's answers: what points at Azure's API points at the proxy, where the client has its key and its models' names."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from azure_openai_proxy.formats import json_edit

from .backend import AZURE_HOSTS

if TYPE_CHECKING:
    from mitmproxy import http

    from .backend import Base
    from .large_bodies import LargeBody

__all__ = ["MEMBERS", "in_body", "in_headers", "ours"]

_HEADERS = ("location", "operation-location", "azure-asyncoperation", "content-location")
MEMBERS = ("next", "next_link", "nextLink")


def ours(url: str, base: Base, here: str, *, native: bool) -> str:
    """`url` as the client asks the proxy for it; as it is where it does not point at the API at `base`.

    `here` is the proxy's address as the client has it. A `native` client knows Azure's paths and keeps them.
    """
    try:
        named = urlsplit(url)
    except ValueError:
        return url
    host = named.netloc.lower()
    if host not in ("", base.netloc) and not host.endswith(AZURE_HOSTS):  # a front may pass on what Azure calls itself
        return url
    path = named.path.removeprefix(base.prefix)
    if not path.startswith("/openai/"):
        return url
    if not native and path.startswith("/openai/v1/"):
        path = path.removeprefix("/openai")
    return named._replace(scheme="", netloc="", path=f"{here if host else ''}{path}").geturl()


def in_headers(headers: http.Headers, base: Base, *, native: bool) -> None:
    """In place; by the path alone, which leads back by whatever way the client came."""
    for name in _HEADERS:
        if name in headers:
            headers[name] = ours(headers[name], base, "", native=native)


def in_body(content: bytes, base: Base, here: str, *, native: bool, large: LargeBody | None = None) -> bytes:
    """The next page's address in a JSON answer; `content` itself where there is none. `large`: what was found in it at `MEMBERS`."""
    if not suspect(content):
        return content

    def new(url: str) -> str:
        return ours(url, base, here, native=native)

    if large:
        return json_edit.renamed(content, large.strings(*MEMBERS), new)
    return json_edit.rename(content, MEMBERS, new) if content.lstrip().startswith(b"{") else content


def suspect(content: bytes) -> bool:
    """Whether an answer may have an address of Azure's API in it."""
    return b"/openai/" in content or b"\\/openai\\/" in content
