"""What the upstream leg asks about a request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from mitmproxy import http

from azure_openai_proxy import errors
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.egress.interface import Hold
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.gateway.upstream_policy import Policy
from azure_openai_proxy.routing.decisions import GIVE_UP, Retry
from support.flows import ask, gateways, request_with_keys, somebody_elses

if TYPE_CHECKING:
    import pytest

    from azure_openai_proxy.addon import AzureOpenAIProxy
    from azure_openai_proxy.egress.interface import ClientSide
    from azure_openai_proxy.routing.decisions import Plan


def test_what_the_upstream_leg_asks(addon: AzureOpenAIProxy) -> None:
    """Of a request of ours its exchange decides; any other is mitmproxy's to send."""
    ours, other = ask(addon, gateways()), ask(addon, somebody_elses())
    assert (True, False) == (addon.registry.takes(ours), addon.registry.takes(other))
    policy = Policy(addon.registry, ours, addon.registry.exchanges[ours])
    failed = http.Response.make(503)
    assert (addon.settings.timeouts, Hold.FAILURE, GIVE_UP) == (policy.timeouts, policy.hold(failed), policy.next_attempt(failed))
    answer = addon.registry.error_response(errors.Failure(502, "upstream_error", "cut"), ours)
    assert answer
    assert "retry-after" not in answer.headers  # there is only one backend
    assert "x-azure-openai-proxy-reason" not in answer.headers
    exchange = addon.registry.exchanges[ours]
    exchange.settings = replace(exchange.settings, debug_headers=True)
    answer = addon.registry.error_response(errors.Failure(502, "upstream_error", "cut"), ours)
    assert answer
    assert "only" == answer.headers["x-azure-openai-proxy-reason"]
    addon.error(ours)
    assert [{"backend": "default", "cause": "503", "repaired": []}] == ours.metadata["azure_openai_attempts"]


async def test_a_request_goes_to_its_backend(addon: AzureOpenAIProxy) -> None:
    """The destination is the flow's, the request has the key; one that must not be sent is a failure."""
    flow = ask(addon, gateways())
    request = addon.registry.send_upstream(flow, cast("ClientSide", None), streamed=True)
    assert request.body.streamed
    planned = request.policy.upstream_request()
    assert not isinstance(planned, errors.Failure)
    destination, sent = planned
    assert (Destination("r.openai.azure.com", 443, tls=True), "client") == (destination, sent.headers["api-key"])
    flow.request.headers["x"] = "a\nb"
    assert isinstance(request.policy.upstream_request(), errors.Failure)


def test_a_request_that_is_sent_again_shows_no_key(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next backend's key is on the wire alone, as the first one's was."""
    ours = ask(addon, gateways())

    def resend(_: Exchange, request: http.Request, __: object) -> Retry:
        request.headers["api-key"] = "another"
        return Retry(cast("Plan", None))

    monkeypatch.setattr(Exchange, "next_attempt", resend)
    assert Policy(addon.registry, ours, addon.registry.exchanges[ours]).next_attempt(http.Response.make(503))
    assert "[key]" == ours.request.headers["api-key"]
    assert "another" == request_with_keys(addon, ours).headers["api-key"]
    assert "[key]" == ours.request.headers["api-key"]
