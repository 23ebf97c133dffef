"""Where keys are kept: not in flows. A flow shows a mask from its first moment; the key is put in its place on the wire alone.

Whoever looks at a flow (mitmweb, the console, a content view, a saved file, a HAR, another addon) sees what is hidden here as
`[key]`. What is hidden of one request is a value, to be put back into that request or a copy of it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus

from . import bodies
from .credentials import MASK

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["Fields", "Hidden", "headers", "hide", "is_key_header", "minted", "path", "show", "shown", "without_masks"]

_HEADERS = frozenset(b"api-key authorization proxy-authorization x-api-key ocp-apim-subscription-key".split())
_PROTOCOLS = b"sec-websocket-protocol"
_WITH_KEYS = _HEADERS | {_PROTOCOLS}
_IN_PROTOCOL = re.compile(rb"(openai-insecure-api-key\.)[^,\s]+")
_SCHEME = re.compile(rb"(?i)^((?:bearer|basic)[ \t]+).*$", re.DOTALL)
_IN_QUERY = frozenset({"api-key", "api_key", "key", "subscription-key", "token"})

_MINTED = ("value", "client_secret", "client_secret.value", "session.client_secret.value", "signing_secret", "api_key.value")

type Fields = tuple[tuple[bytes, bytes], ...]


class Hidden(NamedTuple):
    """What a request's mask stands for. Only in memory, and as long as its request."""

    headers: tuple[tuple[bytes, bytes, bytes], ...] = ()  # name, mask, what it stands for
    path: tuple[str, str] | None = None  # masked, plain

    def __repr__(self) -> str:
        return f"Hidden({len(self.headers) + bool(self.path)})"


def is_key_header(name: str) -> bool:
    """Whether the value of a header with this name is masked in flows, as a whole or behind its scheme."""
    return name.lower().encode("utf-8", "replace") in _HEADERS


def hide(request: http.Request) -> Hidden:
    """Mask every key in `request`, in place. What is masked already stands for nothing new."""
    plain = request.headers.fields
    masked = headers(plain)
    found: tuple[tuple[bytes, bytes, bytes], ...] = ()
    if masked is not plain:
        found = tuple((name, new, old) for (name, new), (_, old) in zip(masked, plain, strict=True) if new is not old)
        request.headers.fields = masked
    if b"?" not in request.data.path:
        return Hidden(found)
    whole = request.path
    shown = path(whole)
    if shown != whole:
        request.path = shown
    return Hidden(found, (shown, whole) if shown != whole else None)


def show(request: http.Request, hidden: Hidden) -> http.Request:
    """`request` itself, with what was hidden in it; what somebody has changed meanwhile stays as it is."""
    if hidden.headers:
        request.headers.fields = _shown(request.headers.fields, hidden)
    if hidden.path and request.path == hidden.path[0]:
        request.path = hidden.path[1]
    return request


def shown(request: http.Request, hidden: Hidden) -> http.Request:
    """The same as another request; `request` keeps its masks."""
    twin, data = object.__new__(type(request)), object.__new__(type(request.data))
    vars(twin).update(vars(request), data=data)
    vars(data).update(vars(request.data), headers=type(request.headers)(request.headers.fields))
    return show(twin, hidden)


def _shown(fields: Fields, hidden: Hidden) -> Fields:
    plain = {(name, mask): old for name, mask, old in hidden.headers}
    return tuple([(field[0], plain[field]) if field in plain else field for field in fields])


def without_masks(request: http.Request) -> None:
    """Take the masks out of `request`, in place: of a saved one nobody knows what they stood for."""
    mask = MASK.encode()
    request.headers.fields = tuple((name, value) for name, value in request.headers.fields if not value.endswith(mask))
    bare, mark, query = request.path.partition("?")
    request.path = bare + mark + "&".join(pair for pair in query.split("&") if not pair.endswith(f"={MASK}"))


def headers(fields: Fields) -> Fields:
    """Headers as they may be kept; the very same when there is nothing to hide."""
    found = [at for at, (name, _) in enumerate(fields) if name.lower() in _WITH_KEYS]
    if not found:
        return fields
    masked = list(fields)
    changed = False
    for at in found:
        name, value = fields[at]
        if (mask := _value(name.lower(), value)) != value:
            masked[at] = (name, mask)
            changed = True
    return tuple(masked) if changed else fields


def _value(name: bytes, value: bytes) -> bytes:
    mask = MASK.encode()
    if name in _HEADERS:
        scheme = _SCHEME.match(value)
        return (scheme[1] if scheme else b"") + mask
    return _IN_PROTOCOL.sub(rb"\g<1>" + mask, value) if name == _PROTOCOLS else value


def path(path: str) -> str:
    """A path as it may be kept."""
    bare, mark, query = path.partition("?")
    return bare + mark + "&".join(f"{pair.partition('=')[0]}={MASK}" if _is_key(pair) else pair for pair in query.split("&"))


def _is_key(pair: str) -> bool:
    name, equals, value = pair.partition("=")
    return bool(equals and value) and unquote_plus(name).lower() in _IN_QUERY


def minted(answer: bytes) -> bytes:
    """An answer with a secret that was made for the client, as it may be kept; nothing of one that cannot be read."""
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return b""
    return bodies.rename(answer, _MINTED, lambda _: MASK)
