"""What the upstream leg asks about a request: where to send it, how much of the response to hold back, and whether to retry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from azure_openai_proxy import errors
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.routing.decisions import Retry

if TYPE_CHECKING:
    from mitmproxy import http

    from azure_openai_proxy.api.stream_probe import Peek
    from azure_openai_proxy.egress.interface import Hold
    from azure_openai_proxy.routing.decisions import Decision

    from .exchange import Exchange
    from .registry import Registry

__all__ = ["Policy"]


class Policy:
    """`egress.interface.Policy` for one exchange."""

    def __init__(self, registry: Registry, flow: http.HTTPFlow, exchange: Exchange) -> None:
        self._registry, self._flow, self._exchange = registry, flow, exchange
        self.timeouts = exchange.timeouts

    def upstream_request(self) -> tuple[Destination, http.Request] | errors.Failure:
        if self._exchange.meter is not None:
            self._exchange.meter.sending()
        request = self._registry.request_with_keys(self._flow)
        if isinstance(request, errors.Failure):
            return request
        request.data.content = self._flow.request.data.content
        return Destination(request.data.host, request.data.port, request.data.scheme == b"https", self._exchange.proxy), request

    def hold(self, response: http.Response) -> Hold | Peek:
        return self._exchange.hold_mode(response)

    def next_attempt(self, failed: errors.Failure | http.Response) -> Decision:
        request = self._exchange.keys.restored(self._flow.request)
        request.data.content = self._flow.request.data.content
        decision = self._exchange.next_attempt(request, failed)
        if isinstance(decision, Retry):
            self._registry.show(self._flow, self._exchange, request)
        return decision

    def broke_off(self, failure: errors.Failure) -> None:
        self._exchange.broke_off(failure)
