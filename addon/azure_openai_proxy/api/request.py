"""OpenAI's request → Azure's: path, query, headers, and what names the model in the body. Values in, values out."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_plus

from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.formats import json_edit

from . import realtime, request_syntax, upload_rewriting
from .endpoints import NEWEST_GA, Form

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

    from azure_openai_proxy.formats.multipart import Rewriter

    from .backend import Backend, Base
    from .credentials import Credential
    from .large_bodies import LargeBody
    from .operation import Call

__all__ = ["Asked", "Query", "Sent", "body", "form", "headers", "path", "translate"]

# What belongs to this connection or to OpenAI's account: RFC 9110 7.6.1, and the SDKs' account headers, which Azure refuses or ignores.
_NOT_FOR_AZURE = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade "
    b"openai-organization openai-project openai-beta authorization api-key cookie".split()
)
_ORDINARY = frozenset({"", "keep-alive", "close"})
_EMPTY = re.compile(rb"\{[ \t\r\n]*+\}")
# Dates with or without a suffix, v1, preview and latest. Azure refuses a version that it does not know; other text is refused here.
_API_VERSION = re.compile(r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}(?:-[a-z]{1,16})?|v1|preview|latest)?", re.IGNORECASE)


class Asked(NamedTuple):
    """A request as the client sent it, kept whole: another backend may have to be asked."""

    headers: http.Headers
    query: Query
    content: bytes
    large: LargeBody | None = None  # what was found in `content`, if that is large
    more: bool = False  # `content` is only the beginning: the rest goes on as it comes, and the request cannot be sent again


class Query(NamedTuple):
    """A client's query, less what is not Azure's: `rest` is kept byte for byte."""

    rest: str
    api_version: str = ""  # the client's own: it may be stale
    api_key: str = ""  # a secret has no place in a URL

    @classmethod
    def read(cls, text: str) -> Query:
        rest, taken = [], {"api-version": "", "api-key": ""}
        for pair in filter(None, text.split("&")):
            name, _, value = pair.partition("=")
            if (name := unquote_plus(name).lower()) in taken:
                taken[name] = unquote_plus(value)
            else:
                rest.append(pair)
        return cls("&".join(rest), taken["api-version"], taken["api-key"])

    def check(self) -> None:
        """Refuse an api-version that is none: it would be written into Azure's query.

        Raises:
            BadRequest: it is neither a date nor a name that Azure has.
        """
        if not _API_VERSION.fullmatch(self.api_version):
            raise BadRequest("`api-version` must be YYYY-MM-DD, YYYY-MM-DD-preview, v1 or preview, as in 2024-10-21.", param="api-version")

    def with_model(self, deployment: str | None, name: str = "") -> str:
        """The rest, with the deployment in place of a model that it names; under another `name` if need be."""
        if deployment is None:
            return self.rest
        pairs = (pair.partition("=") for pair in self.rest.split("&"))
        return "&".join(
            f"{name or unquote_plus(old)}={quote(deployment)}" if unquote_plus(old) in ("model", "deployment") else f"{old}{sep}{value}"
            for old, sep, value in pairs
        )


class Sent(NamedTuple):
    """A request as Azure gets it."""

    base: Base
    path: str
    headers: http.Headers
    content: bytes
    deployment: str | None
    rewriter: Rewriter | None = None  # for a body that goes on as it comes
    growth: int | None = 0  # the bytes by which it makes the body longer; None: only its end will tell

    @property
    def stream(self) -> bool | Callable[[bytes], list[bytes]]:
        """As mitmproxy has it: what becomes of each piece of the body; b"" is its end."""
        rewriter = self.rewriter
        if not rewriter:
            return True
        return lambda data: [out] if (out := rewriter.feed(data) if data else rewriter.end()) else []


def translate(
    call: Call, asked: Asked, backend: Backend, deployment: Callable[[str], str], credential: Credential, *, batch_lines: int = 0
) -> Sent:
    """The request for `backend`. `deployment` maps a model's name.

    `batch_lines`: map the models in a batch's file too, in lines of so many bytes at most.
    """
    name = deployment(call.model) if call.model is not None else None
    rewriter = None
    if not json_edit.is_object(asked.content):
        rewriter = upload_rewriting.rewriter(call, asked.headers, deployment, in_path=_in_path(call, backend), batch_lines=batch_lines)
    return Sent(
        backend.base,
        path(call, name, backend, asked.query),
        headers(asked.headers, credential, backend.base.netloc, websocket=call.method == "WS"),
        b"" if asked.more else body(call, deployment, backend, asked, rewriter),
        name,
        rewriter if asked.more else None,
        _growth(call.model, name) if rewriter else 0,
    )


def _growth(model: str | None, name: str | None) -> int | None:
    return None if model is None or name is None else len(name.encode()) - len(model.encode())


def form(call: Call, deployment: str | None, backend: Backend, asked_version: str = "") -> Form:
    """The Azure API that takes this call. A client that speaks one of Azure's own forms keeps it."""
    match call.native:
        case "v1":
            kept = asked_version in ("v1", "preview") and not call.endpoint.unversioned
            return Form("/openai/v1{path}", asked_version if kept else "")
        case "dated":
            version = asked_version or (backend.apiversion if backend.apiversion[0].isdigit() else NEWEST_GA)
            return Form("/openai/deployments/{deployment}{path}" if call.deployed else "/openai{path}", version)
    return call.endpoint.form(backend.apiversion, model=deployment is not None, beta=call.beta)


def path(call: Call, deployment: str | None, backend: Backend, query: Query) -> str:
    """Path and query for Azure."""
    template, version = form(call, deployment, backend, query.api_version)
    below = template.replace("{path}", "\0").format(deployment=quote(deployment or "", safe=""), **call.values).replace("\0", call.path)
    rest = query.with_model(deployment, "deployment" if call.beta else "") if call.endpoint.model_in == "query" else query.rest
    joined = "&".join(filter(None, [rest, f"api-version={quote(version)}" if version else ""]))
    return request_syntax.encoded(backend.base.prefix + below, joined)


def headers(client: http.Headers, credential: Credential, host: str, *, websocket: bool = False) -> http.Headers:
    """The headers for Azure: the client's in their order, less what is not Azure's business, with the key."""
    dropped = _NOT_FOR_AZURE
    if (connection := client.get("connection", "").lower()) not in _ORDINARY:
        dropped |= {name.strip().encode(errors="surrogateescape") for name in connection.split(",")}
    kept = []
    for field in client.fields:
        if (name := field[0].lower()) in dropped:
            continue
        if name == b"host":
            kept.append((field[0], host.encode()))
            dropped |= {name}  # an HTTP/2 client can send several
        else:
            kept.append(field)
    kept.append((credential.header.encode(), credential.value.encode(errors="surrogateescape")))
    result = type(client)(kept)
    if websocket:
        result["connection"], result["upgrade"] = "Upgrade", "websocket"
        if "sec-websocket-protocol" in result:
            result.set_all("sec-websocket-protocol", [", ".join(offered)] if (offered := realtime.offered(client)) else [])
    return result


def body(call: Call, deployment: Callable[[str], str], backend: Backend, asked: Asked, rewriter: Rewriter | None = None) -> bytes:
    """The body for Azure: v1 has the deployment where OpenAI has the model, the dated API has it in the path."""
    content = asked.content
    if rewriter:
        return rewriter.feed(content) + rewriter.end()
    is_form = asked.headers.get("content-type", "").lower().startswith("multipart/") and not json_edit.is_object(content)
    if call.model is None or _in_path(call, backend) or call.endpoint.model_in == "query" or is_form:
        return content
    if call.endpoint.model_in == "path":
        return _with_model(content, deployment(call.model), asked.large)
    if asked.large:
        return json_edit.renamed(content, asked.large.strings(*call.endpoint.models), deployment)
    return json_edit.rename(content, call.endpoint.models, deployment)


def _in_path(call: Call, backend: Backend) -> bool:
    return "{deployment}" in form(call, call.model, backend).path


def _with_model(content: bytes, deployment: str, large: LargeBody | None) -> bytes:
    """A JSON object whose model is in the path, with the deployment as its only `model`."""
    if large:
        return _with_model_in_large(large, json.dumps(deployment).encode())
    if not json_edit.is_object(content):
        return content  # Azure says so
    head, brace, members = content.partition(b"{")
    if b'"model"' in content or b"\\u" in content:
        try:
            found = json.loads(content.removeprefix(json_edit.BOM))
        except (ValueError, RecursionError):
            return content  # Azure has the better message
        if "model" in found:  # SDKs send it in the body too; of two, parsers take the last
            return json.dumps(found | {"model": deployment}).encode()
    comma = b"" if members.lstrip().startswith(b"}") else b","
    return head + brace + b'"model":' + json.dumps(deployment).encode() + comma + members


def _with_model_in_large(large: LargeBody, model: bytes) -> bytes:
    content, outline = large.content, large.outline
    if not outline or not outline.is_object:
        return content
    if member := outline.get("model"):
        return b"".join([content[: member.value], model, content[member.end :]])
    start = outline.root + 1
    comma = b"" if _EMPTY.match(content, outline.root) else b","
    return b"".join([content[:start], b'"model":', model, comma, content[start:]])
