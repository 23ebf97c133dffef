"""Where keys are kept: not in flows. A flow shows a mask from its first moment; the key is put in its place on the wire alone.

Whoever looks at a flow (mitmweb, the console, a content view, a saved file, a HAR, another addon) sees what is hidden here as
`[key]`. What is hidden of one request is a value, to be put back into that request or a copy of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus

from .credentials import MASK

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["Hidden", "headers", "hide", "path", "show", "without_masks"]

_HEADERS = frozenset(b"api-key authorization proxy-authorization x-api-key ocp-apim-subscription-key".split())
_PROTOCOLS = b"sec-websocket-protocol"
_IN_PROTOCOL = re.compile(rb"(openai-insecure-api-key\.)[^,\s]+")
_SCHEME = re.compile(rb"(?i)^((?:bearer|basic)[ \t]+).*$", re.DOTALL)
_IN_QUERY = frozenset({"api-key", "api_key", "key", "subscription-key", "token"})

type Fields = tuple[tuple[bytes, bytes], ...]


class Hidden(NamedTuple):
    """What a request's mask stands for. Only in memory, and as long as its request."""

    headers: tuple[tuple[bytes, bytes, bytes], ...] = ()  # name, mask, what it stands for
    path: tuple[str, str] | None = None  # masked, plain

    def __repr__(self) -> str:
        return f"Hidden({len(self.headers) + bool(self.path)})"


def hide(request: http.Request) -> Hidden:
    """Mask every key in `request`, in place. What is masked already stands for nothing new."""
    masked = headers(request.headers.fields)
    found = tuple((name, new, old) for (name, new), (_, old) in zip(masked, request.headers.fields, strict=True) if new != old)
    if found:
        request.headers.fields = masked
    plain = request.path
    shown = path(plain)
    if shown != plain:
        request.path = shown
    return Hidden(found, (shown, plain) if shown != plain else None)


def show(request: http.Request, hidden: Hidden) -> http.Request:
    """`request` itself, with what was hidden in it; what somebody has changed meanwhile stays as it is."""
    if hidden.headers:
        plain = {(name, mask): old for name, mask, old in hidden.headers}
        request.headers.fields = tuple((name, plain.get((name, value), value)) for name, value in request.headers.fields)
    if hidden.path and request.path == hidden.path[0]:
        request.path = hidden.path[1]
    return request


def without_masks(request: http.Request) -> None:
    """Take the masks out of `request`, in place: of a saved one nobody knows what they stood for."""
    mask = MASK.encode()
    request.headers.fields = tuple((name, value) for name, value in request.headers.fields if not value.endswith(mask))
    bare, mark, query = request.path.partition("?")
    request.path = bare + mark + "&".join(pair for pair in query.split("&") if not pair.endswith(f"={MASK}"))


def headers(fields: Fields) -> Fields:
    """Headers as they may be kept; the very same when there is nothing to hide."""
    if not any(name.lower() in _HEADERS or name.lower() == _PROTOCOLS for name, _ in fields):
        return fields
    return tuple((name, _value(name.lower(), value)) for name, value in fields)


def _value(name: bytes, value: bytes) -> bytes:
    mask = MASK.encode()
    if name in _HEADERS:
        scheme = _SCHEME.match(value)
        return (scheme[1] if scheme else b"") + mask
    return _IN_PROTOCOL.sub(rb"\g<1>" + mask, value) if name == _PROTOCOLS else value


def path(path: str) -> str:
    """A path as it may be kept."""
    bare, mark, query = path.partition("?")
    if not query:
        return path
    return bare + mark + "&".join(f"{pair.partition('=')[0]}={MASK}" if _is_key(pair) else pair for pair in query.split("&"))


def _is_key(pair: str) -> bool:
    name, equals, value = pair.partition("=")
    return bool(equals and value) and unquote_plus(name).lower() in _IN_QUERY
