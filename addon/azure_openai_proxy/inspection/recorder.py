"""Records the comment and the metadata of OpenAI flows while they run, for mitmweb, the console and flow files."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.api import error_translation, redaction
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.formats import compression, quoting

from . import flow_metadata
from .body_diff import Splice
from .body_store import Shelf, Tap
from .flow_metadata import PREFIX, Facts, Packed, PackedBytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mitmproxy import http

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.record import CallRecord
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.routing.decisions import Attempt

__all__ = ["Recorder", "RequestFacts", "facts"]

FAILED = ":red_circle:"
CHANGED = ":wrench:"
_SPILLOVER = b"x-ms-spillover-"
_LONGEST_NAME = 100  # characters of a deployment's name in a comment


class RequestFacts(NamedTuple):
    """The facts about a request that the recorder needs."""

    call: Call | None = None
    deployment: str | None = None
    content: bytes | None = None  # the client's body; None if the request was not sent to Azure, or its body was streamed
    attempts: Sequence[Attempt] = ()
    secrets: tuple[str, ...] = ()


class Recorder:
    """Called from the addon's hooks. Its methods must neither fail nor delay a request."""

    def __init__(self) -> None:
        self.shelf: Shelf | None = None  # None: bodies are not stored
        self.watched = True  # a user interface shows flows before they end

    def keep(self, limit: int, *, watched: bool = True) -> None:
        """Set the limit of stored bodies, in bytes; 0 turns storing off. A new limit starts with an empty store."""
        self.watched = watched
        if limit != (self.shelf.limit if self.shelf else 0):
            self.shelf = Shelf(limit, _forget) if limit else None

    @property
    def reads_requests(self) -> bool:
        """Whether `record_upstream_request` has anything to do."""
        return self.watched or self.shelf is not None

    def record_request(self, flow: http.HTTPFlow) -> None:
        """Record the head of the client's request, whose keys are already masked."""
        request = flow.request
        method, path = request.method, request.path
        if not (method.isascii() and path.isascii()):
            method, path = quoting.line(method), quoting.line(path)  # bytes that are not UTF-8 cannot be saved
        flow.metadata[f"{PREFIX}asked"] = flow_metadata.pack_head(method, path, request.headers.fields)
        flow.metadata[f"{PREFIX}operation"] = f"{method} {path.partition('?')[0]}"

    def record_upstream_request(self, flow: http.HTTPFlow, request: RequestFacts) -> None:
        """Record the translated request, or the request that the proxy responded to itself."""
        if request.content is not None and self.shelf:
            splice = Splice.between(request.content, flow.request.raw_content or b"")
            if splice and self.shelf.reserve(len(splice.old)):
                self.shelf.keep(flow, len(splice.old))
                flow.metadata[f"{PREFIX}asked"][3] = list(splice)
        if self.watched:
            _write(flow, facts(flow, request))

    def record_response_head(self, flow: http.HTTPFlow, response: http.Response) -> None:
        """Record the head of Azure's response, before translation."""
        if self.shelf:
            status = f"{response.status_code} {response.reason}".rstrip()
            flow.metadata[f"{PREFIX}answered"] = Packed((status, response.headers.fields))

    def tap_stream(self, flow: http.HTTPFlow, response: http.Response, meter: Meter | None = None) -> None:
        """Wrap the stream of a streamed response in a `Tap`."""
        if response.stream and response.raw_content is None:
            inner = response.stream if callable(response.stream) else None
            began = flow.request.timestamp_end or flow.request.timestamp_start
            response.stream = Tap(inner, self.shelf, began, meter=meter)  # type: ignore[arg-type]

    def record_body(self, flow: http.HTTPFlow, request: RequestFacts, azure_body: bytes | None = None) -> None:
        """Store the body of a response that has ended or failed. `azure_body` is Azure's body, if it was buffered."""
        response, tap = flow.response, _tap(flow)
        if response and tap:
            if flow.error and tap.complete:
                flow.error, response.timestamp_end = None, time.time()
            if tap.chunks and self.shelf:
                flow.metadata[f"{PREFIX}chunks"] = Packed(tap.chunks)
            if (bodies := tap.bodies()) and self.shelf:
                response.data.content = bodies[1]
                tap.give_up()
                sent = _decoded(flow, bodies[0])
                clean = isinstance(tap.inner, openai_response.ResponseStream) and tap.inner.clean
                self._keep(flow, sent if clean else _masked(sent, request.secrets), bodies[1], held=len(bodies[1]))
        elif response and azure_body is not None and self.shelf:
            self._keep(flow, _masked(azure_body, request.secrets), compression.content_or_nothing(response), held=0)
        if response and tap and response.data.content and _mints(flow, request):
            # The client has already received the secret: remove it from the stored body.
            response.content = redaction.minted(compression.content_or_nothing(response))
            flow.metadata.pop(f"{PREFIX}azures", None)  # contains the secret too

    def record_end(self, flow: http.HTTPFlow, request: RequestFacts, record: CallRecord | None = None) -> None:
        """Record the end of the response, or the error. `record`: the usage record of the call."""
        _write(flow, facts(flow, request, _tap(flow))._replace(record=record if self.watched else None))

    def record_websocket_end(self, flow: http.HTTPFlow, request: RequestFacts, record: CallRecord | None = None) -> None:
        """Record the end of a WebSocket. `record` has the tokens and the cost of all its responses."""
        messages = f"{len(flow.websocket.messages) if flow.websocket else 0} messages"
        _write(flow, facts(flow, request)._replace(total=None, changed=(messages,), record=record if self.watched else None))

    def _keep(self, flow: http.HTTPFlow, azure_body: bytes, clients: bytes, *, held: int) -> None:
        """Store Azure's body in the metadata if it differs from the client's. `held` is the number of bytes already in the flow."""
        assert self.shelf
        other = None if azure_body == clients else azure_body
        if self.shelf.reserve(held + len(other or b"")):
            if other is not None:
                flow.metadata[f"{PREFIX}azures"] = PackedBytes(other)
            self.shelf.keep(flow, held + len(other or b""))
        elif held and flow.response:
            flow.response.data.content = None


def facts(flow: http.HTTPFlow, request: RequestFacts, tap: Tap | None = None) -> Facts:
    """The facts about a flow at its present stage."""
    call, response, tried = request.call, flow.response, request.attempts
    status = response.status_code if response else None
    changed: tuple[str, ...] = ()
    if flow.error or len(tried) != 1 or tried[0].cause or tried[0].repaired:  # rare
        last = str(status or "")
        causes = (f"{one.backend}: {one.cause}" for one in tried if one.cause and (one is not tried[-1] or one.cause != last))
        failed = ("broke off",) if flow.error and response else (flow.error.msg,) if flow.error else ()
        changed = (*causes, *(tried[-1].repaired if tried else ()), *failed)
    if response and (spilled := _spillover(response)):
        changed = (*changed, spilled)
    ended = response.timestamp_end if response else None
    began = flow.request.timestamp_end or flow.request.timestamp_start
    return Facts(
        operation=call.operation if call else flow.metadata.get(f"{PREFIX}operation", ""),
        model=call.model if call else None,
        deployment=request.deployment,
        backend=tried[-1].backend if tried else "",
        stream=tap is not None,
        status=status,
        first=tap.chunks[0] if tap and tap.chunks else None,
        total=ended - began if ended else None,
        changed=changed,
    )


def _spillover(response: http.Response) -> str:
    """What Azure's headers say about spillover to another deployment of the resource; "" for nothing."""
    names = [name.lower() for name, _ in response.headers.fields if name[: len(_SPILLOVER)].lower() == _SPILLOVER]
    if not names:
        return ""
    if any(name.startswith(_SPILLOVER + b"from") for name in names):
        return f"spillover to {response.headers.get('x-ms-deployment-name', 'another deployment')[:_LONGEST_NAME]}"
    return "spillover failed" if _SPILLOVER + b"error" in names else ""


def _tap(flow: http.HTTPFlow) -> Tap | None:
    return flow.response.stream if flow.response and isinstance(flow.response.stream, Tap) else None


def _write(flow: http.HTTPFlow, known: Facts) -> None:
    """Write the facts to the flow. A comment or mark set by the user is kept."""
    before = flow.metadata.get(f"{PREFIX}comment")
    flow.metadata.update(flow_metadata.metadata(known))
    if flow.comment in ("", before):
        flow.comment = flow.metadata[f"{PREFIX}comment"] = flow_metadata.comment(known)
    if not flow.marked:
        failed = flow.error or (known.status and known.status >= 400)
        flow.marked = FAILED if failed else CHANGED if known.changed and known.status != 101 else ""


def _mints(flow: http.HTTPFlow, request: RequestFacts) -> bool:
    """Whether the response contains a secret that Azure issued to the client."""
    row = request.call.endpoint if request.call else operations.row(flow.request.method, flow.request.path.partition("?")[0])
    return row.response_kind == "secret"


def _forget(flow: http.HTTPFlow) -> None:
    """Remove the stored bodies of an evicted flow."""
    flow.metadata.pop(f"{PREFIX}azures", None)
    if flow.response and flow.response.stream:
        flow.response.data.content = None


def _masked(azure_body: bytes, secrets: Sequence[str]) -> bytes:
    """Mask keys in Azure's body, since Azure may repeat the key in an error. The client's body is already masked."""
    if b'"error"' not in azure_body and not any(secret.encode(errors="surrogateescape") in azure_body for secret in secrets):
        return azure_body
    return error_translation.mask(azure_body.decode("utf-8", "surrogateescape"), secrets).encode("utf-8", "surrogateescape")


def _decoded(flow: http.HTTPFlow, azure_body: bytes) -> bytes:
    """Azure's stream after content decoding; empty if it cannot be decoded."""
    headers = flow_metadata.texts(flow.metadata.get(f"{PREFIX}answered", ("", ()))[1])
    decompressor = compression.decompressor(next((value for name, value in headers if name.lower() == "content-encoding"), None))
    if decompressor is None:
        return azure_body
    try:
        return decompressor.feed(azure_body, compression.most(len(azure_body)))
    except compression.BrokenError:
        return b""
