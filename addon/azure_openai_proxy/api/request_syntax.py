"""The syntax of request lines and headers: the last check of a request before it is sent.

Paths, queries, keys, models, ids and header values come from clients, from saved flows and from manual edits. `check` rejects control
characters, spaces in the request line, paths outside the endpoint's prefix, and header names that are not tokens.
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
# A path without escapes, parameters and segments that begin with a dot. All servers read it in the same way.
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
    """Validate the request line and the headers of a request whose path must be below `prefix` and `below`.

    Raises:
        BadRequest: the request is not valid.
    """
    data = request.data
    check_line(request)
    if not data.path.startswith((prefix + below).encode()):
        raise BadRequest("The request's path would leave the endpoint.")
    if not _PLAIN_TARGET.fullmatch(data.path):
        if not _TARGET.fullmatch(data.path):
            raise BadRequest("The request's path contains invalid characters.")
        if fault := path_fault(data.path.partition(b"?")[0].decode()):
            raise BadRequest(fault)
    names, values = zip(*request.headers.fields, strict=True) if request.headers.fields else ((), ())
    if b"" in names or (names and not _TOKEN.fullmatch(b"".join(names))):
        raise BadRequest("The request has a header whose name contains invalid characters.")
    text = b"".join(values)
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise BadRequest("The request has a header whose value contains control characters.")


def check_line(request: http.Request) -> None:
    """Check that method, authority and path have no spaces, which an HTTP/2 client can send.

    Raises:
        BadRequest: in HTTP/1.1 they would form another request line.
    """
    data = request.data
    if not _TOKEN.fullmatch(data.method):
        raise BadRequest("The request's method contains invalid characters.")
    if not _WORD.fullmatch(data.authority):
        raise BadRequest("The request's authority contains spaces or control characters.")
    if not _WORD.fullmatch(data.path):
        raise BadRequest("The request's path contains spaces or control characters.")


def path_fault(path: str) -> str | None:
    """Return the fault of a client's path as a sentence, or None.

    A server or gateway may decode a path once more than the previous one, treat a backslash as a slash, and ignore text after a semicolon.
    `..` is found in each of these spellings. Escapes must be valid and contain UTF-8: some decoders read `%c0%ae` as a dot.
    """
    if _PLAIN_PATH.fullmatch(path):
        return None
    raw = path.encode("utf-8", "surrogateescape")
    if b"#" in raw or _BROKEN_ESCAPE.search(raw):
        return "The path contains a `#`, or a `%` without two hexadecimal digits: write them as %23 and %25."
    for _ in range(_DECODINGS):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return "The path contains an escape that is not UTF-8."
        if "\\" in text or any(unicodedata.category(character) == "Cc" for character in text):
            return "The path contains a backslash or a control character."
        if any(_is_dots(segment) for segment in _SEPARATORS.split(unicodedata.normalize("NFKC", text))):
            return "The path contains a segment of dots (`.` or `..`), which would refer to another path."
        decoded = unquote_to_bytes(raw)
        if decoded == raw:
            return None
        raw = decoded
    return "The path is percent-encoded too many times."


def _is_dots(segment: str) -> bool:
    name = segment.partition(";")[0].strip()
    return name != "" and not name.strip(". ")


def encoded(path: str, query: str) -> str:
    """Return path and query, escaped for a request line. Valid text is unchanged byte for byte."""
    target = f"{path}?{query}" if query else path
    if target.isascii() and _TARGET.fullmatch(target.encode()):
        return target
    path = quote(path, safe=_IN_PATH, errors="surrogateescape")
    return f"{path}?{quote(query, safe=_IN_QUERY, errors='surrogateescape')}" if query else path
