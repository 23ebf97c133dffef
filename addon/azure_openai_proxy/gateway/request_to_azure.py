"""The request for Azure: written anew from the client's request for each attempt, until a response is delivered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mitmproxy import http

from azure_openai_proxy import errors
from azure_openai_proxy.api import credentials, realtime, request_syntax
from azure_openai_proxy.api import request as azure_request
from azure_openai_proxy.routing.decisions import GIVE_UP, Retry

from .request_target import aim
from .response_from_azure import ResponseFromAzure

if TYPE_CHECKING:
    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.request import AzureRequest, ClientRequest
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.errors import Failure
    from azure_openai_proxy.routing.attempts import Attempts
    from azure_openai_proxy.routing.decisions import Decision, Plan
    from azure_openai_proxy.routing.state import Shared

    from .admission import Admission
    from .ingress import Upstream
    from .request_keys import RequestKeys

__all__ = ["RequestToAzure"]

_NO_HEADERS = http.Headers()


@dataclass(slots=True)
class RequestToAzure:
    """A client's request on its way to Azure. `response` is that of the attempt which was started last."""

    settings: Settings
    shared: Shared = field(repr=False)
    call: Call
    client_request: ClientRequest = field(repr=False)
    attempts: Attempts = field(repr=False)
    keys: RequestKeys
    here: str  # the proxy's base URL as the client uses it
    upstream: Upstream | None = None  # upstream proxy, if mitmproxy sends the request
    own_keys: bool = False  # the keys of clients are the proxy's, so none goes to Azure
    admission: Admission | None = field(default=None, repr=False)  # the client of a key; None: no keys are required
    meter: Meter | None = field(default=None, repr=False)  # None: nothing receives usage records
    response: ResponseFromAzure | None = field(default=None, repr=False)  # None until a request is translated
    frames: realtime.Frames | None = field(default=None, repr=False)  # renames models in the messages of a WebSocket
    _failed_in_stream: bool = False  # an attempt failed with an error at the beginning of its stream

    def send(self, request: http.Request, plan: Plan) -> None:
        """Rewrite `request` in place for the backend and model of `plan`, from the client's original request.

        Raises:
            ProxyError: the request cannot be sent to this backend.
        """
        call = self.call
        sent = self._translated(plan)
        self.response = ResponseFromAzure(
            sent, self.settings, call, self.attempts, self.keys, self.here, self.meter, self._failed_in_stream
        )
        request.path, request.headers = sent.path, sent.headers
        if self.admission is not None:
            self.admission.hide_key(request)
        if self.meter is not None:
            tried = self.attempts.tried[-1]
            self.meter.attempt(plan.target.backend, sent.deployment, tried.repaired, tried.reason)
            if self.meter.tracing:
                self.meter.propagate(request.headers)
        self._set_body(request, sent)
        aim(request, sent.base, self.upstream)
        try:
            request_syntax.check(request, sent.base.prefix)
            if self.admission is not None:
                self.admission.check_path(request.path)
        except errors.BadRequest:
            self.response = None  # the response will be the proxy's own
            raise

    def _translated(self, plan: Plan) -> AzureRequest:
        """Translate the client's request for the backend and model of `plan`."""
        target, call, client_request = plan.target, self.call, self.client_request
        backend, admission, meter, mapper = target.backend, self.admission, self.meter, self.settings.mapper

        def deployment(model: str) -> str:  # kept by `frames`, hence without `self`
            if admission is not None and not (call.deployed or client_request.more):
                admission.check_model(model)
            if model == call.model and target.deployment is not None:
                return target.deployment
            named = plan.renamed or backend.deployment(model, mapper, native=bool(call.native))
            if meter is not None:
                meter.frame_names(model, named)
            return named

        entra = self.shared.tokens.token(backend) if backend.entra else None
        if self.own_keys:
            credential = credentials.choose(backend.token, _NO_HEADERS, entra=entra)
        else:
            credential = credentials.choose(backend.token, client_request.headers, client_request.query.api_key, entra=entra)
        self.keys.add(entra)
        named = deployment
        if call.method == "WS":
            self.frames = realtime.Frames(call.endpoint.models, deployment)
            named = self.frames.deployment_for
            if call.model is not None:
                self.frames.deployment_for(call.model)
        batch_lines = self.settings.max_body if self.settings.map_batch_files else 0
        return azure_request.translate(
            call, plan.client_request, target, named, credential, batch_lines=batch_lines, add_usage=plan.add_usage
        )

    def _set_body(self, request: http.Request, sent: AzureRequest) -> None:
        """Set the body and its length. The rest of a streamed body is rewritten as it passes."""
        had = self.client_request.headers
        if self.client_request.more:
            request.stream = sent.stream if self.meter is None else self.meter.upload(rewrite=sent.stream)
            length = request.headers.pop("content-length", None)  # without a length, `http_stream` uses chunked framing
            if length is not None and sent.growth is not None:
                request.headers["content-length"] = str(int(length) + sent.growth)
        elif sent.content or "content-length" in had or "transfer-encoding" in had:
            request.raw_content, length = sent.content, str(len(sent.content))
            if request.headers.get("content-length") != length:
                request.headers["content-length"] = length

    def next_attempt(self, request: http.Request, what: Failure | http.Response) -> Decision:
        """Decide whether to retry a failed attempt. For a `Retry`, `request` is rewritten in place for the next attempt."""
        if self.meter is not None:
            self.meter.attempt_failed(what)
        assert self.response, "the attempt was sent"
        in_stream = self.response.failed_in_stream
        self._failed_in_stream |= in_stream
        decision = self.attempts.next_attempt(what, in_stream=in_stream)
        if not isinstance(decision, Retry):
            return decision
        self.response.discard()
        try:
            self.send(request, decision.plan)
        except errors.ProxyError:  # this backend needs a key from the client, which sent none
            self.attempts.end()
            return GIVE_UP
        return decision
