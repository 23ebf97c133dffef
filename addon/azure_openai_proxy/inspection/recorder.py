"""Records the comment and the metadata of OpenAI flows while they run, for mitmweb, the console and flow files."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.api import error_translation, redaction
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.formats import compression, quoting

from . import flow_metadata
from .body_store import Shelf, Tap
from .flow_metadata import PREFIX, Facts, Packed, PackedBytes, Splice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mitmproxy import http

    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.routing.attempts import Attempt

__all__ = ["Recorder", "RequestFacts", "facts", "tokens"]

FAILED = ":red_circle:"
CHANGED = ":wrench:"

_INPUT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d{1,12})')
_OUTPUT = re.compile(rb'"(?:completion|output)_tokens":\s*(\d{1,12})')


def tokens(body: bytes) -> tuple[int, int] | None:
    """Input and output tokens of the usage at the end of a response, found without parsing JSON; None if there is no usage."""
    used = body[max(0, body.rfind(b'"usage"')) :]
    read, written = _INPUT.search(used), _OUTPUT.search(used)
    return (int(read[1]), int(written[1]) if written else 0) if read else None


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

    def asked(self, flow: http.HTTPFlow) -> None:
        """Record the head of the client's request, whose keys are already masked."""
        request = flow.request
        method, path = request.method, request.path
        if not (method.isascii() and path.isascii()):
            method, path = quoting.line(method), quoting.line(path)  # bytes that are not UTF-8 cannot be saved
        flow.metadata[f"{PREFIX}asked"] = flow_metadata.pack_head(method, path, request.headers.fields)
        flow.metadata[f"{PREFIX}operation"] = f"{method} {path.partition('?')[0]}"

    def sent(self, flow: http.HTTPFlow, request: RequestFacts) -> None:
        """Record the translated request, or the request that the proxy responded to itself."""
        if request.content is not None and self.shelf:
            splice = Splice.between(request.content, flow.request.raw_content or b"")
            if splice and self.shelf.room(len(splice.old)):
                self.shelf.keep(flow, len(splice.old))
                flow.metadata[f"{PREFIX}asked"][3] = list(splice)
        if self.watched:
            _write(flow, facts(flow, request))

    def answered(self, flow: http.HTTPFlow, response: http.Response) -> None:
        """Record the head of Azure's response, before translation."""
        if self.shelf:
            status = f"{response.status_code} {response.reason}".rstrip()
            flow.metadata[f"{PREFIX}answered"] = Packed((status, response.headers.fields))

    def streams(self, flow: http.HTTPFlow, response: http.Response) -> None:
        """Wrap the stream of a streamed response in a `Tap`."""
        if response.stream and response.raw_content is None:
            inner = response.stream if callable(response.stream) else None
            began = flow.request.timestamp_end or flow.request.timestamp_start
            response.stream = Tap(inner, self.shelf, began)  # type: ignore[arg-type]

    def ended(self, flow: http.HTTPFlow, request: RequestFacts, azures: bytes | None = None) -> None:
        """Record the end of the response, or the error. `azures` is Azure's body, if it was buffered."""
        response = flow.response
        tap = response.stream if response and isinstance(response.stream, Tap) else None
        if response and tap:
            if flow.error and tap.complete:
                flow.error, response.timestamp_end = None, time.time()
            if tap.chunks and self.shelf:
                flow.metadata[f"{PREFIX}chunks"] = Packed(tap.chunks)
            if (bodies := tap.bodies()) and self.shelf:
                response.data.content = bodies[1]
                tap.give_up()
                sent = _decoded(flow, bodies[0])
                clean = isinstance(tap.inner, openai_response.Stream) and tap.inner.clean
                self._keep(flow, sent if clean else _masked(sent, request.secrets), bodies[1], held=len(bodies[1]))
        elif response and azures is not None and self.shelf:
            self._keep(flow, _masked(azures, request.secrets), compression.content_or_nothing(response), held=0)
        if response and tap and response.data.content and _mints(flow, request):
            # The client has already received the secret: remove it from the stored body.
            response.content = redaction.minted(compression.content_or_nothing(response))
            flow.metadata.pop(f"{PREFIX}azures", None)  # contains the secret too
        _write(flow, facts(flow, request, tap))

    def websocket_ended(self, flow: http.HTTPFlow, request: RequestFacts) -> None:
        """Record the end of a WebSocket."""
        messages = flow.websocket.messages if flow.websocket else []
        counted = [found for message in messages if not message.from_client and (found := tokens(message.content))]
        summed = (sum(used for used, _ in counted), sum(used for _, used in counted)) if counted else None
        _write(flow, facts(flow, request)._replace(tokens=summed, total=None, changed=(f"{len(messages)} messages",)))

    def _keep(self, flow: http.HTTPFlow, azures: bytes, clients: bytes, *, held: int) -> None:
        """Store Azure's body in the metadata if it differs from the client's. `held` is the number of bytes already in the flow."""
        assert self.shelf
        other = None if azures == clients else azures
        if self.shelf.room(held + len(other or b"")):
            if other is not None:
                flow.metadata[f"{PREFIX}azures"] = PackedBytes(other)
            self.shelf.keep(flow, held + len(other or b""))
        elif held and flow.response:
            flow.response.data.content = None


def facts(flow: http.HTTPFlow, request: RequestFacts, tap: Tap | None = None) -> Facts:
    """The facts about a flow at its present stage."""
    call, response, tried = request.call, flow.response, request.attempts
    told = str(response.status_code) if response else ""
    causes = (f"{one.backend}: {one.cause}" for one in tried if one.cause and (one is not tried[-1] or one.cause != told))
    failed = ("broke off",) if flow.error and response else (flow.error.msg,) if flow.error else ()
    ended = response.timestamp_end if response else None
    began = flow.request.timestamp_end or flow.request.timestamp_start
    answer = tap.counted if tap else (response.raw_content or b"")[-4096:] if response else b""
    return Facts(
        operation=call.operation if call else flow.metadata.get(f"{PREFIX}operation", ""),
        model=call.model if call else None,
        deployment=request.deployment,
        backend=tried[-1].backend if tried else "",
        stream=tap is not None,
        status=response.status_code if response else None,
        tokens=tokens(answer),
        first=tap.chunks[0] if tap and tap.chunks else None,
        total=ended - began if ended else None,
        changed=(*causes, *(tried[-1].repaired if tried else ()), *failed),
    )


def _write(flow: http.HTTPFlow, told: Facts) -> None:
    """Write the facts to the flow. A comment or mark set by the user is kept."""
    before = flow.metadata.get(f"{PREFIX}comment")
    flow.metadata.update(flow_metadata.metadata(told))
    if flow.comment in ("", before):
        flow.comment = flow.metadata[f"{PREFIX}comment"] = flow_metadata.comment(told)
    if not flow.marked:
        failed = flow.error or (told.status and told.status >= 400)
        flow.marked = FAILED if failed else CHANGED if told.changed and told.status != 101 else ""


def _mints(flow: http.HTTPFlow, request: RequestFacts) -> bool:
    """Whether the response contains a secret that Azure issued to the client."""
    row = request.call.endpoint if request.call else operations.row(flow.request.method, flow.request.path.partition("?")[0])
    return row.answer == "secret"


def _forget(flow: http.HTTPFlow) -> None:
    """Remove the stored bodies of an evicted flow."""
    flow.metadata.pop(f"{PREFIX}azures", None)
    if flow.response and flow.response.stream:
        flow.response.data.content = None


def _masked(azures: bytes, secrets: Sequence[str]) -> bytes:
    """Mask keys in Azure's body, since Azure may repeat the key in an error. The client's body is already masked."""
    if b'"error"' not in azures and not any(secret.encode(errors="surrogateescape") in azures for secret in secrets):
        return azures
    return error_translation.mask(azures.decode("utf-8", "surrogateescape"), secrets).encode("utf-8", "surrogateescape")


def _decoded(flow: http.HTTPFlow, azures: bytes) -> bytes:
    """Azure's stream after content decoding; empty if it cannot be decoded."""
    headers = flow_metadata.texts(flow.metadata.get(f"{PREFIX}answered", ("", ()))[1])
    decompressor = compression.decompressor(next((value for name, value in headers if name.lower() == "content-encoding"), None))
    if decompressor is None:
        return azures
    try:
        return decompressor.feed(azures, compression.most(len(azures)))
    except compression.BrokenError:
        return b""
