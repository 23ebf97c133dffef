"""The registry of running exchanges, and the operations on them used by mitmproxy's hooks and by the patched HTTP layer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from azure_openai_proxy import errors
from azure_openai_proxy.api import large_bodies, local_responses, realtime, redaction, request_compression, request_syntax
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.egress.pool import Pools
from azure_openai_proxy.egress.request import Body, UpstreamRequest
from azure_openai_proxy.formats.json_scan import Turns
from azure_openai_proxy.inspection import request_replay
from azure_openai_proxy.mitmproxy_patches import install
from azure_openai_proxy.routing.attempts import ATTEMPTS, Retry

from . import ingress, origins

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from mitmproxy import http

    from azure_openai_proxy.api.large_bodies import LargeBody
    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.config.runtime import Runtime
    from azure_openai_proxy.config.settings import Settings
    from azure_openai_proxy.egress.request import ClientSide, Hold
    from azure_openai_proxy.inspection.recorder import Recorder
    from azure_openai_proxy.routing.attempts import Decision

    from .exchange import Exchange

__all__ = ["Registry"]

logger = logging.getLogger(__name__)

_UNTRANSLATED = "The proxy failed to translate this request: its log says why."
HOLD_STREAM = 2.0
"""Maximum seconds for which the beginning of a stream is buffered."""


class Registry:
    """All running API requests. Implements `interface.HttpPolicy` for them."""

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
        return ingress.is_ours(flow, self.settings.hosts, absolute=install.absolute_form(flow))

    def refuses_page(self, flow: http.HTTPFlow, exchange: Exchange) -> bool:
        """Reject a request of a web page that may not use the proxy, without CORS headers. Return whether it was rejected."""
        if exchange.settings.origins.every or flow.is_replay:  # replayed by the owner
            return False
        refused = self.gate.refusal(
            flow, exchange.settings.origins, authority=install.client_host(flow), absolute=install.absolute_form(flow)
        )
        if refused is None:
            return False
        exchange.origin = None
        exchange.early = flow.response = errors.response(refused)
        return True

    def show(self, flow: http.HTTPFlow, exchange: Exchange, request: http.Request) -> None:
        """Set the flow's request to `request` with its keys masked. The exchange keeps the keys."""
        exchange.hidden = redaction.hide(request)
        exchange.masked = request.headers.fields, request.data.path
        _take_over(flow.request, request)

    def mask_changes(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        """Mask keys that a user or another addon has added to the request meanwhile."""
        fields, path = exchange.masked
        if flow.request.headers.fields is not fields or flow.request.data.path is not path:
            redaction.hide(flow.request)

    def translate(self, flow: http.HTTPFlow, exchange: Exchange, start: bytes | None = None) -> None:
        """Translate a copy of the request that contains the keys. The flow contains them only if mitmproxy itself sends the request."""
        request = redaction.with_secrets(flow.request, exchange.hidden)
        request.data.content = flow.request.data.content
        try:
            flow.response = exchange.request(request, start)
        except errors.ProxyError as error:
            flow.response = errors.response(error)
        except Exception:  # an untranslated request must never be sent
            logger.exception("A request could not be translated")
            flow.response = errors.response(errors.ProxyError(_UNTRANSLATED))
        if flow.response or install.sends_upstream(flow):
            self.show(flow, exchange, request)
        else:
            _take_over(flow.request, request)
        self.recorder.sent(flow, exchange.facts())

    async def translate_large(self, flow: http.HTTPFlow, exchange: Exchange, content: bytes, places: tuple[str, ...]) -> None:
        """Scan a large body in slices, so that other clients are served in between, and translate the request."""
        try:
            exchange.large = await large_bodies.read(self.turns, content, *places)
        except Exception:  # as in `translate`
            logger.exception("A request could not be translated")
            flow.response = errors.response(errors.ProxyError(_UNTRANSLATED))
        else:
            self.translate(flow, exchange)

    def answer_whole(self, flow: http.HTTPFlow, exchange: Exchange, azures: bytes | None, large: LargeBody | None = None) -> None:
        """Translate a buffered response, or end a streamed one. `azures`: Azure's body, decompressed."""
        assert flow.response
        exchange.response_body(flow.response, azures, large)
        if flow.request.method == "HEAD" and not flow.response.stream:
            flow.response.raw_content = b""  # mitmproxy would send it, and the client would read it as the next response
        self.finish(flow, exchange, azures)

    async def answer_large(self, flow: http.HTTPFlow, exchange: Exchange, azures: bytes, places: tuple[str, ...]) -> None:
        self.answer_whole(flow, exchange, azures, await large_bodies.read(self.turns, azures, *places))

    def frame(self, flow: http.HTTPFlow, exchange: Exchange, large: LargeBody | None = None) -> None:
        """Translate the last WebSocket message before it is sent."""
        assert flow.websocket
        exchange.frame(flow.websocket.messages, self.recorder.shelf.limit if self.recorder.shelf else 0, large)

    async def frame_large(self, flow: http.HTTPFlow, exchange: Exchange, content: bytes, places: tuple[str, ...]) -> None:
        assert flow.websocket
        message = flow.websocket.messages[-1]
        self.frame(flow, exchange, await large_bodies.read(self.turns, content, *places))
        if message.content is not content:
            message.content = b"".join([piece async for piece in self.turns.share(realtime.pieces_in_ascii(message.content))])

    async def translate_compressed(self, flow: http.HTTPFlow, exchange: Exchange) -> None:
        """Decompress the request body and translate the request."""
        try:
            await request_compression.decode(flow.request, exchange.settings.max_body)
        except errors.ProxyError as error:
            flow.response = errors.response(error)
            self.recorder.sent(flow, exchange.facts())
            return
        if scan := exchange.to_scan(flow.request):
            await self.translate_large(flow, exchange, *scan)
        else:
            self.translate(flow, exchange)

    def finish(self, flow: http.HTTPFlow, exchange: Exchange, azures: bytes | None = None) -> None:
        exchange.finish()
        self.recorder.ended(flow, exchange.facts(), azures)
        if exchange.attempts:
            flow.metadata[ATTEMPTS] = exchange.attempts.seen()

    # `HttpPolicy`, called by the HTTP layer: requests with keys, limits, and error responses

    def on_the_wire(self, flow: http.HTTPFlow) -> http.Request | errors.Failure:
        request = flow.request
        try:
            if exchange := self.exchanges.get(flow):
                fields, path = exchange.masked
                shown = redaction.with_secrets(request, exchange.hidden)
                # `Exchange.send` has checked the request; check it again only if a user or another addon has changed it.
                if exchange.unchanged or request.headers.fields is not fields or request.data.path is not path:
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
        """Whether the upstream leg sends this request instead of mitmproxy."""
        return install.sends_upstream(flow)

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
        return self.settings.fast_path and install.fast_path_available()

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

    def answer(self, failure: errors.Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        if flow and flow not in self.exchanges and not self.is_ours(flow):
            return None  # (a request with a malformed head has no flow; it was sent to the gateway)
        response = errors.response(errors.Failed(*failure))
        if flow and (exchange := self.exchanges.get(flow)) and exchange.attempts:
            exchange.attempts.say_when(response.headers, failure.status)
        origin = flow.request.headers.get("origin") if flow else None
        if flow and origin and self.settings.origins.allows(origin, install.client_host(flow)):
            local_responses.add_cors(response, origin)
        return response

    def last_event(self, failure: errors.Failure, flow: http.HTTPFlow) -> bytes | None:
        exchange = self.exchanges.get(flow)
        return exchange.last_event(errors.Failed(*failure)) if exchange else None


def _take_over(request: http.Request, other: http.Request) -> None:
    """Copy the data of `other` to `request`; both may be the same object."""
    request.data, request.stream = other.data, other.stream


class Policy:
    """`egress.request.Policy` for one exchange."""

    hold_stream = HOLD_STREAM

    def __init__(self, exchanges: Registry, flow: http.HTTPFlow, exchange: Exchange) -> None:
        self._exchanges, self._flow, self._exchange = exchanges, flow, exchange
        self.timeouts = exchange.settings.timeouts

    def upstream_request(self) -> tuple[Destination, http.Request] | errors.Failure:
        request = self._exchanges.on_the_wire(self._flow)
        if isinstance(request, errors.Failure):
            return request
        request.data.content = self._flow.request.data.content
        return Destination(request.data.host, request.data.port, request.data.scheme == b"https", self._exchange.proxy), request

    def hold(self, response: http.Response) -> Hold | Peek:
        return self._exchange.hold_mode(response)

    def next_attempt(self, failed: errors.Failure | http.Response) -> Decision:
        request = redaction.with_secrets(self._flow.request, self._exchange.hidden)
        request.data.content = self._flow.request.data.content
        decision = self._exchange.next_attempt(request, failed)
        if isinstance(decision, Retry):
            self._exchanges.show(self._flow, self._exchange, request)
        return decision

    def broke_off(self, failure: errors.Failure) -> None:
        self._exchange.broke_off(failure)
