"""What may stand in a request line and in headers: the last check before a request leaves, whatever its parts were made of.

Paths, queries, keys, models, ids and header values come from clients, from saved flows and from a person's edit. `check` holds
for all of them: no control character, no space in the request line, no path that leaves the endpoint's prefix, no header name
that is not a token.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from azure_openai_proxy.errors import BadRequest

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["check", "check_line", "encoded", "path_fault"]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t"})
# A path without escapes, parameters and segments that begin with a dot: nothing in it can be read in two ways.
_PLAIN_PATH = re.compile(r"(?:/+(?![.])[A-Za-z0-9._~!$&'()*+,=:@-]+)*/*")
_PLAIN_TARGET = re.compile(rb"(?:/(?![.])[A-Za-z0-9._~!$&'()*+,=:@-]+)+(?:\?[!-\"$-~]*)?")
_TARGET = re.compile(rb"/[!-\"$-\[\]-~]*")
_WORD = re.compile(rb"[^\x00-\x20\x7f]*")
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_SEPARATORS = re.compile(r"[/\\]")
_IN_PATH = "/%:@!$&'()*+,;=~-._"
_IN_QUERY = "".join(map(chr, range(0x21, 0x7F))).translate({ord(character): None for character in '"#<>\\^`{|}'})
_DECODINGS = 4


def check(request: http.Request, prefix: str, below: str = "/openai/") -> None:
    """Verify the request line and the headers of a request whose path must lie below `prefix` and `below`.

    Raises:
        BadRequest: the request cannot be sent like this.
    """
    data = request.data
    check_line(request)
    if not data.path.startswith((prefix + below).encode()):
        raise BadRequest("The request's path would leave the endpoint.")
    if not _PLAIN_TARGET.fullmatch(data.path):
        if not _TARGET.fullmatch(data.path):
            raise BadRequest("The request's path has characters that no path has.")
        if fault := path_fault(data.path.partition(b"?")[0].decode()):
            raise BadRequest(fault)
    names, values = zip(*request.headers.fields, strict=True) if request.headers.fields else ((), ())
    if b"" in names or (names and not _TOKEN.fullmatch(b"".join(names))):
        raise BadRequest("The request has a header whose name has characters that no name has.")
    text = b"".join(values)
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise BadRequest("The request has a header whose value has control characters.")


def check_line(request: http.Request) -> None:
    """Verify that method, authority and path are one word each: an HTTP/2 client can send spaces in them.

    Raises:
        BadRequest: written as HTTP/1.1, they would be another request line.
    """
    data = request.data
    if not _TOKEN.fullmatch(data.method):
        raise BadRequest("The request's method has characters that no method has.")
    if not _WORD.fullmatch(data.authority):
        raise BadRequest("The request's authority has spaces or control characters.")
    if not _WORD.fullmatch(data.path):
        raise BadRequest("The request's path has spaces or control characters.")


def path_fault(path: str) -> str | None:
    """What is wrong with a client's path, in a sentence; None: nothing.

    A server or a front may decode a path once more than the last did, take a backslash for a slash, and drop what follows a
    semicolon: `..` is found in each of these spellings. Escapes must be valid and hold UTF-8: `%c0%ae` is a dot to some decoders.
    """
    if _PLAIN_PATH.fullmatch(path):
        return None
    raw = path.encode("utf-8", "surrogateescape")
    if b"#" in raw or _BROKEN_ESCAPE.search(raw):
        return "The path has a `#`, or a `%` that begins no escape: write them as %23 and %25."
    for _ in range(_DECODINGS):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return "The path has an escape that is not UTF-8."
        if "\\" in text or any(unicodedata.category(character) == "Cc" for character in text):
            return "The path has a backslash or a control character."
        if any(_is_dots(segment) for segment in _SEPARATORS.split(unicodedata.normalize("NFKC", text))):
            return "The path has a segment of dots (`.` or `..`), which would lead to another place."
        decoded = unquote_to_bytes(raw)
        if decoded == raw:
            return None
        raw = decoded
    return "The path is percent-encoded too many times."


def _is_dots(segment: str) -> bool:
    name = segment.partition(";")[0].strip()
    return name != "" and not name.strip(". ")


def encoded(path: str, query: str) -> str:
    """Path and query as they may stand in a request line; what is fine already stays byte for byte."""
    target = f"{path}?{query}" if query else path
    if target.isascii() and _TARGET.fullmatch(target.encode()):
        return target
    path = quote(path, safe=_IN_PATH, errors="surrogateescape")
    return f"{path}?{quote(query, safe=_IN_QUERY, errors='surrogateescape')}" if query else path
