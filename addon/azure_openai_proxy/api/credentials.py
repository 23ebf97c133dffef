"""Whose key goes to Azure, and how: the configured one, or else the client's own."""

from __future__ import annotations

import hashlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_plus

from azure_openai_proxy.errors import NoKey

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["MASK", "Credential", "choose", "scope", "seen", "without_key"]

MASK = "[key]"
"""Stands where a key was, once it is no longer needed."""

# What can be a key: visible ASCII. Anything else would end the header or start another one.
_KEY = re.compile(r"[!-~]+")
# Tokens that Azure takes as a Bearer alone: Entra ID's (a JWT), and those that a realtime session hands to a browser.
_BEARERS = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*|ek_[\w-]+")


class Credential(NamedTuple):
    """One header for Azure. The value is a secret."""

    header: str
    value: str

    def __repr__(self) -> str:
        return f"Credential({self.header})"


def choose(token: str, headers: http.Headers, query: str = "", *, entra: str | None = None) -> Credential:
    """The credential for Azure. `entra` is the proxy's own token of Entra ID: it beats everything.

    A configured `token` beats what the client sent; the client's `api-key` beats its Bearer, and its Bearer an `api-key`
    in the query. A Bearer that is an Entra token (a JWT) stays a Bearer: Azure takes those only there.

    Raises:
        NoKey: neither has one.
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
        raise NoKey("Incorrect API key provided: it has spaces, control characters or letters that no key has.")
    return Credential("api-key", key)


_SALT = os.urandom(16)


def scope(headers: http.Headers, query: str = "") -> bytes:
    """A digest of the client's own key, which tells clients apart and the key to nobody; b"" without one."""
    try:
        value = choose("", headers, query).value
    except NoKey:
        return b""
    return hashlib.blake2b(value.encode(errors="surrogateescape"), digest_size=16, key=_SALT).digest()


def seen(headers: http.Headers, query: str = "") -> tuple[str, ...]:
    """Every secret the client sent: none may be repeated in an answer or a log."""
    return tuple(filter(None, (headers.get("api-key", "").strip(), _bearer(headers), query)))


def without_key(path: str) -> str:
    """`path` with a mask over a key in its query."""
    bare, mark, query = path.partition("?")
    pairs = (f"api-key={MASK}" if unquote_plus(pair.partition("=")[0]).lower() == "api-key" else pair for pair in query.split("&"))
    return bare + mark + "&".join(pairs)


def _bearer(headers: http.Headers) -> str:
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
