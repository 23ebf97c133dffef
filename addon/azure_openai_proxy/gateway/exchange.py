"""One request of ours and its answer: what every stage needs to know, and the stages in their order."""

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
"""Bytes that a kept WebSocket message counts beside its content."""
# TRACE and TRACK repeat the key in the answer, CONNECT opens a tunnel, and WS is this proxy's own name for a WebSocket's upgrade.
_WITH_AUTHORITY = frozenset({b"HTTP/2.0", b"HTTP/3"})
_NOT_FORWARDED = frozenset({"TRACE", "TRACK", "CONNECT", "WS"})


class _Arrival(NamedTuple):
    """A request as it came, for the responders."""

    request: http.Request
    path: str
    query: azure_request.Query
    content: bytes  # or the beginning of a body that is streamed
    more: bool  # the rest of the body is streamed


@dataclass(slots=True)
class Exchange:
    """Lives as long as its flow. The settings are those in force when the request came."""

    settings: Settings
    origin: str | None  # of a web page that may read the answer
    upstream: Upstream | None = None  # for a request that mitmproxy sends
    proxy: Proxy | None = None  # for one that the upstream leg sends
    not_ready: Callable[[], str | None] = lambda: None  # why no more requests should come here
    discovered: Sequence[str] = ()  # deployments, beside the configured models
    here: str = ""  # the proxy's address, as the client has it
    shared: Shared = field(default_factory=lambda: Shared(Pool()), repr=False)
    call: Call | None = None
    client_request: ClientRequest | None = field(default=None, repr=False)
    upstream_request: AzureRequest | None = field(default=None, repr=False)  # the request is Azure's now, and so is the answer to come
    secrets: tuple[str, ...] = field(default=(), repr=False)
    stream: openai_response.Stream | None = field(default=None, repr=False)  # of events
    frames: realtime.Frames | None = field(default=None, repr=False)  # of a WebSocket
    talked: int = 0  # bytes of its messages that are kept
    attempts: Attempts | None = field(default=None, repr=False)
    peek: Peek | None = field(default=None, repr=False)
    replay: Replay | None = field(default=None, repr=False)  # recorded answers, instead of Azure's
    recorded: http.HTTPFlow | None = field(default=None, repr=False)  # the one that answers
    hidden: Hidden = field(default_factory=Hidden)  # the keys that the flow does not show
    passed: bytes = field(default=b"", repr=False)  # of an answer with a secret
    masked: tuple[Fields, bytes] = ((), b"")  # headers and path that were last seen to show none
    large: LargeBody | None = field(default=None, repr=False)  # what was found in a large body of the request
    early: http.Response | None = field(default=None, repr=False)  # to be sent before the request's body is read

    @property
    def unchanged(self) -> bool:
        """Everything goes to OpenAI as it came."""
        return self.settings.mode == "openai"

    def forward_unchanged(self, request: http.Request) -> http.Response | None:
        """Send `request` to OpenAI, its body as it comes. An answer: it was a question to the proxy itself."""
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
        """Refuse a request that no backend can serve, before its body is read: neither the proxy nor the client has a key."""
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
        """Can a large body go on before all of it has come?"""
        return self.replay is None and operations.may_stream_upload(request.method, request.path.partition("?")[0], request.headers)

    @property
    def streamed(self) -> bool:
        """The request's body went on as it came: nobody can send it again."""
        return self.client_request is not None and self.client_request.more

    def to_scan(self, request: http.Request) -> tuple[bytes, tuple[str, ...]] | None:
        """A body that is to be read in slices before `request` is called, and what is to be looked for in it."""
        content = request.raw_content or b""
        if len(content) <= LARGE or not large_bodies.is_large(content, request.headers.get("content-type", "")):
            return None
        row = operations.row(_method(request), request.path.partition("?")[0])
        return content, (*row.models, "stream", *((local_responses.MODERATION_INPUTS,) if row.by == "moderations" else ()))

    def request(self, request: http.Request, start: bytes | None = None) -> http.Response | None:
        """Turn `request` into Azure's, in place, or answer it. `start`: what there is of a body that goes on as it comes.

        Raises:
            ProxyError: the request cannot be served; the error is the answer.
        """
        path, _, query_text = request.path.partition("?")
        query = azure_request.Query.read(query_text)
        if query.api_key:
            request.path = credentials.without_key(request.path)  # the flow is kept, whatever becomes of the request
        stale = query.api_version.lower() in self.settings.replace_apiversions
        query = query._replace(api_key=query.api_key or realtime.key(request.headers), api_version="" if stale else query.api_version)
        self.secrets = tuple(filter(None, {*self.settings.tokens, *credentials.seen(request.headers, query.api_key)}))
        arrival = _Arrival(request, path, query, (request.raw_content or b"") if start is None else start, more=start is not None)
        for responder in _RESPONDERS:
            if (response := responder(self, arrival)) is not None:
                return response
        if self.recorded is None:  # a recording that is played at its own pace comes from a server of this process
            self._dispatch(arrival)
        return None

    # The responders of `request`, in their order. Each returns a response, or None for a request that is not for it.

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
        """Recognise the operation, and answer those that the proxy answers itself."""
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
        """Choose a backend and make the request the one for it."""
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
        """Make `request` the one for a backend: as the client asked, changed as the plan says."""
        assert self.call, "only what was recognised is sent"
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
            length = request.headers.pop("content-length", None)  # without one http_upload sees to the framing
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
            self.upstream_request = None  # the answer to come is not Azure's
            raise

    def verify(self, request: http.Request) -> None:
        """The last check of what goes out.

        Raises:
            BadRequest: it would not be the one request that the client is entitled to.
        """
        if self.unchanged:
            request_syntax.check(request, self.settings.passthrough_endpoint.prefix, "/")
        elif self.upstream_request:
            request_syntax.check(request, self.upstream_request.base.prefix)
        else:  # a recorded answer comes from a server of this process
            request_syntax.check(request, "", "/")

    def _aim(self, request: http.Request, base: Base) -> None:
        """Send `request` to `base` instead of where the client sent it. A Host says so already, if there is one."""
        data = request.data
        data.scheme, data.host, data.port = base.scheme.encode(), base.host, base.port  # through the request each would be told in full
        if data.http_version in _WITH_AUTHORITY:
            request.authority = base.netloc  # the client may have sent none, nor a Host
        else:
            if data.authority:
                request.authority = ""  # of a whole URL in the request line inside a tunnel: Azure is no proxy
            if not any(name.lower() == b"host" for name, _ in data.headers.fields):
                request.headers["Host"] = base.netloc  # in a tunnel mitmproxy takes requests without one
        if self.upstream:
            self.upstream.prepare(request)

    # What http_layer asks while nothing of an answer has gone to the client

    def hold_mode(self, response: http.Response) -> Hold | Peek:
        """A failure is held until it is known whether there is a better response, a stream until its first event that carries something."""
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
        """Decide what follows a failed attempt. For a `Retry` make `request` the next one."""
        if self.attempts is None:
            return GIVE_UP
        decision = self.attempts.next_attempt(what)
        if not isinstance(decision, Retry):
            return decision
        self.peek = None
        try:
            self.send(request, decision.plan)
        except errors.ProxyError:  # the client's own key is not there for this backend
            self.attempts.end()
            return GIVE_UP
        return decision

    def broke_off(self, failure: Failure) -> None:
        """The client has received a part of the response, and no more comes."""
        if self.attempts:
            self.attempts.broke_off(failure)

    def facts(self) -> RequestFacts:
        """What is recorded of the request on its flow."""
        whole = self.upstream_request and self.client_request and not self.client_request.more
        return RequestFacts(
            call=self.call,
            deployment=self.upstream_request.deployment if self.upstream_request else None,
            content=self.client_request.content if self.client_request and whole else None,
            attempts=self.attempts.tried if self.attempts else (),
            secrets=self.secrets,
        )

    def finish(self) -> None:
        """Nothing more comes."""
        if self.attempts:
            self.attempts.end()

    # The answer

    def mask_head(self, response: http.Response) -> None:
        """Mask keys in an answer's headers: before anybody sees them."""
        redaction.mask_answer_head(response, self.secrets or self.hidden.secrets)

    def mask_trailers(self, response: http.Response) -> None:
        if response.trailers:
            response.trailers.fields = redaction.mask_fields(response.trailers.fields, self.secrets or self.hidden.secrets)

    def response_head(self, response: http.Response) -> None:
        """Shape the head of the answer, and decide whether its body streams through or is read whole."""
        if self.unchanged:
            response.stream = True
            return
        if response.status_code == 101 or self.recorded:
            response_headers.drop_origin_headers(response.headers)
        asked = self.client_request.headers if self.client_request else None
        if asked is not None and response.status_code == 101 and (protocol := realtime.answered(asked, response.headers)):
            response.headers["sec-websocket-protocol"] = protocol
        elif asked is not None and response.is_http11 and "close" in asked.get("connection", "").lower():
            response.headers["connection"] = "close"  # said to us; mitmproxy looks for it in the request, which is Azure's now
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
            response.stream = True  # in its own pace
        if self.attempts and self.settings.debug_headers:
            response.headers.update(self.attempts.headers())
        local_responses.add_cors(response, self.origin)

    @property
    def _native(self) -> bool:
        return bool(self.call and self.call.native)

    def _kind(self, response: http.Response) -> Literal["events", "json", "opaque"]:
        """Some fronts of Azure send a stream with no content type: what was asked for decides then."""
        assert self.call
        content_type = response.headers.get("content-type", "").lower()
        if response.status_code >= 400:
            return "json"
        if content_type.startswith("text/event-stream") or (self.call.stream and not content_type.startswith("application/json")):
            return "events"
        is_json = content_type.startswith("application/json") or not content_type
        return "json" if is_json and self.call.endpoint.answer not in ("binary", "secret") else "opaque"

    def _pass_on(self, data: bytes) -> list[bytes]:
        """A secret for the client goes by as it comes: what is read whole stands on the flow."""
        assert self.attempts, "what was sent was an attempt"
        self.passed += data
        if not data:
            self.attempts.created(self.passed)
        return [data] if data else []

    def content(self, response: http.Response) -> bytes:
        """A body that was read whole, decompressed. A 2xx answer that becomes too large is replaced by a 502."""
        try:
            return compression.content(response)
        except compression.TooLargeError as error:
            if response.status_code < 400:
                response.status_code, response.reason = 502, "Bad Gateway"
                response.headers.pop("content-encoding", None)
                shaped = errors.body(f"Azure's compressed answer cannot be read: {error}.", "server_error", code="upstream_error")
                response.raw_content = shaped
                response.headers["content-length"] = str(len(shaped))
                return shaped
            return b""

    def last_event(self, error: errors.ProxyError) -> bytes:
        """What ends a stream that broke off, in the shape of its other events."""
        stream = self.stream or openai_response.Stream(normalize=False, encoding=None)
        return stream.failure({"message": error.message, "type": error.type, "param": error.param, "code": error.code})

    def answer_to_scan(self, response: http.Response, content: bytes | None) -> tuple[bytes, tuple[str, ...]] | None:
        """The body of an answer that is to be read in slices before `response_body` is called, and what is to be looked for in it."""
        if content is None or len(content) <= LARGE or not self.upstream_request or response.status_code >= 400:
            return None
        shaped = self.settings.normalize and openai_response.suspect(content)
        return (content, url_rewriting.MEMBERS) if shaped or url_rewriting.suspect(content) else None

    def response_body(self, response: http.Response, content: bytes | None = None, large: LargeBody | None = None) -> None:
        """Shape a body that was read whole. `content`: it without its content-encoding; `large`: what was found in it."""
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
            assert self.attempts, "what was sent was an attempt"
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
        """A frame that is to be read in slices before `frame` is called, and what is to be looked for in it."""
        content = message.content
        if len(content) <= LARGE or not self.frames or not message.is_text:
            return None
        return content, self.frames.places if message.from_client else self.frames.BACK

    def frame(self, messages: list[WebSocketMessage], keep: int, large: LargeBody | None = None) -> None:
        """Change the last of `messages`, which is about to be sent, in place, and drop the oldest beyond `keep` bytes.

        `large` is what was found in a large one; that is not yet in ASCII.
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
                # mitmproxy cuts a frame that has changed into pieces, and with it a character of several bytes.
                message.content = frame if large else realtime.in_ascii(frame)
        self.talked += len(message.content) + MESSAGE
        while self.talked > keep and len(messages) > 1:
            self.talked -= len(messages.pop(0).content) + MESSAGE


_RESPONDERS = (Exchange._preflight, Exchange._refuse, Exchange._welcome, Exchange._health, Exchange._local, Exchange._recorded)  # noqa: SLF001


def _method(request: http.Request) -> str:
    """WS for the upgrade to a WebSocket."""
    upgrade = request.method == "GET" and request.headers.get("upgrade", "").lower() == "websocket"
    return "WS" if upgrade else request.method
