"""Masking of keys in flows. From the start a flow contains a mask instead of the key; the key is inserted only when the request is sent.

Every reader of a flow (mitmweb, the console, a content view, a saved file, a HAR, another addon) sees `[key]`. The hidden keys of a request
are kept as a separate value, which can be inserted into the request or a copy of it.
"""

from __future__ import annotations

import base64
import html
import json
import re
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, quote_plus, unquote_plus, unquote_to_bytes

from azure_openai_proxy.formats import json_edit

from .credentials import MASK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mitmproxy import http

__all__ = [
    "Fields",
    "Hidden",
    "hide",
    "is_key_header",
    "mask",
    "mask_fields",
    "mask_path",
    "mask_response_head",
    "minted",
    "path",
    "repeats",
    "show",
    "with_secrets",
    "without_masks",
]

_MASK = MASK.encode()
_HEADERS = frozenset(b"api-key authorization proxy-authorization x-api-key ocp-apim-subscription-key".split())
_PROTOCOLS = b"sec-websocket-protocol"
_WITH_KEYS = _HEADERS | {_PROTOCOLS}
_READ = frozenset(b"connection content-length content-type expect host te transfer-encoding upgrade".split())
"""Headers that mitmproxy reads from the flow."""
_SHORTEST_REPEATED = 16
"""Length of a key that is also masked in other headers. Shorter ones may be words that occur there by chance."""
_IN_PROTOCOL = re.compile(rb"(openai-insecure-api-key\.)[^,\s]+")
_SCHEME = re.compile(rb"(?i)^((?:bearer|basic)[ \t]+).*$", re.DOTALL)
_IN_QUERY = frozenset({"api-key", "api_key", "key", "subscription-key", "token"})

_CREATED_SECRETS = ("value", "client_secret", "client_secret.value", "session.client_secret.value", "signing_secret", "api_key.value")

type Fields = tuple[tuple[bytes, bytes], ...]


class Hidden(NamedTuple):
    """The masked parts of one request. Kept in memory only, and no longer than the request."""

    headers: tuple[tuple[bytes, bytes, bytes], ...] = ()  # name, masked value, original value
    path: tuple[str, str] | None = None  # masked, original
    masked: Fields = ()  # all headers after the masking
    plain: Fields = ()  # and before it
    keys: tuple[bytes, ...] = ()  # in headers, without their schemes

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the keys in headers, without their schemes, and those in the query, unless they are as short as a word."""
        found = [key.decode("utf-8", "surrogateescape") for key in self.keys]
        if self.path:
            values = [unquote_plus(pair.partition("=")[2]) for pair in self.path[1].partition("?")[2].split("&") if _is_key(pair)]
            found += [value for value in values if len(value) >= _SHORTEST_IN_HEADERS]
        return tuple(found)

    def __repr__(self) -> str:
        return f"Hidden({len(self.headers) + bool(self.path)})"


_NOTHING_HIDDEN = Hidden()


def is_key_header(name: str) -> bool:
    """Return whether flows mask the value of this header, all of it or the part after its scheme."""
    return name.lower().encode("utf-8", "replace") in _HEADERS


def hide(request: http.Request) -> Hidden:
    """Mask every key in `request`, in place. Return the keys; existing masks are not included."""
    data = request.data
    plain = data.headers.fields
    masked, found, keys, long_keys = _masked(plain)
    hidden = _NOTHING_HIDDEN
    if found:
        data.headers.fields = masked
        hidden = Hidden(found, None, masked, plain, keys)
    repeated = bool(long_keys) and _repeats_key(data.path, long_keys)
    if repeated or b"?" in data.path:
        whole = request.path
        if (shown := _path_without(path(whole), long_keys) if repeated else path(whole)) != whole:
            request.path = shown
            hidden = hidden._replace(path=(shown, whole))
    return hidden


def show(request: http.Request, hidden: Hidden) -> http.Request:
    """Insert the hidden keys into `request`, in place, and return it. Parts that were changed meanwhile stay."""
    if hidden.headers:
        headers = request.data.headers
        headers.fields = hidden.plain if headers.fields is hidden.masked else _shown(headers.fields, hidden)
    if hidden.path and request.path == hidden.path[0]:
        request.path = hidden.path[1]
    return request


def with_secrets(request: http.Request, hidden: Hidden) -> http.Request:
    """Return a copy of the head with the hidden keys and without a body. `request` keeps its masks.

    mitmproxy sends bodies separately, and may keep the head as long as the connection is open.
    """
    twin = _copy(request)
    twin.data, headers = _copy(request.data), request.data.headers
    twin.data.headers, twin.data.content = type(headers)(headers.fields), None
    return show(twin, hidden)


def _copy[T: object](value: T) -> T:
    """As `copy.copy` for an object with a plain `__dict__`, in a fifth of the time."""
    twin = object.__new__(type(value))
    vars(twin).update(vars(value))
    return twin


def _shown(fields: Fields, hidden: Hidden) -> Fields:
    plain = {(name, mask): old for name, mask, old in hidden.headers}
    return tuple([(field[0], plain[field]) if field in plain else field for field in fields])


def without_masks(request: http.Request) -> None:
    """Remove masked keys from `request`, in place. For a saved request the keys are unknown."""
    mask = MASK.encode()
    request.headers.fields = tuple((name, value) for name, value in request.headers.fields if not value.endswith(mask))
    bare, mark, query = request.path.partition("?")
    request.path = bare + mark + "&".join(pair for pair in query.split("&") if not pair.endswith(f"={MASK}"))


def _masked(fields: Fields) -> tuple[Fields, tuple[tuple[bytes, bytes, bytes], ...], tuple[bytes, ...], list[bytes]]:
    """Return headers with masked keys, the same object if there are none; name, mask and original value of each masked header; the keys
    without their schemes; and those that are masked in other places too, the longest first.

    Whitespace around a name is ignored: such a request is refused, but its flow is kept.
    """
    names = [name.lower().strip() for name, _ in fields]
    if _WITH_KEYS.isdisjoint(names):
        return fields, (), (), []
    found: list[tuple[bytes, bytes, bytes]] = []
    masked = list(fields)

    def put(at: int, mask: bytes) -> None:
        name, value = masked[at]
        if mask != value:
            found.append((name, mask, value))
            masked[at] = name, mask

    for at, folded in enumerate(names):
        if folded in _WITH_KEYS:
            put(at, _value(folded, fields[at][1]))
    keys = tuple([old[len(mask) - len(_MASK) :] for _, mask, old in found if mask.endswith(_MASK)])
    long_keys = sorted([key for key in keys if len(key) >= _SHORTEST_REPEATED], key=len, reverse=True)
    if long_keys and any(key in b"\n".join([value for _, value in masked]) for key in long_keys):
        for at, folded in enumerate(names):  # the client repeats its key in a header of its own
            if folded not in _WITH_KEYS and folded not in _READ:
                mask = masked[at][1]
                for key in long_keys:
                    mask = mask.replace(key, _MASK)
                put(at, mask)
    return (tuple(masked), tuple(found), keys, long_keys) if found else (fields, (), (), [])


def mask_path(path: str, secrets: Iterable[str]) -> str:
    """Mask the parts of a path that contain one of the secrets, as it is or percent-encoded. Short ones may be words."""
    keys = [_bytes(secret) for secret in secrets if len(secret) >= _SHORTEST_REPEATED]
    return _path_without(path, keys) if _repeats_key(_bytes(path), keys) else path


def _repeats_key(path: bytes, keys: Iterable[bytes]) -> bool:
    """Whether a path or a query contains one of the keys, as it is or percent-encoded."""
    plain = unquote_to_bytes(path) if b"%" in path else path
    return any(key in plain for key in keys)


def _path_without(path: str, keys: Sequence[bytes]) -> str:
    """Mask each part of a path and its query that contains one of the keys; all of it if a key contains a delimiter."""
    parts = [MASK if _repeats_key(_bytes(part), keys) else part for part in re.split("([/?&=])", path)]
    masked = "".join(parts)
    return f"/{MASK}" if _repeats_key(_bytes(masked), keys) else masked


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _value(name: bytes, value: bytes) -> bytes:
    if name in _HEADERS:
        scheme = _SCHEME.match(value)
        return (scheme[1] if scheme else b"") + _MASK
    return _IN_PROTOCOL.sub(rb"\g<1>" + _MASK, value)


def path(path: str) -> str:
    """Return a path with masked keys."""
    bare, mark, query = path.partition("?")
    return bare + mark + "&".join(f"{pair.partition('=')[0]}={MASK}" if _is_key(pair) else pair for pair in query.split("&"))


def _is_key(pair: str) -> bool:
    name, equals, value = pair.partition("=")
    return bool(equals and value) and unquote_plus(name).lower() in _IN_QUERY


def minted(answer: bytes) -> bytes:
    """Mask the secrets in a response that creates some for the client, such as `client_secret`. Return b"" for invalid JSON."""
    try:
        json.loads(answer)
    except (ValueError, RecursionError):
        return b""
    return json_edit.rename(answer, _CREATED_SECRETS, lambda _: MASK)


# Secrets in responses

_SHORTEST = 4
_SHORTEST_IN_HEADERS = 8  # clients without a key send `none`, `test` or `dummy`, which may occur in other headers
_SHORTEST_ENCODED = 12  # the base64 of a shorter one has too few characters that do not depend on its neighbours
_LONGEST_REMEMBERED = 512
"""Characters of the secrets of one request whose forms are remembered for many clients."""
_FRAMING = frozenset(b"connection content-encoding content-length content-type date transfer-encoding upgrade".split())


def mask(text: str, secrets: Sequence[str]) -> str:
    """Replace every secret in `text` by `[key]`: plain, percent-encoded, in base64, or escaped for JSON or HTML."""
    pattern = _pattern(tuple(secrets))
    return pattern.sub(MASK, text) if pattern else text


def repeats(text: str, secrets: tuple[str, ...]) -> bool:
    """Return whether `mask` would change `text`. For a short text this takes a fifth of the time."""
    for form in _all_forms(secrets):  # noqa: SIM110 - as in `_repeats`
        if form in text:
            return True
    return False


def mask_response_head(response: http.Response, secrets: Sequence[str]) -> None:
    """Mask the secrets in a response's reason and headers, in place. Some gateways in front of Azure repeat the key there."""
    data = response.data
    if _repeats(b"\n".join(chain((data.reason,), *data.headers.fields)), secrets):
        data.reason = _mask_bytes(data.reason, secrets)
        data.headers.fields = _masked_fields(data.headers.fields, secrets)


def mask_fields(fields: Fields, secrets: Sequence[str]) -> Fields:
    """Mask the secrets in headers or trailers; return the same object if there are none."""
    return _masked_fields(fields, secrets) if _repeats(b"\n".join(chain(*fields)), secrets) else fields


def _repeats(text: bytes, secrets: Sequence[str]) -> bool:
    for form in _forms_in_headers(tuple(secrets)):  # noqa: SIM110 - any() takes twice the time, and this runs for every response
        if form in text:
            return True
    return False


def _masked_fields(fields: Fields, secrets: Sequence[str]) -> Fields:
    return tuple(
        [
            (name, value) if name.lower() in _FRAMING else (_mask_bytes(name, secrets).translate(None, b"[]"), _mask_bytes(value, secrets))
            for name, value in fields
        ]
    )


def _mask_bytes(value: bytes, secrets: Sequence[str]) -> bytes:
    long = [secret for secret in secrets if len(secret) >= _SHORTEST_IN_HEADERS]
    return mask(value.decode("utf-8", "surrogateescape"), long).encode("utf-8", "surrogateescape")


def _remembered[T](make: Callable[[tuple[str, ...]], T]) -> Callable[[tuple[str, ...]], T]:
    """Remember the results for the secrets of many clients, and for fewer ones that are long."""
    short, long = lru_cache(maxsize=2048)(make), lru_cache(maxsize=64)(make)
    return lambda secrets: (short if sum(map(len, secrets)) <= _LONGEST_REMEMBERED else long)(secrets)


@_remembered
def _forms_in_headers(secrets: tuple[str, ...]) -> tuple[bytes, ...]:
    long = [secret for secret in secrets if len(secret) >= _SHORTEST_IN_HEADERS]
    return tuple(form.encode("utf-8", "surrogateescape") for form in _forms(long))


@_remembered
def _all_forms(secrets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_forms(secrets))


@_remembered
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    # The longest first: a shorter form that is the prefix of a longer one would leave the rest of it.
    forms = sorted(_forms(secrets), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, forms))) if forms else None


def _forms(secrets: Sequence[str]) -> set[str]:
    """Return every form of each secret in which an upstream may repeat it."""
    forms: set[str] = set()
    for secret in secrets:
        if len(secret) >= _SHORTEST:
            plain = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], html.escape(secret)}
            plain |= {form.replace("/", "\\/") for form in plain}
            encoded = {quoted(secret, safe, errors="replace") for quoted in (quote, quote_plus) for safe in ("", "/")}
            forms |= plain | encoded | {_lower_hex(form) for form in encoded}
        if len(secret) >= _SHORTEST_ENCODED:
            forms |= _base64(secret.encode("utf-8", "replace"))
    return forms


def _base64(secret: bytes) -> set[str]:
    """Return the base64 forms of a secret at every offset in a longer text, without the characters that it shares with its neighbours."""
    forms = set()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode()
        shared = (before * 8 + 5) // 6
        whole = encoded[shared : (before + len(secret)) * 8 // 6]
        forms |= {whole, whole.replace("+", "-").replace("/", "_")}
    return forms


def _lower_hex(text: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), text)
