"""The registry of running exchanges, and the operations on them used by mitmproxy's hooks and by the patched HTTP layer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mitmproxy import ctx

from azure_openai_proxy import errors
from azure_openai_proxy.accounting.socket_responses import response_id
from azure_openai_proxy.api import large_bodies, local_responses, realtime, request_compression, request_syntax
from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.egress.pool import Pools
from azure_openai_proxy.egress.request import UpstreamRequest
from azure_openai_proxy.egress.request_body import Body
from azure_openai_proxy.formats.json_scan import Turns
from azure_openai_proxy.inspection import request_replay
from azure_openai_proxy.mitmproxy_patches import install
from azure_openai_proxy.routing.attempts import ATTEMPTS

from . import client_keys, ingress, origins
from .admission import Admission
from .arrival import is_upgrade, operation_method, path_of
from .request_keys import key_in_path
from .socket_admission import SocketAdmission, cancellation, error_event
from .upstream_policy import Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Iterator, Sequence

    from mitmproxy import http
    from mitmproxy.websocket import WebSocketMessage

    from azure_openai_proxy.accounting.meter import Meter
    from azure_openai_proxy.accounting.teams import Teams
    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.config.runtime import Runtime
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.egress.interface import ClientSide
    from azure_openai_proxy.inspection.recorder import Recorder

    from .exchange import Exchange

__all__ = ["Registry"]

logger = logging.getLogger(__name__)

_UNCHECKED = "The proxy failed to check the key of this request: its log says why."
_UNTRANSLATED = "The proxy failed to translate this request: its log says why."


class Registry:
    """All running API requests. Implements `client_leg.interface.HttpPolicy` for them."""

    def __init__(self, runtime: Runtime, recorder: Recorder) -> None:
        self.runtime = runtime
        self.recorder = recorder
        self.gate = origins.Gate()
        self.turns = Turns()
        self.pools = Pools()
        self.exchanges: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()

    @property
    def settings(self) -> Settings:
        """The current settings. A running request keeps those in effect when it arrived."""
        return self.runtime.settings

    def is_ours(self, flow: http.HTTPFlow) -> bool:
        if flow.is_replay:
            return request_replay.is_ours(flow)
        return ingress.is_ours(flow, self.settings.hosts, absolute=ingress.absolute_form(flow, records_form=install.patches_http()))

    def authenticate(self, flow: http.HTTPFlow, exchange: Exchange, teams: Teams) -> Awaitable[None] | None:
        """Find the client of a request by its key. A request that it may not send gets an early response.

        A large upload is admitted here, before its body. Return an awaitable if the counters are not known yet.
        """
        request = flow.request
        websocket = is_upgrade(request)
        if exchange.unchanged:  # the client's key would reach OpenAI
            refused = errors.Refused(503, "server_error", "client_keys_unavailable", "Client keys need azure_openai_proxy_mode: azure.")
            exchange.early = errors.response(refused)
            return None
        try:
            client = client_keys.authenticate(teams, exchange.settings, request, websocket=websocket)
            if client is None:
                return None
            settings = exchange.settings = teams.settings_of(client, exchange.settings)
            keys = client_keys.presented(request, websocket=websocket)
            exchange.admission = admission = Admission(teams, client, settings, keys, teams.directory.group(client))
            admission.socket = SocketAdmission(admission) if websocket else None
            if exchange.meter is not None:
                exchange.meter.client, exchange.meter.holder, admission.meter = client.name, admission, exchange.meter
            admission.check_path(request.path)
            method, path = operation_method(request), path_of(request)
            exchange.reads_usage |= admission.counts_tokens
            if (admission.is_limited or client.models) and operations.reaches_azure(method, path):
                admission.check_operation(method, path)
                if admission.is_limited and exchange.may_stream_upload(request):
                    return admission.admit_upload(operations.row(request.method, path))
        except Exception as error:  # noqa: BLE001 - an unchecked request must never be sent
            exchange.early = errors.response(_unchecked(error))
        return None

    async def authenticate_later(self, exchange: Exchange, waiting: Awaitable[None]) -> None:
        """Wait for the counters of a shared store."""
        try:
            await waiting
        except Exception as error:  # noqa: BLE001 - as in `authenticate`
            exchange.early = exchange.early or errors.response(_unchecked(error))

    def refuses_page(self, flow: http.HTTPFlow, exchange: Exchange) -> bool:
        """Reject a request of a web page that may not use the proxy, without CORS headers. Return whether it was rejected."""
        rule = exchange.settings.origins
        bring_keys = exchange.own_keys and not rule.patterns and exchange.keys_required
        if rule.every or flow.is_replay or bring_keys:  # replayed by the owner
            return False
        refused = self.gate.refusal(
            flow,
            exchange.settings.origins,
            authority=ingress.client_host(flow),
            absolute=ingress.absolute_form(flow, records_form=install.patches_http()),
        )
        if refused is None:
            return False
        exchange.origin = None
        exchange.early = flow.response = errors.response(refused)
        return True

    def refuse_key_in_path(self, exchange: Exchange) -> None:
        """Refuse a request for Azure whose path contains the client's key, unless that is of no use: the proxy has a key."""
        if not (exchange.unchanged or any(backend.token or backend.entra for backend in exchange.settings.backends)):
            exchange.early = exchange.early or errors.response(key_in_path())

    def show(self, flow: http.HTTPFlow, exchange: Exchange, request: http.Request) -> None:
        """Set the flow's request to `request` with its keys masked. The exchange keeps the keys."""
        exchange.keys.hide(request)
        _take_over(flow.request, request)

    def translate(self, flow: http.HTTPFlow, exchange: Exchange, start: bytes | None = None) -> Awaitable[None] | None:
        """Translate a copy of the request that contains the keys. The flow contains them only if mitmproxy itself sends the request."""
        request = exchange.keys.restored(flow.request)
        data, meter = flow.request.data, exchange.meter
        request.data.content = data.content
        if meter is not None and start is None and meter.request_bytes is None:
            meter.request_read(len(data.content or b""), data.timestamp_end)
        try:
            flow.response = exchange.request(request, start)
        except Exception as error:  # noqa: BLE001 - an untranslated request must never be sent
            flow.response = self._untranslated(exchange, error)
        if exchange.waiting is not None:
            return self._translate_later(flow, exchange, request, exchange.waiting)
        self._translated(flow, exchange, request)
        return None

    async def _translate_later(
        self, flow: http.HTTPFlow, exchange: Exchange, request: http.Request, waiting: Awaitable[http.Response | None]
    ) -> None:
        """Translate the request once `waiting` is done. The client may have left meanwhile."""
        try:
            flow.response = await waiting
        except Exception as error:  # noqa: BLE001 - as in `translate`
            flow.response = self._untranslated(exchange, error)
        exchange.waiting = None
        self._translated(flow, exchange, request)

    def _untranslated(self, exchange: Exchange, error: Exception) -> http.Response:
        """The response to a request that is not sent, and counts for no limit."""
        if exchange.admission is not None and exchange.admission.held is not None:
            exchange.admission.held.settle(0, refund=True)
        if isinstance(error, errors.ProxyError):
            return errors.response(error)
        logger.error("A request could not be translated", exc_info=error)
        return errors.response(errors.ProxyError(_UNTRANSLATED))

    def _translated(self, flow: http.HTTPFlow, exchange: Exchange, request: http.Request) -> None:
        meter = exchange.meter
        if flow.response or self.takes_upstream(flow):
            self.show(flow, exchange, request)
        else:
            _take_over(flow.request, request)
            if meter is not None:
                meter.sending()
        if self.recorder.reads_requests:
            self.recorder.record_upstream_request(flow, exchange.facts())

    async def translate_large(self, flow: http.HTTPFlow, exchange: Exchange, content: bytes, places: tuple[str, ...]) -> None:
        """Scan a large body in slices, so that other clients are served in between, and translate the request."""
        try:
            exchange.large = await large_bodies.read(self.turns, content, *places)
        except Exception as error:  # noqa: BLE001 - as in `translate`
            flow.response = self._untranslated(exchange, error)
        else:
            if (waiting := self.translate(flow, exchange)) is not None:
                await waiting

    def finish_response(self, flow: http.HTTPFlow, exchange: Exchange, azure_body: bytes | None, large: LargeBody | None = None) -> None:
        """Translate a buffered response, or end a streamed one. `azure_body`: Azure's body, decompressed."""
        assert flow.response
        exchange.response_body(flow.response, azure_body, large)
        if flow.request.method == "HEAD" and not flow.response.stream:
            flow.response.raw_content = b""  # mitmproxy would send it, and the client would read it as the next response
        self.finish(flow, exchange, azure_body)

    async def finish_large_response(self, flow: http.HTTPFlow, exchange: Exchange, azure_body: bytes, places: tuple[str, ...]) -> None:
        self.finish_response(flow, exchange, azure_body, await large_bodies.read(self.turns, azure_body, *places))

    def frame(self, flow: http.HTTPFlow, exchange: Exchange, large: LargeBody | None = None) -> Awaitable[None] | None:
        """Translate the last WebSocket message before it is sent, unless the limits of the client do not allow it."""
        assert flow.websocket
        message = flow.websocket.messages[-1]
        socket = None if exchange.admission is None else exchange.admission.socket
        if socket is not None and not (message.injected and message.from_client):
            if message.injected and socket.is_own(message.content):
                exchange.messages.drop_oldest(flow.websocket.messages, self._kept)
                return None
            try:
                waiting = exchange.messages.admit(message.content, large, from_client=message.from_client)
            except Exception as error:  # noqa: BLE001 - as in `authenticate`
                self._refuse_frame(flow, exchange, message, _unchecked(error), large)
                return None
            if waiting is not None:
                return self._frame_later(flow, exchange, message, waiting, large)
        exchange.messages.translate(flow.websocket.messages, self._kept, large)
        return None

    @property
    def _kept(self) -> int:
        return self.recorder.shelf.limit if self.recorder.shelf else 0

    async def _frame_later(
        self, flow: http.HTTPFlow, exchange: Exchange, message: WebSocketMessage, waiting: Awaitable[None], large: LargeBody | None
    ) -> None:
        assert flow.websocket
        try:
            await waiting
        except Exception as error:  # noqa: BLE001 - as in `authenticate`
            self._refuse_frame(flow, exchange, message, _unchecked(error), large)
        else:
            exchange.messages.translate(flow.websocket.messages, self._kept, large)

    def _refuse_frame(
        self, flow: http.HTTPFlow, exchange: Exchange, message: WebSocketMessage, error: errors.ProxyError, large: LargeBody | None
    ) -> None:
        """Tell the client that a response is refused: drop its message, or cancel the response that Azure has started."""
        assert flow.websocket
        assert exchange.admission
        assert exchange.admission.socket
        if message.from_client:
            sends = exchange.admission.socket.sends_refusal(message.content, error)
            message.drop()
            exchange.messages.drop_oldest(flow.websocket.messages, self._kept)
            if not sends:
                return
        else:
            _send_message(flow, cancellation(response_id(message.content)), to_client=False)
            exchange.messages.translate(flow.websocket.messages, self._kept, large)
        event = error_event(error)
        exchange.admission.socket.own.append(event)
        _send_message(flow, event, to_client=True)

    async def frame_large(self, flow: http.HTTPFlow, exchange: Exchange, content: bytes, places: tuple[str, ...]) -> None:
        assert flow.websocket
        message = flow.websocket.messages[-1]
        if (waiting := self.frame(flow, exchange, await large_bodies.read(self.turns, content, *places))) is not None:
            await waiting
        if message.content is not content:
            message.content = b"".join([piece async for piece in self.turns.share(realtime.pieces_in_ascii(message.content))])

    async def translate_compressed(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        """Decompress the request body and translate the request."""
        if exchange.meter is not None:
            exchange.meter.request_read(len(flow.request.raw_content or b""), flow.request.timestamp_end)
        try:
            await request_compression.decode(flow.request, exchange.settings.max_body)
        except errors.ProxyError as error:
            flow.response = errors.response(error)
            self.recorder.record_upstream_request(flow, exchange.facts())
            return
        if scan := exchange.to_scan(flow.request):
            await self.translate_large(flow, exchange, *scan)
        elif (waiting := self.translate(flow, exchange)) is not None:
            await waiting

    def finish(self, flow: http.HTTPFlow, exchange: Exchange, azure_body: bytes | None = None) -> None:
        exchange.finish()
        self.recorder.record_body(flow, exchange.facts(), azure_body)
        record = exchange.measure_end(flow, azure_body, shown=self.recorder.watched)
        self.recorder.record_end(flow, exchange.facts(), record)
        if exchange.attempts:
            flow.metadata[ATTEMPTS] = exchange.attempts.summary()
        if exchange.admission is not None and (flow.error or not flow.websocket):
            exchange.admission.end_all()

    def meters(self) -> list[Meter | None]:
        """The meters of all flows that exist; None for one that is not measured."""
        return [exchange.meter for exchange in self.exchanges.values()]

    # `HttpPolicy`, called by the HTTP layer: requests with keys, limits, and error responses

    def request_with_keys(self, flow: http.HTTPFlow) -> http.Request | errors.Failure:
        request = flow.request
        try:
            if exchange := self.exchanges.get(flow):
                shown = exchange.keys.restored(request)
                # `RequestToAzure.send` has checked the request; check it again only if a user or another addon has changed it.
                if exchange.unchanged or exchange.keys.is_changed(request):
                    exchange.verify(shown)
                else:
                    request_syntax.check_line(request)
                return shown
            if request.is_http2:
                request_syntax.check_line(request)
        except errors.BadRequest as error:
            return errors.Failure(error.status, "invalid_request", error.message)
        return request

    def takes(self, flow: http.HTTPFlow) -> bool:
        return flow in self.exchanges and self.takes_upstream(flow)

    @staticmethod
    def takes_upstream(flow: http.HTTPFlow) -> bool:
        """Whether the upstream leg sends this request instead of mitmproxy, so that the flow need not contain the keys."""
        return flow.is_replay != "request" and install.patches_http()

    def connections_ahead(self, modes: Sequence[str]) -> Iterator[Coroutine[Any, Any, None]]:
        """Coroutines that open one connection to each backend in advance. None in openai mode or behind another proxy."""
        if self.settings.mode == "openai" or any(mode.startswith("upstream:") for mode in modes):
            return
        for base in {backend.base for backend in self.settings.backends}:
            destination = Destination(base.host, base.port, base.scheme == "https")
            yield self.pools.warm(destination, self.settings.timeouts.connect)

    def send_upstream(self, flow: http.HTTPFlow, client: ClientSide, *, streamed: bool) -> UpstreamRequest:
        return UpstreamRequest(Policy(self, flow, self.exchanges[flow]), client, self.pools, Body(streamed=streamed))

    @property
    def fast_path(self) -> bool:
        return self.settings.fast_path and install.fast_path() is not None

    def early_response(self, flow: http.HTTPFlow) -> http.Response | None:
        exchange = self.exchanges.get(flow)
        return exchange.early if exchange else None

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        exchange = self.exchanges.get(flow)
        return None if exchange is None or exchange.unchanged else exchange.settings.max_body

    def max_message(self, flow: http.HTTPFlow) -> int | None:
        exchange = self.exchanges.get(flow)
        return exchange.settings.max_body if exchange else None

    def may_stream_upload(self, flow: http.HTTPFlow) -> bool:
        exchange = self.exchanges.get(flow)
        return exchange is not None and not exchange.unchanged and exchange.may_stream_upload(flow.request)

    def start_streamed_upload(self, flow: http.HTTPFlow, start: bytes) -> None:
        self.translate(flow, self.exchanges[flow], start)

    def error_response(self, failure: errors.Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        if flow and flow not in self.exchanges and not self.is_ours(flow):
            return None  # (a request with a malformed head has no flow; it was sent to the gateway)
        response = errors.response(errors.Failed(*failure))
        exchange = self.exchanges.get(flow) if flow else None
        if exchange and exchange.attempts:
            exchange.attempts.set_retry_after(response.headers, failure.status)
            if exchange.settings.debug_headers:
                response.headers.update(exchange.attempts.headers())
        if exchange and exchange.meter is not None:
            exchange.meter.error_response(failure, response)
        if exchange and exchange.admission is not None:
            exchange.admission.set_headers(response.headers)
        origin = flow.request.headers.get("origin") if flow else None
        if flow and origin and self.settings.origins.allows(origin, ingress.client_host(flow)):
            local_responses.add_cors(response, origin)
        return response

    def last_event(self, failure: errors.Failure, flow: http.HTTPFlow) -> bytes | None:
        exchange = self.exchanges.get(flow)
        if exchange is None:
            return None
        event = exchange.last_event(errors.Failed(*failure))
        if exchange.meter is not None:
            exchange.meter.last_event(2 + len(event))  # the HTTP layer puts a blank line before it
        return event


def _unchecked(error: Exception) -> errors.ProxyError:
    """The error of a request whose key or limits do not allow it, or could not be checked."""
    if isinstance(error, errors.ProxyError):
        return error
    logger.error("The key of a request could not be checked", exc_info=error)
    return errors.ProxyError(_UNCHECKED)


def _send_message(flow: http.HTTPFlow, content: bytes, *, to_client: bool) -> None:
    """Send a message of the proxy's own over a WebSocket."""
    ctx.master.commands.call("inject.websocket", flow, to_client, content, True)  # noqa: FBT003 - text


def _take_over(request: http.Request, other: http.Request) -> None:
    """Copy the data of `other` to `request`; both may be the same object."""
    request.data, request.stream = other.data, other.stream
