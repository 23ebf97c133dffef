"""Translation of an OpenAI request into Azure's: path, query, headers, and the model in the body. No I/O and no flows."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_plus

from azure_openai_proxy.errors import BadRequest
from azure_openai_proxy.formats import json_edit
from azure_openai_proxy.formats.json_edit import Span

from . import realtime, request_syntax, stream_usage, upload_rewriting
from .endpoints import NEWEST_GA, Form

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy import http

    from azure_openai_proxy.formats.multipart import Rewriter

    from .backend import Backend, Base
    from .credentials import Credential
    from .large_bodies import LargeBody
    from .operation import Call

__all__ = ["AzureRequest", "ClientRequest", "Query", "Target", "body", "form", "headers", "path", "translate"]

# Headers of this connection (RFC 9110 7.6.1), and the SDKs' headers for OpenAI accounts, which Azure refuses or ignores.
_NOT_FOR_AZURE = frozenset(
    b"connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade "
    b"openai-organization openai-project openai-beta authorization api-key cookie x-session-affinity".split()
)
# Where no WebSocket is opened, Azure needs no subprotocols, and one of them may be the client's key.
_NOT_FOR_AZURE_ORDINARILY = _NOT_FOR_AZURE | {b"sec-websocket-protocol"}
_ROUTER = "auto"
_ORDINARY = frozenset({"", "keep-alive", "close"})
_EMPTY = re.compile(rb"\{[ \t\r\n]*+\}")
# Dates with or without a suffix, v1, preview and latest. Azure refuses unknown versions. The proxy refuses all other text.
_API_VERSION = re.compile(r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}(?:-[a-z]{1,16})?|v1|preview|latest)?", re.IGNORECASE)


class ClientRequest(NamedTuple):
    """A request as the client sent it. It is kept complete for a retry on another backend."""

    headers: http.Headers
    query: Query
    content: bytes
    large: LargeBody | None = None  # the scanned `content`, if it is large
    more: bool = False  # `content` is only the beginning of the body; the rest is streamed, so the request cannot be retried


class Query(NamedTuple):
    """A client's query, without the parameters that the proxy sets. `rest` is kept byte for byte."""

    rest: str
    api_version: str = ""  # the client's own, which may be outdated
    api_key: str = ""  # removed: a URL should not contain a secret

    @classmethod
    def read(cls, text: str) -> Query:
        if not text:
            return _NO_QUERY
        rest, taken = [], {"api-version": "", "api-key": ""}
        for pair in filter(None, text.split("&")):
            name, _, value = pair.partition("=")
            if (name := unquote_plus(name).lower()) in taken:
                taken[name] = unquote_plus(value)
            else:
                rest.append(pair)
        return cls("&".join(rest), taken["api-version"], taken["api-key"])

    def check(self) -> None:
        """Validate the client's api-version, because it may be sent in Azure's query.

        Raises:
            BadRequest: it is neither a date nor one of Azure's names.
        """
        if self.api_version and not _API_VERSION.fullmatch(self.api_version):
            raise BadRequest("`api-version` must be YYYY-MM-DD, YYYY-MM-DD-preview, v1 or preview, as in 2024-10-21.", param="api-version")

    def with_model(self, deployment: str | None, name: str = "") -> str:
        """Return the rest with the deployment as the value of its `model` or `deployment`, and with that parameter renamed to `name` if
        given.
        """
        return self.rest if deployment is None else self._renamed(lambda _: deployment, name)

    def with_models(self, deployment: Callable[[str], str]) -> str:
        """Return the rest with each value of `model` and `deployment` mapped."""
        return self._renamed(deployment) if self.models else self.rest

    @property
    def models(self) -> list[str]:
        """The values of `model` and `deployment`."""
        pairs = (pair.partition("=") for pair in self.rest.split("&"))
        return [unquote_plus(value) for name, _, value in pairs if unquote_plus(name).lower() in _NAMES_MODEL]

    def _renamed(self, deployment: Callable[[str], str], name: str = "") -> str:
        pairs = (pair.partition("=") for pair in self.rest.split("&"))
        return "&".join(
            f"{name or unquote_plus(old).lower()}={quote(deployment(unquote_plus(value)), errors='surrogateescape')}"
            if unquote_plus(old).lower() in _NAMES_MODEL
            else f"{old}{sep}{value}"
            for old, sep, value in pairs
        )


_NO_QUERY = Query("")
_NAMES_MODEL = ("model", "deployment")


class Target(NamedTuple):
    """Where one attempt of a request goes."""

    backend: Backend
    deployment: str | None  # for the model that the request names; None if it names none
    form: Form

    @classmethod
    def of(cls, call: Call, backend: Backend, deployment: str | None, client_version: str = "") -> Target:
        """`client_version`: the api-version in the client's query."""
        return cls(backend, deployment, form(call, deployment, backend, client_version))

    @property
    def in_path(self) -> bool:
        """Whether the path names the deployment."""
        return "{deployment}" in self.form.path


class AzureRequest(NamedTuple):
    """A request for Azure."""

    base: Base
    path: str
    headers: http.Headers
    content: bytes
    deployment: str | None
    rewriter: Rewriter | None = None  # for a body that is streamed
    growth: int | None = 0  # change of the body's length in bytes; None: not known in advance
    adds_usage: bool = False  # the usage of the stream is requested, which the client did not do

    @property
    def stream(self) -> bool | Callable[[bytes], list[bytes]]:
        """Return the value for mitmproxy's `request.stream`: a function of each chunk of the body; b"" is the end."""
        rewriter = self.rewriter
        if not rewriter:
            return True
        return lambda data: [out] if (out := rewriter.feed(data) if data else rewriter.end()) else []


def translate(
    call: Call,
    client_request: ClientRequest,
    target: Target,
    deployment: Callable[[str], str],
    credential: Credential,
    *,
    batch_lines: int = 0,
    add_usage: bool = False,
) -> AzureRequest:
    """Translate a request for `target`. `deployment` maps the names of models in the body.

    `batch_lines`: the maximum length in bytes of lines in a batch file whose models are mapped too; 0 for none. `add_usage`: request the
    usage of a stream.
    """
    backend, name = target.backend, target.deployment
    rewriter = None
    if not json_edit.is_object(client_request.content):
        rewriter = upload_rewriting.rewriter(
            call,
            client_request.headers,
            deployment,
            in_path=target.in_path,
            batch_lines=batch_lines,
            streamed=client_request.more,
        )
    usage = stream_usage.addition(client_request.content, client_request.large) if add_usage else None
    query = client_request.query
    if call.endpoint.in_query_too:
        query = query._replace(rest=query.with_models(deployment))
    return AzureRequest(
        backend.base,
        path(call, target, query),
        headers(client_request.headers, credential, backend.base.netloc, websocket=call.method == "WS"),
        b"" if client_request.more else body(call, deployment, target, client_request, rewriter, usage),
        name,
        rewriter if client_request.more else None,
        _growth(call.model, name) if rewriter else 0,
        usage is not None,
    )


def _growth(model: str | None, name: str | None) -> int | None:
    return None if model is None or name is None else len(name.encode()) - len(model.encode())


def form(call: Call, deployment: str | None, backend: Backend, client_version: str = "") -> Form:
    """Return the Azure API for this call. A client that uses one of Azure's own forms keeps it."""
    match call.native:
        case "v1":
            kept = client_version in ("v1", "preview") and not call.endpoint.unversioned
            return Form("/openai/v1{path}", client_version if kept else "")
        case "dated":
            version = client_version or (backend.apiversion if backend.apiversion[0].isdigit() else NEWEST_GA)
            return Form("/openai/deployments/{deployment}{path}" if call.deployed else "/openai{path}", version)
    # The model router without a deployment: only the v1 API has no deployment in the path.
    dated = backend.apiversion[0].isdigit()
    version = "v1" if dated and deployment == _ROUTER == call.model and call.endpoint.v1 else backend.apiversion
    return call.endpoint.form(version, model=deployment is not None, beta=call.beta)


def path(call: Call, target: Target, query: Query) -> str:
    """Return path and query for Azure."""
    (template, version), deployment = target.form, target.deployment
    below = _filled(template, quote(deployment or "", safe=""), call.path, **call.values)
    rest = query.with_model(deployment, "deployment" if call.beta else "") if call.endpoint.model_in == "query" else query.rest
    joined = "&".join(filter(None, [rest, f"api-version={quote(version)}" if version else ""]))
    return request_syntax.encoded(target.backend.base.prefix + below, joined)


def _filled(template: str, deployment: str, path: str, **values: str) -> str:
    if not values:  # as for most requests; `format` takes three times as long
        return template.replace("{deployment}", deployment).replace("{path}", path)
    return template.replace("{path}", "\0").format(deployment=deployment, **values).replace("\0", path)


def headers(client: http.Headers, credential: Credential, host: str, *, websocket: bool = False) -> http.Headers:
    """Return the headers for Azure: the client's in their order, without those that Azure must not receive, and with the credential."""
    dropped = _NOT_FOR_AZURE if websocket else _NOT_FOR_AZURE_ORDINARILY
    if (connection := client.get("connection", "").lower()) not in _ORDINARY:
        dropped |= {name.strip().encode(errors="surrogateescape") for name in connection.split(",")} - {b"host"}  # Azure needs one
    kept = []
    for field in client.fields:
        if (name := field[0].lower()) in dropped:
            continue
        if name == b"host":
            kept.append((field[0], host.encode()))
            dropped |= {name}  # an HTTP/2 client can send more than one
        else:
            kept.append(field)
    kept.append((credential.header.encode(), credential.value.encode(errors="surrogateescape")))
    result = type(client)(tuple(kept))
    if websocket:
        result["connection"], result["upgrade"] = "Upgrade", "websocket"
        if "sec-websocket-protocol" in result:
            result.set_all("sec-websocket-protocol", [", ".join(offered)] if (offered := realtime.offered(client)) else [])
    return result


def body(
    call: Call,
    deployment: Callable[[str], str],
    target: Target,
    client_request: ClientRequest,
    rewriter: Rewriter | None = None,
    usage: Span | None = None,
) -> bytes:
    """Return the body for Azure. For v1 it has the deployment as its model; in the dated API the path has the deployment.

    `usage`: the edit that requests the usage of a stream.
    """
    content = client_request.content
    if rewriter:
        return rewriter.feed(content) + rewriter.end()
    more = [usage] if usage else []
    is_form = client_request.headers.get("content-type", "").lower().startswith("multipart/") and not json_edit.is_object(content)
    if call.model is None or target.in_path or call.endpoint.model_in == "query" or is_form:
        return json_edit.edited(content, more)
    if call.endpoint.model_in == "path":
        return _with_model(content, deployment(call.model), client_request.large, more)
    places = call.endpoint.models
    found = client_request.large.strings(*places) if client_request.large else json_edit.json_strings(content, places)
    return json_edit.renamed(content, found, deployment, [stream_usage.beside(usage, found[0])] if usage and found else more)


def _with_model(content: bytes, deployment: str, large: LargeBody | None, more: Sequence[Span]) -> bytes:
    """Set the deployment as the only `model` of a JSON object; the client has the model in its path. `more` are other edits."""
    if large:
        return _with_model_in_large(large, json.dumps(deployment), more)
    if not json_edit.is_object(content):
        return content  # Azure reports the error
    content = json_edit.edited(content, more)
    head, brace, members = content.partition(b"{")
    if b'"model"' in content or b"\\u" in content:
        try:
            found = json.loads(content.removeprefix(json_edit.BOM))
        except (ValueError, RecursionError):
            return content  # Azure's error message is better
        if "model" in found:  # SDKs also send it in the body; parsers use the last of two
            return json.dumps(found | {"model": deployment}).encode()
    comma = b"" if members.lstrip().startswith(b"}") else b","
    return head + brace + b'"model":' + json.dumps(deployment).encode() + comma + members


def _with_model_in_large(large: LargeBody, model: str, more: Sequence[Span]) -> bytes:
    content, outline = large.content, large.outline
    if not outline or not outline.is_object:
        return content
    if member := outline.get("model"):
        return json_edit.edited(content, [Span(member.value, member.end, model), *more])
    start = outline.root + 1
    comma = "" if _EMPTY.match(content, outline.root) else ","
    return json_edit.edited(content, [Span(start, start, f'"model":{model}{comma}'), *more])
