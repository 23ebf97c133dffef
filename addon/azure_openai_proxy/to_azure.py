"""OpenAI's request → Azure's: path, query, headers, and the one body member that must change. Values in, values out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_plus

from mitmproxy import http

if TYPE_CHECKING:
    from .backends import Backend
    from .calls import Call
    from .credentials import Credential

__all__ = ["Query", "body", "form", "headers", "path", "replace_model"]

# Azure's API versions are dates; these two name the API without a date.
_V1 = frozenset({"v1", "preview"})

# What belongs to this connection or to OpenAI's account: RFC 9110 7.6.1, and the SDKs' account headers, which Azure refuses or ignores.
_NOT_FOR_AZURE = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade "
    b"openai-organization openai-project openai-beta authorization api-key cookie".split()
)


class Query(NamedTuple):
    """A client's query, less what is not Azure's: `rest` is kept byte for byte."""

    rest: str
    api_key: str | None

    @classmethod
    def read(cls, text: str) -> Query:
        """Take the client's `api-version` (it may be stale) and `api-key` (a secret has no place in a URL) out of a query."""
        rest, api_key = [], None
        for pair in filter(None, text.split("&")):
            name, _, value = pair.partition("=")
            match unquote_plus(name).lower():
                case "api-version":
                    pass
                case "api-key":
                    api_key = unquote_plus(value) or None
                case _:
                    rest.append(pair)
        return cls("&".join(rest), api_key)


def form(call: Call, backend: Backend) -> str:
    """The Azure API that takes this call: "dated" where the configured version has it, else "v1"."""
    return "v1" if backend.apiversion in _V1 or call.endpoint.dated is None else "dated"


def path(call: Call, deployment: str, backend: Backend, query: str = "") -> str:
    """Path and query for Azure. `query` is what the client's own query leaves."""
    if form(call, backend) == "dated":
        assert call.endpoint.dated
        below = call.endpoint.dated.format(deployment=quote(deployment, safe=""))
        version = backend.apiversion
    else:
        below = call.endpoint.v1
        version = "preview" if backend.apiversion == "preview" else ""
    pairs = [query, f"api-version={version}" if version else ""]
    joined = "&".join(filter(None, pairs))
    return f"{backend.base.prefix}{below}{'?' if joined else ''}{joined}"


def headers(client: http.Headers, credential: Credential, host: str) -> http.Headers:
    """The headers for Azure: the client's in their order, less what is not Azure's business, with the key."""
    dropped = _NOT_FOR_AZURE | {name.strip().lower().encode() for name in client.get("connection", "").split(",")}
    kept = [(name, value) for name, value in client.fields if name.lower() not in dropped]
    result = http.Headers(kept)
    if "host" in result:
        result["host"] = host
    result[credential.header] = credential.value
    return result


def body(call: Call, deployment: str, backend: Backend, content: bytes) -> bytes:
    """The body for Azure: the dated API has the deployment in its path, v1 in `model`."""
    if call.endpoint.model_in != "body" or form(call, backend) == "dated" or deployment == call.model:
        return content
    return replace_model(content, deployment)


# A JSON document's strings and brackets, which is all it takes to know where its top level is.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


def replace_model(content: bytes, deployment: str) -> bytes:
    """`content`, a valid JSON object, with the string that is its top-level `model` replaced and not another byte changed.

    Of a repeated `model` the last counts, as JSON parsers have it.
    """
    span, depth = None, 0
    for token in _TOKEN.finditer(content):
        text = token.group()
        if text in b"{[":
            depth += 1
        elif text in b"}]":
            depth -= 1
        elif depth == 1 and (colon := _COLON.match(content, token.end())) and _is_model(text):
            span = _TOKEN.match(content, colon.end())
    if span is None:
        raise ValueError("no top-level model")
    return b"".join([content[: span.start()], json.dumps(deployment).encode(), content[span.end() :]])


def _is_model(key: bytes) -> bool:
    return key == b'"model"' or (b"\\" in key and json.loads(key) == "model")
