"""The registry of running exchanges: what mitmproxy's hooks and its HTTP layer ask about a flow."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from mitmproxy import http

from azure_openai_proxy import errors
from azure_openai_proxy.api.credentials import MASK
from azure_openai_proxy.config import origins, settings
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.gateway.registry import Registry
from support.flows import ask, gateways, request_with_keys, somebody_elses, status

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_openai_proxy.addon import AzureOpenAIProxy


def test_a_request_that_cannot_be_translated_does_not_leave(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the mistake: it would take the client's key to where the client sent it."""

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Exchange, "request", fail)
    assert 500 == status(ask(addon, gateways()))


def test_the_limit_is_for_requests_of_ours(addon: AzureOpenAIProxy) -> None:
    """mitmproxy's own rules hold for the rest."""
    ours, other = ask(addon, gateways()), ask(addon, somebody_elses())
    assert (256 << 20, None) == (addon.registry.max_body(ours), addon.registry.max_body(other))
    assert (256 << 20, None) == (addon.registry.max_message(ours), addon.registry.max_message(other))


def test_the_response_to_a_request_without_a_key_does_not_wait(addon: AzureOpenAIProxy) -> None:
    """It is there when the head is; for other requests there is none."""
    ours, other = gateways(), ask(addon, somebody_elses())
    del ours.request.headers["authorization"]
    addon.requestheaders(ours)
    assert (401, None) == ((early := addon.registry.early_response(ours)) and early.status_code, addon.registry.early_response(other))


def test_a_failure_below_the_hooks_is_told_in_openais_shape(addon: AzureOpenAIProxy) -> None:
    """To a page of another origin too; to whom is not ours, mitmproxy speaks."""
    failure = errors.Failure(413, "request_too_large", "too large")
    ours = addon.registry.error_response(failure, gateways(origin="https://page.example"))
    assert ours is not None
    assert "https://page.example" == ours.headers["access-control-allow-origin"]
    unread = addon.registry.error_response(failure, None)
    assert unread is not None
    assert 413 == unread.status_code
    assert addon.registry.error_response(failure, somebody_elses()) is None


KEYED = settings.Settings(origins=origins.allowed((), frozenset(), keyed=True))


def test_a_page_of_a_foreign_origin_is_refused(addon: AzureOpenAIProxy) -> None:
    """Before its body is read, and it may not read the answer, nor that of a failure below the hooks."""
    addon.runtime.settings = KEYED
    flow = gateways(origin="https://page.example")
    assert 403 == status(ask(addon, flow))
    assert addon.registry.early_response(flow) is flow.response
    assert flow.response
    addon.responseheaders(flow)
    failed = addon.registry.error_response(errors.Failure(413, "request_too_large", "too large"), flow)
    assert failed
    for response in (flow.response, failed):
        assert "access-control-allow-origin" not in response.headers
    assert addon.registry.early_response(ask(addon, gateways(origin="http://localhost:3000"))) is None


def test_a_replayed_request_of_a_page_is_the_owner_s(addon: AzureOpenAIProxy) -> None:
    """Only the owner can replay a flow."""
    addon.runtime.settings = KEYED
    flow = gateways(origin="https://page.example")
    ask(addon, flow)
    flow.is_replay, flow.response = "request", None
    assert not addon.registry.refuses_page(flow, addon.registry.exchanges[flow])


@pytest.mark.parametrize(
    ("path", "start"),
    [("/v1/chat/completions", b'data: {"error":'), ("/v1/responses", b'event: error\ndata: {"type":"error","sequence_number":8,"error":')],
)
def test_a_stream_that_breaks_off_ends_with_an_error_of_its_kind(path: str, start: bytes, addon: AzureOpenAIProxy) -> None:
    """A stream of typed events with a typed one; a flow that is not ours with none."""
    failure = errors.Failure(502, "upstream_error", "The connection upstream failed.")
    flow = ask(addon, gateways("POST", path, b'{"model":"m","stream":true}'))
    before = addon.registry.last_event(failure, flow)
    flow.response = http.Response.make(200, b"", {"content-type": "text/event-stream"})
    addon.responseheaders(flow)
    assert callable(flow.response.stream)
    flow.response.stream(b'data: {"type":"x","sequence_number":7}\n\n')
    event = addon.registry.last_event(failure, flow)
    assert event
    assert event.startswith(start)
    error = {"message": failure.message, "type": "server_error", "param": None, "code": "upstream_error"}
    assert error == json.loads(event.split(b"data: ")[1])["error"]
    assert before == b"data: %b\n\n" % json.dumps({"error": error}, separators=(",", ":")).encode()
    assert addon.registry.last_event(failure, somebody_elses()) is None


def test_a_large_body_goes_on(addon: AzureOpenAIProxy) -> None:
    """For an upload to OpenAI's API; a request that was translated then is not translated again."""
    flow, other = gateways("POST", "/v1/files", b"", **{"content-type": "multipart/form-data; boundary=b"}), somebody_elses()
    addon.requestheaders(flow)
    assert [True, False] == [addon.registry.may_stream_upload(flow), addon.registry.may_stream_upload(other)]
    addon.registry.start_streamed_upload(flow, b"--b")
    path = flow.request.path
    addon.request(flow)
    assert ("/openai/files?api-version=2024-10-21", True, None) == (path, flow.request.stream, flow.response)
    assert path == flow.request.path


def test_what_goes_on_can_be_refused(addon: AzureOpenAIProxy) -> None:
    """As every request."""
    flow = gateways("POST", "/v1/files", b"", **{"content-type": "multipart/form-data; boundary=b"})
    flow.request.headers.pop("authorization")
    addon.requestheaders(flow)
    addon.registry.start_streamed_upload(flow, b"--b")
    assert 401 == status(flow)


def test_only_the_sent_request_has_the_key(addon: AzureOpenAIProxy) -> None:
    """From its first moment the flow shows a mask; the upstream gets the key; requests to other hosts are unchanged."""
    flow = gateways()
    addon.requestheaders(flow)
    before = flow.request.headers["authorization"]
    addon.request(flow)
    other = somebody_elses()
    assert ("Bearer [key]", MASK, "client") == (before, flow.request.headers["api-key"], request_with_keys(addon, flow).headers["api-key"])
    assert addon.registry.request_with_keys(other) is other.request


@pytest.mark.parametrize(
    "edit",
    [
        lambda request: setattr(request, "path", "/openai/../secret"),
        lambda request: setattr(request, "path", "/secret"),
        lambda request: setattr(request, "path", request.path + " HTTP/1.1\r\nX: y"),
        lambda request: setattr(request, "method", "GET /"),
        lambda request: request.headers.update({"x": "a\r\nb: c"}),
        lambda request: request.headers.update({"api-key": "a\nb"}),
    ],
)
def test_an_edited_request_is_checked_again(addon: AzureOpenAIProxy, edit: Callable[[http.Request], None]) -> None:
    """A user edits an intercepted request, another addon any request: an edited request that is invalid is not sent."""
    flow = ask(addon, gateways())
    assert isinstance(addon.registry.request_with_keys(flow), http.Request)
    edit(flow.request)
    failure = addon.registry.request_with_keys(flow)
    assert isinstance(failure, errors.Failure)
    assert 400 == failure.status


def test_a_line_of_somebody_elses_http2_request_is_checked(addon: AzureOpenAIProxy) -> None:
    """A space in it would make another request on HTTP/1.1."""
    other = somebody_elses()
    other.request.http_version = "HTTP/2.0"
    assert addon.registry.request_with_keys(other) is other.request
    other.request.method = "GET /secret"
    assert isinstance(addon.registry.request_with_keys(other), errors.Failure)


@pytest.mark.parametrize(
    "method, path, headers",
    [
        ("GET", "/openai/v1/../../secret", ()),
        ("GET", "/openai/files/a?api-version=v%0d%0aX:%20y", ()),
        ("GET /secret", "/openai/v1/files", ()),
        ("TRACE", "/openai/v1/files", ()),
        ("GET", "/openai/v1/files", ((b"x: y", b"1"),)),
        ("GET", "/openai/v1/files", ((b"x", b"1\r\ny: 2"),)),
    ],
)
def test_a_saved_flow_that_is_sent_again_is_checked(
    method: str, path: str, headers: tuple[tuple[bytes, bytes], ...], addon: AzureOpenAIProxy
) -> None:
    """A file of flows may be from any source: a request that a client could not send cannot be replayed either."""
    flow = gateways("GET", path, b"", authorization="Bearer client")
    flow.is_replay, flow.metadata["azure_openai_deployment"] = "request", "d"
    flow.request.data.method = method.encode()
    flow.request.headers.fields += headers
    ask(addon, flow)
    assert status(flow) in (400, 405)


def test_a_request_in_openai_mode_is_checked_too(addon: AzureOpenAIProxy) -> None:
    """Its prefix and its headers, with the keys in them."""
    addon.runtime.settings = dataclasses.replace(addon.settings, mode="openai")
    flow, bad = gateways(), gateways("GET", "/v1/files", b"", **{"api-key": "a\x01b"})
    addon.requestheaders(flow)
    assert isinstance(addon.registry.request_with_keys(flow), http.Request)
    flow.request.headers["x"] = "a\x01b"
    assert isinstance(addon.registry.request_with_keys(flow), errors.Failure)
    addon.requestheaders(bad)
    assert 400 == status(bad)
    dots = gateways("GET", "/v1/../secret", b"")
    addon.requestheaders(dots)
    assert 400 == status(dots)


def test_a_mitmproxy_that_is_not_known_gets_the_key_on_the_flow(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as mitmproxy needs it: without the patches the key cannot be inserted later."""
    monkeypatch.setattr(Registry, "takes_upstream", lambda *_: False)
    flow = ask(addon, gateways())
    before = flow.request.headers["api-key"]
    flow.response = http.Response.make(200, b"{}")
    addon.responseheaders(flow)
    assert ("client", MASK) == (before, flow.request.headers["api-key"])
