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
from urllib.parse import quote, quote_plus, unquote_plus

from azure_openai_proxy.formats import json_edit

from .credentials import MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mitmproxy import http

__all__ = [
    "Fields",
    "Hidden",
    "headers",
    "hide",
    "is_key_header",
    "mask",
    "mask_answer_head",
    "mask_fields",
    "minted",
    "path",
    "show",
    "with_secrets",
    "without_masks",
]

_HEADERS = frozenset(b"api-key authorization proxy-authorization x-api-key ocp-apim-subscription-key".split())
_PROTOCOLS = b"sec-websocket-protocol"
_WITH_KEYS = _HEADERS | {_PROTOCOLS}
_IN_PROTOCOL = re.compile(rb"(openai-insecure-api-key\.)[^,\s]+")
_SCHEME = re.compile(rb"(?i)^((?:bearer|basic)[ \t]+).*$", re.DOTALL)
_IN_QUERY = frozenset({"api-key", "api_key", "key", "subscription-key", "token"})

_CREATED_SECRETS = ("value", "client_secret", "client_secret.value", "session.client_secret.value", "signing_secret", "api_key.value")

type Fields = tuple[tuple[bytes, bytes], ...]


class Hidden(NamedTuple):
    """The masked parts of one request. Kept in memory only, and no longer than the request."""

    headers: tuple[tuple[bytes, bytes, bytes], ...] = ()  # name, masked value, original value
    path: tuple[str, str] | None = None  # masked, original

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the keys in headers, without their schemes."""
        mask = MASK.encode()
        return tuple(old[len(new) - len(mask) :].decode("utf-8", "surrogateescape") for _, new, old in self.headers if new.endswith(mask))

    def __repr__(self) -> str:
        return f"Hidden({len(self.headers) + bool(self.path)})"


def is_key_header(name: str) -> bool:
    """Return whether flows mask the value of this header, all of it or the part after its scheme."""
    return name.lower().encode("utf-8", "replace") in _HEADERS


def hide(request: http.Request) -> Hidden:
    """Mask every key in `request`, in place. Return the keys; existing masks are not included."""
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
    """Insert the hidden keys into `request`, in place, and return it. Parts that were changed meanwhile stay."""
    if hidden.headers:
        request.headers.fields = _shown(request.headers.fields, hidden)
    if hidden.path and request.path == hidden.path[0]:
        request.path = hidden.path[1]
    return request


def with_secrets(request: http.Request, hidden: Hidden) -> http.Request:
    """Return a copy of the head with the hidden keys and without a body. `request` keeps its masks.

    mitmproxy sends bodies separately, and may keep the head as long as the connection is open.
    """
    twin, data = object.__new__(type(request)), object.__new__(type(request.data))
    vars(twin).update(vars(request), data=data)
    vars(data).update(vars(request.data), headers=type(request.headers)(request.headers.fields), content=None)
    return show(twin, hidden)


def _shown(fields: Fields, hidden: Hidden) -> Fields:
    plain = {(name, mask): old for name, mask, old in hidden.headers}
    return tuple([(field[0], plain[field]) if field in plain else field for field in fields])


def without_masks(request: http.Request) -> None:
    """Remove masked keys from `request`, in place. For a saved request the keys are unknown."""
    mask = MASK.encode()
    request.headers.fields = tuple((name, value) for name, value in request.headers.fields if not value.endswith(mask))
    bare, mark, query = request.path.partition("?")
    request.path = bare + mark + "&".join(pair for pair in query.split("&") if not pair.endswith(f"={MASK}"))


def headers(fields: Fields) -> Fields:
    """Return headers with masked keys; the same object if there are none.

    Whitespace around a name is ignored: such a request is refused, but its flow is kept.
    """
    found = [at for at, (name, _) in enumerate(fields) if name.lower().strip() in _WITH_KEYS]
    if not found:
        return fields
    masked = list(fields)
    changed = False
    for at in found:
        name, value = fields[at]
        if (mask := _value(name.lower().strip(), value)) != value:
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
_FRAMING = frozenset(b"connection content-encoding content-length content-type date transfer-encoding upgrade".split())


def mask(text: str, secrets: Sequence[str]) -> str:
    """Replace every secret in `text` by `[key]`: plain, percent-encoded, in base64, or escaped for JSON or HTML."""
    pattern = _pattern(tuple(secrets))
    return pattern.sub(MASK, text) if pattern else text


def mask_answer_head(response: http.Response, secrets: Sequence[str]) -> None:
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


@lru_cache(maxsize=64)
def _forms_in_headers(secrets: tuple[str, ...]) -> tuple[bytes, ...]:
    long = [secret for secret in secrets if len(secret) >= _SHORTEST_IN_HEADERS]
    return tuple(form.encode("utf-8", "surrogateescape") for form in _forms(long))


@lru_cache(maxsize=64)
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
