"""One API request and its response: the state that all stages of their translation share, and the stages in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from azure_openai_proxy import errors
from azure_openai_proxy.api import (
    credentials,
    large_bodies,
    local_responses,
    realtime,
    request_syntax,
    response_items,
)
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.api import response as openai_response
from azure_openai_proxy.client_leg.headers import drop_index
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.formats.json_scan import LARGE
from azure_openai_proxy.inspection.recorder import RequestFacts
from azure_openai_proxy.routing.attempts import Attempts
from azure_openai_proxy.routing.decisions import GIVE_UP
from azure_openai_proxy.routing.pool import Pool
from azure_openai_proxy.routing.state import Shared

from . import client_headers, local_answers, named_models
from .arrival import Arrival, operation_method, path_of
from .request_keys import RequestKeys
from .request_target import aim
from .request_to_azure import RequestToAzure
from .response_from_azure import decompressed
from .websocket_messages import WebSocketMessages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from mitmproxy.websocket import WebSocketData

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.record import CallRecord
    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import ClientRequest
    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.config.settings import Settings, Timeouts
    from azure_openai_proxy.egress.connect import Proxy
    from azure_openai_proxy.errors import Failure
    from azure_openai_proxy.inspection.replay_server import Replay
    from azure_openai_proxy.routing.decisions import Decision

    from .admission import Admission
    from .ingress import Upstream
    from .response_from_azure import ResponseFromAzure

__all__ = ["Exchange"]

ABNORMAL = 1006
"""Close code of a WebSocket that ended without a close frame."""


@dataclass(slots=True)
class Exchange:
    """The state of one request, kept as long as its flow. `settings` are those in effect when the request arrived."""

    settings: Settings
    origin: str | None  # Origin of the web page that sent the request, for CORS
    upstream: Upstream | None = None  # upstream proxy, if mitmproxy sends the request
    proxy: Proxy | None = None  # upstream proxy, if the upstream leg sends the request
    not_ready: Callable[[], str | None] = lambda: None  # reason for failing readiness probes
    ready_detail: Callable[[], str] = str  # what readiness probes that succeed say
    discovered: Sequence[str] = ()  # deployments to list in addition to the configured models
    reads_usage: bool = False  # the usage of streams is needed, also if the client does not ask for it
    shared: Shared = field(default_factory=lambda: Shared(Pool()), repr=False)
    replay: Replay | None = field(default=None, repr=False)  # recorded responses to use instead of Azure's
    meter: Meter | None = field(default=None, repr=False)  # None: nothing receives usage records
    # Set by the registry before `request`
    own_keys: bool = False  # the keys of clients are the proxy's, so none goes to Azure
    keys_required: bool = False  # a request without a key is refused
    admission: Admission | None = field(
        default=None, repr=False
    )  # the client of a key; None: no keys are required, or the request has none
    early: http.Response | None = field(default=None, repr=False)  # response to send before the request body is read
    large: LargeBody | None = field(default=None, repr=False)  # the values found in a large request body
    # Set by `request`
    keys: RequestKeys = field(default_factory=RequestKeys)
    call: Call | None = None
    client_request: ClientRequest | None = field(default=None, repr=False)
    attempts: Attempts | None = field(default=None, repr=False)
    to_azure: RequestToAzure | None = field(default=None, repr=False)  # None: the request is not sent to Azure
    recorded: http.HTTPFlow | None = field(default=None, repr=False)  # the recording that answers this request
    waiting: Coroutine[Any, Any, http.Response | None] | None = field(default=None, repr=False)  # what `request` could not do at once
    _messages: WebSocketMessages | None = field(default=None, repr=False)

    @property
    def unchanged(self) -> bool:
        """Whether requests are forwarded to OpenAI unchanged (`azure_openai_proxy_mode=openai`)."""
        return self.settings.mode == "openai"

    @property
    def timeouts(self) -> Timeouts:
        """The time-outs of the request: a model that serves the flex tier may take minutes until its first byte."""
        timeouts = self.settings.timeouts
        if self.call is None or self.call.tier != "flex":
            return timeouts
        flex = self.settings.flex_timeout
        return timeouts._replace(first_byte=flex, chunk=max(flex, timeouts.chunk))

    @property
    def streamed(self) -> bool:
        """Whether the request body was streamed, so that the request cannot be retried."""
        return self.client_request is not None and self.client_request.more

    @property
    def from_azure(self) -> ResponseFromAzure | None:
        """The response of the attempt that was started last. None: the response is not Azure's."""
        return None if self.to_azure is None else self.to_azure.response

    @property
    def messages(self) -> WebSocketMessages:
        """The messages of the WebSocket, once it is open."""
        if self._messages is None:
            frames = None if self.to_azure is None else self.to_azure.frames
            self._messages = WebSocketMessages(
                self.call, self.settings.normalize, self.keys, frames, self.attempts, self.admission, self.meter
            )
        return self._messages

    # The request

    def forward_unchanged(self, request: http.Request) -> http.Response | None:
        """Direct `request` to OpenAI and stream its body. Return a response for health checks and invalid requests, else None."""
        if health := local_responses.health(request.path, self.not_ready, self.ready_detail):
            return health
        base = self.settings.passthrough_endpoint
        if "host" in request.headers:
            request.headers["host"] = base.netloc
        aim(request, base, self.upstream)
        try:
            request_syntax.check_line(request)
            path, _, query = request.path.partition("?")
            request.path = request_syntax.encoded(base.prefix + path, query)
            self.verify(self.keys.restored(request))
        except errors.BadRequest as error:
            return errors.response(error)
        request.stream = True if self.meter is None else self.meter.upload(rewrite=True)
        return None

    def request_head(self, request: http.Request) -> None:
        """Reject a request before its body is read if neither the proxy nor the client has a key. Sets `early`."""
        settings = self.settings
        if self.unchanged or self.replay or any(b.token or b.entra for b in settings.backends) or credentials.seen(request.headers):
            return
        if self.own_keys:
            return
        path, _, query = request.path.partition("?")
        if operations.reaches_azure(operation_method(request), path):
            try:
                credentials.choose("", request.headers, azure_request.Query.read(query).api_key or realtime.key(request.headers))
            except errors.NoKey as error:
                self.early = errors.response(error)

    def may_stream_upload(self, request: http.Request) -> bool:
        """Whether a large request body can be forwarded before it is complete."""
        return self.replay is None and operations.may_stream_upload(request.method, path_of(request), request.headers)

    def to_scan(self, request: http.Request) -> tuple[bytes, tuple[str, ...]] | None:
        """The body and the names of the members to find in it, if it is large and must be scanned in slices before `request` is called."""
        content = request.raw_content or b""
        if len(content) <= LARGE or not large_bodies.is_large(content, request.headers.get("content-type", "")):
            return None
        row = operations.row(operation_method(request), path_of(request))
        more: tuple[str, ...] = (local_responses.MODERATION_INPUTS,) if row.handled_by == "moderations" else ()
        if (len(self.settings.backends) > 1 or self.shared.owners) and row.sessions and row.path.startswith("/responses"):
            more = response_items.PLACES
        if self.admission is not None and row.path.startswith("/responses"):
            more = (*more, named_models.OF_TOOLS)
        return content, (*row.models, "stream", *more)

    def request(self, request: http.Request, start: bytes | None = None) -> http.Response | None:
        """Translate `request` in place for Azure, or return a response. `start`: the available beginning of a streamed body.

        If neither is possible at once, `waiting` is set: it does the rest and returns the response, if there is one.

        Raises:
            ProxyError: the request cannot be served; the error is the client's response.
        """
        if self.early is not None:  # without the patched HTTP layer, which sends it before the body is read
            return self.early
        arrival = Arrival.read(request, start, self.settings.replace_apiversions)
        self.keys.read((*self.settings.tokens, *credentials.seen(request.headers, arrival.query.api_key)))
        if (response := local_answers.before_reading(arrival, self.not_ready, self.ready_detail)) is not None:
            return response
        if self.own_keys and (response := local_answers.key_page(arrival, self.admission)) is not None:
            return response
        call = self._recognise(arrival)
        if call is None:
            return local_responses.not_found()
        answer = local_answers.of_operation(call, arrival, self.settings, self.discovered, self.large, self.admission)
        if isinstance(answer, http.Response):
            return answer
        if answer is not None:
            self.waiting = answer
            return None
        if self.replay:
            self.recorded = self.replay.find(call, request)
            if self.meter is not None:
                self.meter.replayed = self.recorded is not None
            if (response := self.replay.respond(self.recorded, request)) is not None:
                return response
        if self.recorded is not None:  # a local server plays the recording at its original pace
            return None
        if self.admission is not None:
            admitted = self.admission.admit(call, arrival.content, request.headers.get("content-type", ""))
            if admitted is not None:
                self.waiting = self._dispatch_later(admitted, call, arrival)
                return None
        self._dispatch(call, arrival)
        return None

    def _recognise(self, arrival: Arrival) -> Call | None:
        """Recognise the operation, and check the models that it names. None for a path that the API does not have.

        Raises:
            ProxyError: the request is invalid, or the client may not use a model.
        """
        request, _, path, query, content, _ = arrival
        several = len(self.settings.backends) > 1
        wanted = None
        if several or self.shared.owners:  # the last backend that is left cannot read the items of the others
            wanted = operations.Wanted(request.headers.fields, several and self.settings.session_affinity)
        self.call = call = operations.recognise(
            operation_method(request), path, request.headers, content, query.rest, self.large, details=self.meter is not None, wanted=wanted
        )
        if self.meter is not None:
            self.meter.call = call
        if call is not None and self.admission is not None:
            # A server may take the model of a WebSocket from its query, before the first message.
            in_query = query.models if call.endpoint.in_query_too or call.method == "WS" else ()
            named_models.check_request(self.admission, call, in_query, request.headers, content, self.large)
        return call

    async def _dispatch_later(self, admitted: Awaitable[None], call: Call, arrival: Arrival) -> None:
        await admitted
        self._dispatch(call, arrival)

    def _dispatch(self, call: Call, arrival: Arrival) -> None:
        """Choose a backend and translate the request for it."""
        request, settings = arrival.request, self.settings
        self.client_request = client_request = azure_request.ClientRequest(
            request.headers, arrival.query, arrival.content, self.large, more=arrival.more
        )
        client = "" if self.admission is None else self.admission.client.name
        self.attempts = attempts = Attempts(settings, self.shared, call, client_request, self.reads_usage, client)
        self.to_azure = RequestToAzure(
            settings,
            self.shared,
            call,
            client_request,
            attempts,
            self.keys,
            f"{request.scheme}://{request.host_header or request.host}",
            self.upstream,
            self.own_keys,
            self.admission,
            self.meter,
        )
        try:
            self.to_azure.send(request, attempts.first())
        except BaseException:
            attempts.end()
            raise

    def verify(self, request: http.Request) -> None:
        """Check a request that was changed after its translation, before it is sent.

        Raises:
            BadRequest: the request line or headers could smuggle another request, or reach a path outside the API.
        """
        if self.unchanged:
            request_syntax.check(request, self.settings.passthrough_endpoint.prefix, "/")
        elif azure := self.from_azure:
            request_syntax.check(request, azure.request.base.prefix)
        else:  # a local server plays a recording
            request_syntax.check(request, "", "/")

    # Called by the upstream leg

    def hold_mode(self, response: http.Response) -> Hold | Peek:
        """How much of the response to buffer before the client receives any part of it."""
        azure = self.from_azure
        return Hold.NOTHING if azure is None else azure.hold_mode(response)

    def next_attempt(self, request: http.Request, what: Failure | http.Response) -> Decision:
        """Decide whether to retry a failed attempt. For a `Retry`, `request` is rewritten in place for the next attempt."""
        return GIVE_UP if self.to_azure is None else self.to_azure.next_attempt(request, what)

    def broke_off(self, failure: Failure) -> None:
        """Record that the response failed after the client had received a part of it."""
        if self.attempts:
            self.attempts.broke_off(failure)
        if self.meter is not None:
            self.meter.broke_off(failure)

    # The response

    def response_head(self, response: http.Response) -> None:
        """Translate the response headers, and choose between streaming and buffering the body."""
        if self.meter is not None:
            self.meter.head(response)
        if self.unchanged:
            response.stream = True
        else:
            self._translate_head(response)
        if response.stream and self.client_request and (azure := self.from_azure):  # it may take minutes
            drop_index(self.client_request.headers)
            drop_index(azure.request.headers)
        if self.meter is not None and (response.stream or response.status_code == 101):
            azure = self.from_azure
            events = azure is not None and azure.stream is not None
            self.meter.stream_head(response, events=events or (self.to_azure is not None and self.to_azure.frames is not None))

    def _translate_head(self, response: http.Response) -> None:
        azure, upgraded = self.from_azure, response.status_code == 101
        if upgraded and self.attempts:
            self.attempts.upgraded()
        client_headers.set_connection(response, self.client_request.headers if self.client_request else None, played=bool(self.recorded))
        if azure is not None and not upgraded:
            azure.translate_head(response)
        if self.recorded and response.raw_content is None and not upgraded:
            response.stream = True  # at its original pace
        client_headers.set_own(response.headers, self.attempts, is_azures=azure is not None, debug=self.settings.debug_headers)
        if self.admission is not None:
            self.admission.set_headers(response.headers)
        local_responses.add_cors(response, self.origin)

    def response_to_scan(self, response: http.Response, content: bytes | None) -> tuple[bytes, tuple[str, ...]] | None:
        """The body and the members to find in it, if it is large and must be scanned in slices before `response_body` is called."""
        azure = self.from_azure
        return None if azure is None else azure.to_scan(response, content)

    def response_body(self, response: http.Response, content: bytes | None = None, large: LargeBody | None = None) -> None:
        """Translate a buffered body. `content`: the decompressed body; `large`: the result of scanning a large one."""
        azure = self.from_azure
        if azure is not None and not response.stream and response.status_code != 101:
            azure.translate_body(response, decompressed(response) if content is None else content, large)

    def last_event(self, error: errors.ProxyError) -> bytes:
        """The error event that ends a truncated stream, in the format of its other events."""
        azure = self.from_azure
        stream = (azure and azure.stream) or openai_response.ResponseStream(normalize=False, encoding=None)
        return stream.failure({"message": error.message, "type": error.type, "param": error.param, "code": error.code})

    # The end

    def finish(self) -> None:
        """End the attempts: the response is complete, or the request has failed."""
        if self.attempts:
            self.attempts.end()

    def facts(self) -> RequestFacts:
        """The facts about the request that are recorded on its flow."""
        azure = self.from_azure
        whole = azure and self.client_request and not self.client_request.more
        return RequestFacts(
            call=self.call,
            deployment=azure.request.deployment if azure else None,
            content=self.client_request.content if self.client_request and whole else None,
            attempts=self.attempts.tried if self.attempts else (),
            secrets=self.keys.secrets,
        )

    def measure_end(self, flow: http.HTTPFlow, body: bytes | None, *, shown: bool) -> CallRecord | None:
        """Make the usage record. `body`: Azure's body, decompressed, if it was buffered; `shown`: the record is needed now."""
        meter = self.meter
        if meter is None:
            return None
        if meter.tracing and self.client_request and not self.client_request.more:
            meter.keep_messages(self.client_request.content, body)
        parsed = None
        if azure := self.from_azure:
            if azure.stream and azure.stream.broken:
                meter.broke_off(errors.Failure(502, "upstream_error", "Azure's compressed response cannot be read."))
            parsed, azure.parsed = azure.parsed, None
        if flow.response and not flow.error and not shown:
            meter.end_soon(flow.response, body, parsed=parsed)
        else:
            meter.end(flow.response, body, flow.error.msg if flow.error else None, parsed=parsed)
        return meter.record

    def measure_websocket_end(self, websocket: WebSocketData | None) -> CallRecord | None:
        """Make the usage record of a WebSocket. Return it with the tokens and the cost of all its responses."""
        if self.meter is None or not websocket:
            return None
        self.meter.socket_ended(by_client=bool(websocket.closed_by_client), normal=websocket.close_code != ABNORMAL)
        return self.meter.with_responses
