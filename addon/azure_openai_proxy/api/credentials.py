"""The credential for requests to Azure: the configured key, or else the client's own."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus

from azure_openai_proxy.errors import NoKey

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["MASK", "Credential", "choose", "of_client", "scope", "seen", "without_key"]

MASK = "[key]"
"""Replaces a key in recorded requests, once the key is no longer needed."""

# Valid keys are visible ASCII. Other characters could end the header or start another one.
_KEY = re.compile(r"[!-~]+")
# Tokens that Azure accepts as a Bearer only: JWTs of Entra ID, and the client secrets of realtime sessions.
_BEARERS = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*|ek_[\w-]+")


class Credential(NamedTuple):
    """One authentication header for Azure. The value is a secret."""

    header: str
    value: str

    def __repr__(self) -> str:
        return f"Credential({self.header})"


def choose(token: str, headers: http.Headers, query: str = "", *, entra: str | None = None) -> Credential:
    """Choose the credential for Azure.

    Precedence: `entra`, the proxy's own Entra ID token; `token`, the configured key; the client's `api-key` header; its Bearer token;
    `query`, an `api-key` in the query. A Bearer token that is a JWT stays a Bearer token, because Azure accepts those only there.

    Raises:
        NoKey: there is no key, or it has invalid characters.
    """
    if entra:
        return Credential("authorization", f"Bearer {entra}")
    own = token or headers.get("api-key", "").strip()
    bearer = _bearer(headers)
    if not own and _BEARERS.fullmatch(bearer):
        return Credential("authorization", f"Bearer {bearer}")
    key = own or bearer or query
    if not key:
        raise NoKey(
            "You didn't provide an API key. Send Azure's key as the API key of your client (Authorization: Bearer ...), "
            "or start the proxy with AZURE_OPENAI_TOKEN set."
        )
    if not _KEY.fullmatch(key):
        raise NoKey("Incorrect API key provided: it contains spaces, control characters or non-ASCII characters.")
    return Credential("api-key", key)


_SALT = os.urandom(16)


def scope(headers: http.Headers, query: str = "") -> bytes:
    """Return a salted digest of the client's own key, to distinguish clients without storing their keys; b"" without a key."""
    try:
        value = choose("", headers, query).value
    except NoKey:
        return b""
    return hashlib.blake2b(value.encode(errors="surrogateescape"), digest_size=16, key=_SALT).digest()


def seen(headers: http.Headers, query: str = "") -> tuple[str, ...]:
    """Return every secret that the client sent, for masking in responses and logs."""
    return tuple(filter(None, (headers.get("api-key", "").strip(), _bearer(headers), query)))


def of_client(headers: http.Headers, *, protocol_key: str = "", query: str = "") -> tuple[str, ...]:
    """Return the keys that a client presents for itself: `api-key`, Bearer, and for a WebSocket its subprotocol and its query."""
    return tuple(dict.fromkeys(filter(None, (headers.get("api-key", "").strip(), _bearer(headers), protocol_key, query))))


def without_key(path: str) -> str:
    """Return `path` with the key in its query masked."""
    bare, mark, query = path.partition("?")
    pairs = (f"api-key={MASK}" if unquote_plus(pair.partition("=")[0]).lower() == "api-key" else pair for pair in query.split("&"))
    return bare + mark + "&".join(pairs)


def _bearer(headers: http.Headers) -> str:
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
