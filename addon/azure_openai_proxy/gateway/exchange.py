"""One API request and its response: the state shared by all stages of their translation, and the stages in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from azure_openai_proxy import errors
from azure_openai_proxy.api import (
    credentials,
    large_bodies,
    local_responses,
    realtime,
    redaction,
    request_syntax,
    response_headers,
    url_rewriting,
)
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.api.redaction import Fields, Hidden
from azure_openai_proxy.api.stream_probe import Peek
from azure_openai_proxy.egress.request import Hold
from azure_openai_proxy.formats import compression
from azure_openai_proxy.formats.json_scan import LARGE
from azure_openai_proxy.inspection.recorder import RequestFacts
from azure_openai_proxy.routing.attempts import GIVE_UP, Attempts, Retry
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.state import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mitmproxy import http
    from mitmproxy.websocket import WebSocketMessage

    from azure_openai_proxy.api.backend import Base
    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import AzureRequest, ClientRequest
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.egress.connect import Proxy
    from azure_openai_proxy.errors import Failure
    from azure_openai_proxy.inspection.replay_server import Replay
    from azure_openai_proxy.routing.attempts import Decision, Plan

    from .ingress import Upstream

__all__ = ["Exchange"]

MESSAGE = 1024
"""Bytes added to the content's size for each WebSocket message kept on the flow."""
# TRACE and TRACK return the key in the response, CONNECT opens a tunnel, and WS is this proxy's internal name for a WebSocket upgrade.
_WITH_AUTHORITY = frozenset({b"HTTP/2.0", b"HTTP/3"})
_NOT_FORWARDED = frozenset({"TRACE", "TRACK", "CONNECT", "WS"})


class _Arrival(NamedTuple):
    """The client's request, as passed to the responders."""

    request: http.Request
    path: str
    query: azure_request.Query
    content: bytes  # the body, or the beginning of a streamed one
    more: bool  # the rest of the body is streamed


@dataclass(slots=True)
class Exchange:
    """The state of one request, kept as long as its flow. `settings` are those in effect when the request arrived."""

    settings: Settings
    origin: str | None  # Origin of the web page that sent the request, for CORS
    upstream: Upstream | None = None  # upstream proxy, if mitmproxy sends the request
    proxy: Proxy | None = None  # upstream proxy, if the upstream leg sends the request
    not_ready: Callable[[], str | None] = lambda: None  # reason for failing readiness probes
    discovered: Sequence[str] = ()  # deployments to list in addition to the configured models
    here: str = ""  # the proxy's base URL as the client uses it
    shared: Shared = field(default_factory=lambda: Shared(Pool()), repr=False)
    call: Call | None = None
    client_request: ClientRequest | None = field(default=None, repr=False)
    upstream_request: AzureRequest | None = field(default=None, repr=False)  # set once the request is translated; its response is Azure's
    secrets: tuple[str, ...] = field(default=(), repr=False)
    stream: openai_response.Stream | None = field(default=None, repr=False)  # translation of an event stream
    frames: realtime.Frames | None = field(default=None, repr=False)  # translation of WebSocket messages
    talked: int = 0  # bytes of the WebSocket messages kept on the flow
    attempts: Attempts | None = field(default=None, repr=False)
    peek: Peek | None = field(default=None, repr=False)
    replay: Replay | None = field(default=None, repr=False)  # recorded responses to use instead of Azure's
    recorded: http.HTTPFlow | None = field(default=None, repr=False)  # the recording that answers this request
    hidden: Hidden = field(default_factory=Hidden)  # the keys masked on the flow
    passed: bytes = field(default=b"", repr=False)  # body forwarded so far of a response that contains a secret
    masked: tuple[Fields, bytes] = ((), b"")  # headers and path after the last masking
    large: LargeBody | None = field(default=None, repr=False)  # the values found in a large request body
    early: http.Response | None = field(default=None, repr=False)  # response to send before the request body is read

    @property
    def unchanged(self) -> bool:
        """Whether requests are forwarded to OpenAI unchanged (`azure_openai_mode=openai`)."""
        return self.settings.mode == "openai"

    def forward_unchanged(self, request: http.Request) -> http.Response | None:
        """Direct `request` to OpenAI and stream its body. Return a response for health checks and invalid requests, else None."""
        if health := local_responses.health(request.path, self.not_ready):
            return health
        base = self.settings.passthrough_endpoint
        if "host" in request.headers:
            request.headers["host"] = base.netloc
        self._aim(request, base)
        try:
            request_syntax.check_line(request)
            path, _, query = request.path.partition("?")
            request.path = request_syntax.encoded(base.prefix + path, query)
            self.verify(redaction.with_secrets(request, self.hidden))
        except errors.BadRequest as error:
            return errors.response(error)
        request.stream = True
        return None

    def request_head(self, request: http.Request) -> None:
        """Reject a request before its body is read if neither the proxy nor the client has a key. Sets `early`."""
        settings = self.settings
        if self.unchanged or self.replay or credentials.seen(request.headers) or any(b.token or b.entra for b in settings.backends):
            return
        path, _, query = request.path.partition("?")
        if operations.reaches_azure(_method(request), path):
            try:
                credentials.choose("", request.headers, azure_request.Query.read(query).api_key or realtime.key(request.headers))
            except errors.NoKey as error:
                self.early = errors.response(error)

    def may_stream_upload(self, request: http.Request) -> bool:
        """Whether a large request body can be forwarded before it is complete."""
        return self.replay is None and operations.may_stream_upload(request.method, request.path.partition("?")[0], request.headers)

    @property
    def streamed(self) -> bool:
        """Whether the request body was streamed, so that the request cannot be retried."""
        return self.client_request is not None and self.client_request.more

    def to_scan(self, request: http.Request) -> tuple[bytes, tuple[str, ...]] | None:
        """The body and the names of the members to find in it, if it is large and must be scanned in slices before `request` is called."""
        content = request.raw_content or b""
        if len(content) <= LARGE or not large_bodies.is_large(content, request.headers.get("content-type", "")):
            return None
        row = operations.row(_method(request), request.path.partition("?")[0])
        return content, (*row.models, "stream", *((local_responses.MODERATION_INPUTS,) if row.by == "moderations" else ()))

    def request(self, request: http.Request, start: bytes | None = None) -> http.Response | None:
        """Translate `request` in place for Azure, or return a response. `start`: the available beginning of a streamed body.

        Raises:
            ProxyError: the request cannot be served; the error is the client's response.
        """
        path, _, query_text = request.path.partition("?")
        query = azure_request.Query.read(query_text)
        if query.api_key:
            request.path = credentials.without_key(request.path)  # the flow is kept even if the request is rejected
        stale = query.api_version.lower() in self.settings.replace_apiversions
        query = query._replace(api_key=query.api_key or realtime.key(request.headers), api_version="" if stale else query.api_version)
        self.secrets = tuple(filter(None, {*self.settings.tokens, *credentials.seen(request.headers, query.api_key)}))
        arrival = _Arrival(request, path, query, (request.raw_content or b"") if start is None else start, more=start is not None)
        for responder in _RESPONDERS:
            if (response := responder(self, arrival)) is not None:
                return response
        if self.recorded is None:  # else a local server plays the recording at its original pace
            self._dispatch(arrival)
        return None

    # The responders of `request`, in order. Each returns a response, or None for requests that it does not answer.

    def _preflight(self, arrival: _Arrival) -> http.Response | None:
        return local_responses.preflight(arrival.request) if arrival.request.method == "OPTIONS" else None

    def _refuse(self, arrival: _Arrival) -> None:
        arrival.query.check()
        if arrival.request.method.upper() in _NOT_FORWARDED:
            raise errors.Failed(405, "method_not_allowed", f"{arrival.request.method[:20]} is not a method of the API.")

    def _welcome(self, arrival: _Arrival) -> http.Response | None:
        return local_responses.welcome() if arrival.path == "/" and arrival.request.method in ("GET", "HEAD") else None

    def _health(self, arrival: _Arrival) -> http.Response | None:
        return local_responses.health(arrival.path, self.not_ready) if arrival.request.method in ("GET", "HEAD") else None

    def _local(self, arrival: _Arrival) -> http.Response | None:
        """Recognise the operation, and answer it if the proxy does so locally."""
        request, path, query, content, _ = arrival
        self.call = operations.recognise(_method(request), path, request.headers, content, query.rest, self.large)
        if self.call is None:
            return local_responses.not_found()
        if self.call.endpoint.by == "azure":
            return None
        if self.call.endpoint.by == "moderations" and self.settings.moderations_unflagged:
            return local_responses.unflagged_moderation(content, self.large)
        return local_responses.answer(self.call, self.settings.listed, self.discovered)

    def _recorded(self, arrival: _Arrival) -> http.Response | None:
        if not self.replay:
            return None
        assert self.call
        self.recorded = self.replay.find(self.call, arrival.request)
        return self.replay.answer(self.recorded, arrival.request)

    def _dispatch(self, arrival: _Arrival) -> None:
        """Choose a backend and translate the request for it."""
        request = arrival.request
        assert self.call
        self.here = f"{request.scheme}://{request.host_header or request.host}"
        self.client_request = azure_request.ClientRequest(request.headers, arrival.query, arrival.content, self.large, more=arrival.more)
        self.attempts = Attempts(self.settings, self.shared, self.call, self.client_request)
        try:
            self.send(request, self.attempts.first())
        except BaseException:
            self.attempts.end()
            raise

    def send(self, request: http.Request, plan: Plan) -> None:
        """Rewrite `request` in place for the backend and model of `plan`, from the client's original request."""
        assert self.call, "only recognised operations are sent"
        assert self.client_request
        target, call = plan.target, self.call
        backend = target.backend

        def deployment(model: str) -> str:
            if model == call.model and target.deployment is not None:
                return target.deployment
            return plan.renamed or backend.deployment(model, self.settings.mapper, native=bool(call.native))

        entra = self.shared.tokens.token(backend) if backend.entra else None
        credential = credentials.choose(backend.token, self.client_request.headers, self.client_request.query.api_key, entra=entra)
        self.secrets = (*self.secrets, entra) if entra and entra not in self.secrets else self.secrets
        named = deployment
        if call.method == "WS":
            self.frames = realtime.Frames(call.endpoint.models, deployment)
            named = self.frames.asked
            if call.model is not None:
                self.frames.asked(call.model)
        batch_lines = self.settings.max_body if self.settings.map_batch_files else 0
        self.upstream_request = sent = azure_request.translate(call, plan.asked, target, named, credential, batch_lines=batch_lines)
        request.path, request.headers = sent.path, sent.headers
        if self.client_request.more:
            request.stream = sent.stream
            length = request.headers.pop("content-length", None)  # without a length, `http_upload` uses chunked framing
            if length is not None and sent.growth is not None:
                request.headers["content-length"] = str(int(length) + sent.growth)
        elif sent.content or "content-length" in self.client_request.headers or "transfer-encoding" in self.client_request.headers:
            request.raw_content, length = sent.content, str(len(sent.content))
            if request.headers.get("content-length") != length:
                request.headers["content-length"] = length
        self._aim(request, sent.base)
        try:
            self.verify(request)
        except errors.BadRequest:
            self.upstream_request = None  # the response will be the proxy's own
            raise

    def verify(self, request: http.Request) -> None:
        """Check the final request before it is sent.

        Raises:
            BadRequest: the request line or headers could smuggle another request, or reach a path outside the API.
        """
        if self.unchanged:
            request_syntax.check(request, self.settings.passthrough_endpoint.prefix, "/")
        elif self.upstream_request:
            request_syntax.check(request, self.upstream_request.base.prefix)
        else:  # a local server plays a recording
            request_syntax.check(request, "", "/")

    def _aim(self, request: http.Request, base: Base) -> None:
        """Set the destination of `request` to `base`. An existing Host header is already correct."""
        data = request.data
        data.scheme, data.host, data.port = base.scheme.encode(), base.host, base.port  # Request's setters would rewrite Host
        if data.http_version in _WITH_AUTHORITY:
            request.authority = base.netloc  # the client may have sent neither :authority nor Host
        else:
            if data.authority:
                request.authority = ""  # for absolute-form requests inside a tunnel: Azure expects origin form
            if not any(name.lower() == b"host" for name, _ in data.headers.fields):
                request.headers["Host"] = base.netloc  # inside a tunnel, mitmproxy accepts requests without Host
        if self.upstream:
            self.upstream.prepare(request)

    # Called by the upstream leg before the client has received any part of the response

    def hold_mode(self, response: http.Response) -> Hold | Peek:
        """How much of the response to buffer: failures until a retry is decided, streams until the first event with content."""
        if self.attempts is None:
            return Hold.NOTHING
        if response.status_code >= 400:
            return Hold.FAILURE
        kind = self._kind(response)
        if response.status_code == 200 and kind == "events":
            self.peek = Peek(response.headers.get("content-encoding"))
            return self.peek
        return Hold.WHOLE if kind == "json" else Hold.NOTHING

    def next_attempt(self, request: http.Request, what: Failure | http.Response) -> Decision:
        """Decide whether to retry a failed attempt. For a `Retry`, `request` is rewritten in place for the next attempt."""
        if self.attempts is None:
            return GIVE_UP
        decision = self.attempts.next_attempt(what)
        if not isinstance(decision, Retry):
            return decision
        self.peek = None
        try:
            self.send(request, decision.plan)
        except errors.ProxyError:  # this backend needs a key from the client, which sent none
            self.attempts.end()
            return GIVE_UP
        return decision

    def broke_off(self, failure: Failure) -> None:
        """Record that the response failed after the client had received a part of it."""
        if self.attempts:
            self.attempts.broke_off(failure)

    def facts(self) -> RequestFacts:
        """The facts about the request that are recorded on its flow."""
        whole = self.upstream_request and self.client_request and not self.client_request.more
        return RequestFacts(
            call=self.call,
            deployment=self.upstream_request.deployment if self.upstream_request else None,
            content=self.client_request.content if self.client_request and whole else None,
            attempts=self.attempts.tried if self.attempts else (),
            secrets=self.secrets,
        )

    def finish(self) -> None:
        """End the attempts: the response is complete, or the request has failed."""
        if self.attempts:
            self.attempts.end()

    # The response

    def mask_head(self, response: http.Response) -> None:
        """Mask keys in the response headers before they are displayed, recorded or forwarded."""
        redaction.mask_answer_head(response, self.secrets or self.hidden.secrets)

    def mask_trailers(self, response: http.Response) -> None:
        if response.trailers:
            response.trailers.fields = redaction.mask_fields(response.trailers.fields, self.secrets or self.hidden.secrets)

    def response_head(self, response: http.Response) -> None:
        """Translate the response headers, and choose between streaming and buffering the body."""
        if self.unchanged:
            response.stream = True
            return
        if response.status_code == 101 or self.recorded:
            response_headers.drop_origin_headers(response.headers)
        asked = self.client_request.headers if self.client_request else None
        if asked is not None and response.status_code == 101 and (protocol := realtime.answered(asked, response.headers)):
            response.headers["sec-websocket-protocol"] = protocol
        elif asked is not None and response.is_http11 and "close" in asked.get("connection", "").lower():
            response.headers["connection"] = "close"  # mitmproxy looks for it in the request, which was rewritten
        if self.upstream_request and response.status_code != 101:
            kind = self._kind(response)
            encoding = response.headers.get("content-encoding")
            if self.attempts and response.status_code < 400:
                self.attempts.answers(response.headers)
                if self.peek and self.peek.verdict:
                    self.attempts.created(self.peek.verdict.first)
            openai_response.headers(response.headers, stream=kind == "events", http1=response.is_http11)
            url_rewriting.in_headers(response.headers, self.upstream_request.base, native=self._native)
            if kind == "events":
                done = self.call is not None and self.call.endpoint.answer == "chat"
                items = self.attempts.item if self.attempts and self.attempts.makes_items else None
                self.stream = openai_response.Stream(
                    normalize=self.settings.normalize, encoding=encoding, done=done, secrets=self.secrets, items=items
                )
                response.stream = self.stream
            elif kind == "opaque":
                response.stream = self._pass_on if self.call and self.call.endpoint.answer == "secret" else True
        if not self.upstream_request:
            response.headers.setdefault("x-request-id", errors.request_id())
            response.headers.setdefault("x-content-type-options", "nosniff")
        if self.recorded and response.raw_content is None and response.status_code != 101:
            response.stream = True  # at its original pace
        if self.attempts and self.settings.debug_headers:
            response.headers.update(self.attempts.headers())
        local_responses.add_cors(response, self.origin)

    @property
    def _native(self) -> bool:
        return bool(self.call and self.call.native)

    def _kind(self, response: http.Response) -> Literal["events", "json", "opaque"]:
        """Classify the body. Some Azure gateways omit the content type of a stream, so the request decides in that case."""
        assert self.call
        content_type = response.headers.get("content-type", "").lower()
        if response.status_code >= 400:
            return "json"
        if content_type.startswith("text/event-stream") or (self.call.stream and not content_type.startswith("application/json")):
            return "events"
        is_json = content_type.startswith("application/json") or not content_type
        return "json" if is_json and self.call.endpoint.answer not in ("binary", "secret") else "opaque"

    def _pass_on(self, data: bytes) -> list[bytes]:
        """Stream a response that contains a secret for the client, since a buffered body would be kept on the flow."""
        assert self.attempts, "every request sent is an attempt"
        self.passed += data
        if not data:
            self.attempts.created(self.passed)
        return [data] if data else []

    def content(self, response: http.Response) -> bytes:
        """Decompress a buffered body. A successful response that exceeds the size limit is replaced by a 502."""
        try:
            return compression.content(response)
        except compression.TooLargeError as error:
            if response.status_code < 400:
                response.status_code, response.reason = 502, "Bad Gateway"
                response.headers.pop("content-encoding", None)
                shaped = errors.body(f"Azure's compressed response cannot be read: {error}.", "server_error", code="upstream_error")
                response.raw_content = shaped
                response.headers["content-length"] = str(len(shaped))
                return shaped
            return b""

    def last_event(self, error: errors.ProxyError) -> bytes:
        """The error event that ends a truncated stream, in the format of its other events."""
        stream = self.stream or openai_response.Stream(normalize=False, encoding=None)
        return stream.failure({"message": error.message, "type": error.type, "param": error.param, "code": error.code})

    def answer_to_scan(self, response: http.Response, content: bytes | None) -> tuple[bytes, tuple[str, ...]] | None:
        """The body and the members to find in it, if it is large and must be scanned in slices before `response_body` is called."""
        if content is None or len(content) <= LARGE or not self.upstream_request or response.status_code >= 400:
            return None
        shaped = self.settings.normalize and openai_response.suspect(content)
        return (content, url_rewriting.MEMBERS) if shaped or url_rewriting.suspect(content) else None

    def response_body(self, response: http.Response, content: bytes | None = None, large: LargeBody | None = None) -> None:
        """Translate a buffered body. `content`: the decompressed body; `large`: the result of scanning a large one."""
        if not self.upstream_request or response.stream or response.status_code == 101:
            return
        assert self.call
        content = self.content(response) if content is None else content
        if response.status_code >= 400:
            shaped = openai_response.error_body(
                response.status_code,
                content,
                asked=self.call.model,
                deployment=self.upstream_request.deployment,
                models=self.settings.listed.names(),
                secrets=self.secrets,
            )
            response.headers["content-type"] = "application/json"
            if b'"code": "content_filter"' in shaped:
                response.headers["x-should-retry"] = "false"  # the SDKs obey: the same prompt is filtered again
        else:
            assert self.attempts, "every request sent is an attempt"
            self.attempts.created(content)
            if large:
                large = openai_response.large_json_body(large) if self.settings.normalize else large
                shaped = large.content
            else:
                shaped = openai_response.json_body(content) if self.settings.normalize else content
            shaped = url_rewriting.in_body(shaped, self.upstream_request.base, self.here, native=self._native, large=large)
        if shaped is not content:
            response.content = shaped

    def frame_to_scan(self, message: WebSocketMessage) -> tuple[bytes, tuple[str, ...]] | None:
        """The content and the members to find in it, if a message is large and must be scanned in slices before `frame` is called."""
        content = message.content
        if len(content) <= LARGE or not self.frames or not message.is_text:
            return None
        return content, self.frames.places if message.from_client else self.frames.BACK

    def frame(self, messages: list[WebSocketMessage], keep: int, large: LargeBody | None = None) -> None:
        """Translate the last of `messages` in place before it is sent, and drop the oldest messages beyond `keep` bytes in total.

        `large` is the result of scanning a large message, whose content is not converted to ASCII here.
        """
        message = messages[-1]
        if self.frames and message.is_text:
            frame = message.content
            if message.from_client:
                frame = self.frames.out(frame, large)
            else:
                if self.attempts and self.attempts.makes_items:
                    self.attempts.item(frame)
                if large:
                    large = openai_response.large_frame(large, self.secrets) if self.settings.normalize else large
                    frame = large.content
                elif self.settings.normalize:
                    frame = openai_response.frame(frame, self.secrets)
                frame = self.frames.back(frame, large)
            if frame is not message.content:
                # mitmproxy splits a changed message into fragments, which could split a multi-byte character; hence ASCII.
                message.content = frame if large else realtime.in_ascii(frame)
        self.talked += len(message.content) + MESSAGE
        while self.talked > keep and len(messages) > 1:
            self.talked -= len(messages.pop(0).content) + MESSAGE


_RESPONDERS = (Exchange._preflight, Exchange._refuse, Exchange._welcome, Exchange._health, Exchange._local, Exchange._recorded)  # noqa: SLF001


def _method(request: http.Request) -> str:
    """The request method; "WS" for a WebSocket upgrade."""
    upgrade = request.method == "GET" and request.headers.get("upgrade", "").lower() == "websocket"
    return "WS" if upgrade else request.method
