"""The addon's hooks. What they do together on a real mitmdump is the end-to-end tests' matter."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import socket
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
from mitmproxy import connection, ctx, http
from mitmproxy.addons.proxyauth import ProxyAuth
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.addons.upstream_auth import UpstreamAuth
from mitmproxy.connection import Server
from mitmproxy.flow import Error
from mitmproxy.proxy import mode_specs, server_hooks
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy import errors
from azure_openai_proxy.addon import AzureOpenAIProxy
from azure_openai_proxy.api.credentials import MASK
from azure_openai_proxy.config import origins, runtime, settings
from azure_openai_proxy.egress.connect import Destination
from azure_openai_proxy.egress.request import Hold
from azure_openai_proxy.egress.resolver import Resolver
from azure_openai_proxy.gateway.exchange import Exchange
from azure_openai_proxy.gateway.registry import Policy
from azure_openai_proxy.mitmproxy_patches import connections, install, interface
from azure_openai_proxy.routing import entra_tokens
from azure_openai_proxy.routing.attempts import GIVE_UP, Retry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from mitmproxy import tls
    from mitmproxy.proxy.layer import NextLayer

    from azure_openai_proxy.egress.request import ClientSide
    from azure_openai_proxy.routing.attempts import Plan

CHAT = b'{"model":"gpt-4o"}'


@pytest.fixture
async def addon() -> AsyncIterator[AzureOpenAIProxy]:
    """The addon, loaded with an endpoint, in a mitmproxy that serves nobody."""
    addon = AzureOpenAIProxy(runtime.Runtime(environ={"AZURE_OPENAI_ENDPOINT": "https://r.openai.azure.com"}, arguments=[]))
    addon.registry.pools.resolver = Resolver(lookup=lambda *_: [])
    with taddons.context(Proxyserver(), ProxyAuth(), UpstreamAuth(), TlsConfig(), addon):
        addon.configure(set(ctx.options.keys()))
        addon.started.set()
        yield addon


def gateways(method: str = "POST", path: str = "/v1/chat/completions", body: bytes = CHAT, **headers: str) -> http.HTTPFlow:
    request = http.Request.make(method, f"http://localhost:8080{path}", body)
    request.headers.update({"authorization": "Bearer client", **headers})
    flow = tflow.tflow(req=request)
    flow.client_conn.proxy_mode = mode_specs.ProxyMode.parse("regular")
    flow.server_conn.address = None
    return flow


def somebody_elses() -> http.HTTPFlow:
    flow = gateways()
    flow.metadata[interface.ABSOLUTE_FORM] = True
    flow.request.host = "other.example"
    return flow


def ask(addon: AzureOpenAIProxy, flow: http.HTTPFlow) -> http.HTTPFlow:
    if judging := addon.requestheaders(flow):
        cast("Coroutine[None, None, None]", judging).close()  # where it goes is the guard's matter
    addon.request(flow)
    return flow


def on_the_wire(addon: AzureOpenAIProxy, flow: http.HTTPFlow) -> http.Request:
    sent = addon.registry.on_the_wire(flow)
    assert isinstance(sent, http.Request)
    return sent


def status(flow: http.HTTPFlow) -> int:
    assert flow.response
    return flow.response.status_code


def test_a_request_of_ours_goes_to_azure(addon: AzureOpenAIProxy) -> None:
    """It is translated in place and not answered."""
    flow = ask(addon, gateways())
    assert ("r.openai.azure.com", None) == (flow.request.host, flow.response)


def test_an_error_is_kept_as_plain_text(addon: AzureOpenAIProxy) -> None:
    """mitmproxy repeats what the client sent, prints it and saves it."""
    flow = somebody_elses()
    flow.error = Error("Invalid request scheme: \udcff\x1b[2J\n")
    addon.error(flow)
    assert "Invalid request scheme: \\udcff\\x1b[2J\\n" == flow.error.msg


def test_a_request_of_somebody_elses_passes(addon: AzureOpenAIProxy) -> None:
    """Untouched, and its answer too."""
    flow = somebody_elses()
    before = flow.get_state()
    ask(addon, flow)
    assert before == flow.get_state()
    flow.response = http.Response.make(200, b"{}")
    addon.responseheaders(flow)
    addon.response(flow)
    addon.error(flow)
    assert flow.request.headers["authorization"] == "Bearer client"


def test_a_host_with_control_characters_is_refused(addon: AzureOpenAIProxy) -> None:
    """Of a SOCKS5 request: its name is printed with the flow."""
    flow = somebody_elses()
    flow.request.host = "x\n\x1bforged"
    assert addon.requestheaders(flow) is None
    assert (r"x\n\x1bforged", 400) == (flow.request.host, status(flow))


def test_why_a_websocket_was_closed_is_shown(addon: AzureOpenAIProxy) -> None:
    """In one line, without control characters."""
    flow = ask(addon, gateways("GET", "/v1/realtime?model=gpt-realtime", b"", upgrade="websocket"))
    flow.websocket = WebSocketData(close_reason="bye \x1b[2J\n")
    addon.websocket_end(flow)
    assert r"bye \x1b[2J\n" == flow.websocket.close_reason


def test_a_replayed_request_passes(addon: AzureOpenAIProxy) -> None:
    """It is Azure's already."""
    flow = gateways()
    flow.is_replay = "request"
    assert "localhost" == ask(addon, flow).request.host


def test_a_flow_from_a_file_stays_as_it_is(addon: AzureOpenAIProxy) -> None:
    """Nobody asks anything: its comment, its answer and what it was are those of then, in a mode that serves whatever comes too."""
    flow = gateways()
    flow.client_conn.proxy_mode = mode_specs.ProxyMode.parse("reverse:https://r.openai.azure.com")
    ask(addon, flow)
    flow.response = http.Response.make(200, b"{}")
    addon.responseheaders(flow)
    addon.response(flow)
    before, flow.live = flow.get_state(), False
    ask(addon, flow)
    addon.responseheaders(flow)
    addon.response(flow)
    assert before == flow.get_state()


def test_an_error_is_an_answer(addon: AzureOpenAIProxy) -> None:
    """In OpenAI's shape."""
    assert 400 == status(ask(addon, gateways(body=b"{")))


def test_the_answer_to_head_has_no_body(addon: AzureOpenAIProxy) -> None:
    """What is sent after its head would be taken for the next answer."""
    flow = ask(addon, gateways("HEAD", "/"))
    addon.responseheaders(flow)
    addon.response(flow)

    assert flow.response
    assert (200, b"") == (flow.response.status_code, flow.response.raw_content)


def test_an_answer_that_somebody_gave_stays(addon: AzureOpenAIProxy) -> None:
    """Another addon, or a person in mitmweb."""
    flow = gateways()
    flow.response = http.Response.make(418)
    assert 418 == status(ask(addon, flow))


def test_a_request_that_cannot_be_translated_does_not_leave(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the mistake: it would take the client's key to where the client sent it."""

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Exchange, "request", fail)
    assert 500 == status(ask(addon, gateways()))


def test_no_key_stays_on_the_flow(addon: AzureOpenAIProxy) -> None:
    """From the moment it is no longer needed: after the answer's head, an error, or an answer of our own."""
    answered = ask(addon, gateways(path="/v1/models?api-key=client", method="GET"))
    went, failed = ask(addon, gateways()), ask(addon, gateways())
    went.response = http.Response.make(200, b"{}", {"content-type": "application/json"})
    addon.responseheaders(went)
    addon.response(went)
    addon.error(failed)
    assert "client" not in str([flow.get_state() for flow in (answered, went, failed)]).replace("client_conn", "")
    assert MASK == went.request.headers["api-key"]


@pytest.mark.parametrize("mode", ["azure", "openai"])
def test_a_key_that_the_answer_repeats_is_masked(addon: AzureOpenAIProxy, mode: Literal["azure", "openai"]) -> None:
    """In its reason, its headers and its trailers, before anybody sees them, whoever was asked."""
    addon.runtime.settings = dataclasses.replace(addon.runtime.settings, mode=mode)
    flow = ask(addon, gateways(authorization="Bearer the-client-s-key"))
    flow.response = http.Response.make(200, b"{}", {"content-type": "application/json", "x-debug": "the-client-s-key"})
    flow.response.reason = "the-client-s-key"
    flow.response.trailers = http.Headers(x_end="key the-client-s-key", x_other="1")
    addon.responseheaders(flow)
    assert "[key]" == flow.response.reason
    assert "[key]" == flow.response.headers["x-debug"]
    addon.response(flow)
    assert [("x-end", "key [key]"), ("x-other", "1")] == list(flow.response.trailers.items())
    assert "the-client-s-key" not in str(flow.get_state())


def test_openai_mode_hands_over(addon: AzureOpenAIProxy) -> None:
    """Before the body comes, and nothing is done to it later."""
    addon.runtime.settings = settings.Settings(mode="openai")
    flow = ask(addon, gateways())
    assert ("api.openai.com", True, None) == (flow.request.host, flow.request.stream, addon.registry.max_body(flow))


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
    ours = addon.registry.answer(failure, gateways(origin="https://page.example"))
    assert ours is not None
    assert "https://page.example" == ours.headers["access-control-allow-origin"]
    unread = addon.registry.answer(failure, None)
    assert unread is not None
    assert 413 == unread.status_code
    assert addon.registry.answer(failure, somebody_elses()) is None


KEYED = settings.Settings(origins=origins.allowed((), frozenset(), keyed=True))


def test_a_page_of_a_foreign_origin_is_refused(addon: AzureOpenAIProxy) -> None:
    """Before its body is read, and it may not read the answer, nor that of a failure below the hooks."""
    addon.runtime.settings = KEYED
    flow = gateways(origin="https://page.example")
    assert 403 == status(ask(addon, flow))
    assert addon.registry.early_response(flow) is flow.response
    assert flow.response
    addon.responseheaders(flow)
    failed = addon.registry.answer(errors.Failure(413, "request_too_large", "too large"), flow)
    assert failed
    for response in (flow.response, failed):
        assert "access-control-allow-origin" not in response.headers
    assert addon.registry.early_response(ask(addon, gateways(origin="http://localhost:3000"))) is None


def test_a_replayed_request_of_a_page_is_the_owner_s(addon: AzureOpenAIProxy) -> None:
    """Nobody but the owner can send a flow again."""
    addon.runtime.settings = KEYED
    flow = gateways(origin="https://page.example")
    ask(addon, flow)
    flow.is_replay, flow.response = "request", None
    assert not addon.registry.refuses_page(flow, addon.registry.exchanges[flow])


def test_only_openais_hosts_are_decrypted(addon: AzureOpenAIProxy) -> None:
    """Unless the user's own options say what is."""

    def passes(host: str) -> bool:
        context = SimpleNamespace(
            client=SimpleNamespace(proxy_mode=mode_specs.ProxyMode.parse("regular")), server=SimpleNamespace(address=(host, 443))
        )
        hello = SimpleNamespace(context=context, client_hello=SimpleNamespace(sni=host), ignore_connection=False)
        addon.tls_clienthello(cast("tls.ClientHelloData", hello))
        return bool(hello.ignore_connection)

    assert [False, True] == [passes("api.openai.com"), passes("other.example")]
    ctx.options.allow_hosts = ["other"]
    assert not passes("other.example")


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


def test_a_connection_that_ended_is_closed(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where mitmproxy forgets to."""
    seen: list[object] = []
    monkeypatch.setattr("azure_openai_proxy.mitmproxy_patches.connections.close_left", lambda *both: seen.append(both))
    addon.server_disconnected(cast("server_hooks.ServerConnectionHookData", SimpleNamespace(client="c", server="s")))
    assert [("c", "s")] == seen


def test_a_failed_connection_is_not_remembered(addon: AzureOpenAIProxy) -> None:
    """mitmproxy would give its error to every later request of the client."""
    server = SimpleNamespace(error="refused")
    addon.server_connect_error(cast("server_hooks.ServerConnectionHookData", SimpleNamespace(server=server)))
    connection = SimpleNamespace(error="TLS failed")
    addon.tls_failed_server(cast("tls.TlsData", SimpleNamespace(conn=connection)))
    assert (None, None) == (server.error, connection.error)


def test_a_frame_is_changed_on_its_way(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is of a WebSocket of ours."""
    seen: list[object] = []
    monkeypatch.setattr(Exchange, "frame", lambda _, messages, *__: seen.append(messages))
    ours, other = ask(addon, gateways("GET", "/v1/realtime?model=m", b"", upgrade="websocket")), ask(addon, somebody_elses())
    ours.websocket = other.websocket = WebSocketData(messages=[WebSocketMessage(Opcode.TEXT, True, b"{}")])
    addon.websocket_message(ours)
    addon.websocket_message(other)
    assert [ours.websocket.messages] == seen


async def test_layers_and_life_are_left_to_who_knows_them(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks only pass on what they get."""
    seen: list[object] = []
    monkeypatch.setattr(install, "attach", lambda *given: seen.append(given))
    monkeypatch.setattr(addon.runtime, "running", seen.append)
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    layer = cast("NextLayer", SimpleNamespace(context=SimpleNamespace(server=SimpleNamespace(address=None))))
    addon.next_layer(layer)
    addon.running()
    assert (layer, addon.registry) == seen[0]
    assert 2 == len(seen)


def test_what_the_upstream_leg_asks(addon: AzureOpenAIProxy) -> None:
    """Of a request of ours its exchange decides; any other is mitmproxy's to send."""
    ours, other = ask(addon, gateways()), ask(addon, somebody_elses())
    assert (True, False) == (addon.registry.takes(ours), addon.registry.takes(other))
    policy = Policy(addon.registry, ours, addon.registry.exchanges[ours])
    failed = http.Response.make(503)
    assert (addon.settings.timeouts, Hold.FAILURE, GIVE_UP) == (policy.timeouts, policy.hold(failed), policy.next_attempt(failed))
    answer = addon.registry.answer(errors.Failure(502, "upstream_error", "cut"), ours)
    assert answer
    assert "retry-after" not in answer.headers  # there is only one backend
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
    assert "another" == on_the_wire(addon, ours).headers["api-key"]
    assert "[key]" == ours.request.headers["api-key"]


def test_a_key_that_somebody_put_in_since_is_masked(addon: AzureOpenAIProxy) -> None:
    """A person or another addon may edit a request on its way; the flow is kept longer than that."""
    ours = ask(addon, gateways())
    ours.request.headers["authorization"] = "Bearer mine"
    ours.response = http.Response.make(200, b"{}")
    addon.responseheaders(ours)
    assert "Bearer [key]" == ours.request.headers["authorization"]


def test_a_client_is_probed(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system notices a client that is gone without a word."""
    with socket.socket() as sock:
        monkeypatch.setattr(connections, "client_socket", lambda _: sock)
        addon.client_connected(connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2)))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_how_another_addon_streams_a_foreign_response(addon: AzureOpenAIProxy) -> None:
    """It stays; any other foreign response is streamed unchanged."""
    own, other = ask(addon, somebody_elses()), ask(addon, somebody_elses())
    own.response, other.response = http.Response.make(200, b"{}"), http.Response.make(200, b"{}")
    own.response.stream = bytes.upper
    for flow in (own, other):
        addon.responseheaders(flow)
    assert [bytes.upper, True] == [own.response.stream, other.response.stream]


async def test_its_end(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left running; before it was running there is nothing."""
    addon.done()
    monkeypatch.setattr(addon.runtime, "running", lambda _: None)
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    addon.running()
    addon.client_connected(connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2)))
    addon.done()
    assert addon.watcher
    with pytest.raises(asyncio.CancelledError):
        await addon.watcher


async def test_an_owner_is_warned(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whose key anybody may use who reaches the port."""
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    ctx.options.azure_openai_token = "key"
    addon.running()
    assert "uses the configured key" in caplog.text


@pytest.mark.parametrize(
    "options, opened",
    [({}, 1), ({"server": False}, 0), ({"mode": ["upstream:http://127.0.0.1:9"]}, 0), ({"azure_openai_proxy_mode": "openai"}, 0)],
    ids=["a proxy", "without a server", "behind another proxy", "openai mode"],
)
async def test_one_connection_to_each_backend_is_opened_ahead(
    options: dict[str, Any], opened: int, addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request finds an open connection; a start that serves no requests opens none."""
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    ctx.options.update(**options)
    addon.running()
    assert opened == len(addon.warming)
    await asyncio.gather(*addon.warming)  # a backend that cannot be reached is no error
    addon.done()


async def test_no_connection_is_opened_ahead_in_server_replay(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded responses need no Azure, even if an endpoint is configured."""
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    monkeypatch.setattr(addon.replay_server, "replay", object())
    monkeypatch.setattr(addon.replay_server, "running", lambda: None)
    addon.running()
    assert addon.settings.backends
    assert [] == addon.warming
    addon.done()


async def test_destinations_are_judged(addon: AzureOpenAIProxy) -> None:
    """Before a connection, after it, and at CONNECT."""
    client = tflow.tclient_conn()
    client.peername, client.proxy_mode = ("192.0.2.1", 50000), mode_specs.ProxyMode.parse("regular")
    data = server_hooks.ServerConnectionHookData(Server(address=("127.0.0.1", 80)), client)
    await addon.server_connect(data)
    assert "does not connect to 127.0.0.1" in str(data.server.error)
    addon.server_connected(server_hooks.ServerConnectionHookData(Server(address=("r.openai.azure.com", 443)), client))

    for host, refused in (("127.0.0.1", True), ("api.openai.com", False)):
        flow = gateways()
        flow.client_conn, flow.request.host = client, host
        await addon.http_connect(flow)
        assert refused == bool(flow.response)

    flow = gateways()
    flow.request.host, flow.request.port = "r.openai.azure.com", 443
    await addon.http_connect_upstream(flow)  # a backend, by way of another proxy


def test_a_large_body_goes_on(addon: AzureOpenAIProxy) -> None:
    """Of an upload of ours; what is translated then is not translated again."""
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


async def test_a_proxy_that_stops_is_not_ready(addon: AzureOpenAIProxy) -> None:
    """It says so as long as it lives."""
    answers = []
    for stopping in (False, True):
        addon.shutdown.began = stopping
        flow = ask(addon, gateways("GET", "/readyz", b""))
        assert flow.response
        answers.append((flow.response.status_code, flow.response.text))
    assert [(200, "ok\n"), (503, "stopping\n")] == answers


def test_a_key_is_on_the_wire_alone(addon: AzureOpenAIProxy) -> None:
    """From its first moment the flow shows a mask; upstream gets the key; what is not ours goes as it is."""
    flow = gateways()
    addon.requestheaders(flow)
    before = flow.request.headers["authorization"]
    addon.request(flow)
    other = somebody_elses()
    assert ("Bearer [key]", MASK, "client") == (before, flow.request.headers["api-key"], on_the_wire(addon, flow).headers["api-key"])
    assert addon.registry.on_the_wire(other) is other.request


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
    """A person edits a request that is held, another addon any: what cannot be sent is not."""
    flow = ask(addon, gateways())
    assert isinstance(addon.registry.on_the_wire(flow), http.Request)
    edit(flow.request)
    failure = addon.registry.on_the_wire(flow)
    assert isinstance(failure, errors.Failure)
    assert 400 == failure.status


def test_a_line_of_somebody_elses_http2_request_is_checked(addon: AzureOpenAIProxy) -> None:
    """A space in it would make another request on HTTP/1.1."""
    other = somebody_elses()
    other.request.http_version = "HTTP/2.0"
    assert addon.registry.on_the_wire(other) is other.request
    other.request.method = "GET /secret"
    assert isinstance(addon.registry.on_the_wire(other), errors.Failure)


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
    """A file of flows may come from anybody: what a client could not send, a replay cannot either."""
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
    assert isinstance(addon.registry.on_the_wire(flow), http.Request)
    flow.request.headers["x"] = "a\x01b"
    assert isinstance(addon.registry.on_the_wire(flow), errors.Failure)
    addon.requestheaders(bad)
    assert 400 == status(bad)
    dots = gateways("GET", "/v1/../secret", b"")
    addon.requestheaders(dots)
    assert 400 == status(dots)


def test_a_mitmproxy_that_is_not_known_gets_the_key_on_the_flow(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the wire needs it: there is nobody who could put it in later."""
    monkeypatch.setattr(install, "sends_upstream", lambda _: False)
    flow = ask(addon, gateways())
    before = flow.request.headers["api-key"]
    flow.response = http.Response.make(200, b"{}")
    addon.responseheaders(flow)
    assert ("client", MASK) == (before, flow.request.headers["api-key"])


def test_a_flow_sent_again_gets_the_configured_key(addon: AzureOpenAIProxy) -> None:
    """In place of the mask that it was saved with."""
    ctx.options.update(azure_openai_token="k-configured")
    flow = gateways(path="/openai/deployments/prod/chat/completions?api-version=2024-10-21", authorization="Bearer [key]")
    flow.metadata["azure_openai_deployment"] = "prod"
    flow.is_replay = "request"
    ask(addon, flow)
    assert ("k-configured", "/openai/deployments/prod/chat/completions?api-version=2024-10-21") == (
        flow.request.headers["api-key"],
        flow.request.path,
    )


def test_a_flow_tells_what_it_was(addon: AzureOpenAIProxy) -> None:
    """When its answer is there, when it fails, when its WebSocket closes; what is not ours tells nothing."""
    answered, talked, other = ask(addon, gateways()), ask(addon, gateways()), ask(addon, somebody_elses())
    answered.response = http.Response.make(200, b'{"usage":{"prompt_tokens":1}}')
    addon.responseheaders(answered)
    addon.response(answered)
    addon.websocket_end(talked)
    addon.websocket_end(other)
    assert answered.comment.startswith("gpt-4o · 1+0 tokens · ")
    assert "gpt-4o · 0 messages" == talked.comment
    assert "" == other.comment


async def test_the_player_of_recordings_is_no_strangers_destination(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client is led there, wherever it comes from."""
    monkeypatch.setattr(addon.replay_server, "plays_at", lambda _: True)
    data = cast(
        "server_hooks.ServerConnectionHookData",
        SimpleNamespace(server=SimpleNamespace(address=("127.0.0.1", 1)), client=SimpleNamespace(id="")),
    )
    before = vars(data).copy()
    await addon.server_connect(data)
    addon.server_connected(data)
    assert before == vars(data)


class Identity:
    """A credential that gives its token when it is told to."""

    def __init__(self) -> None:
        self.asked, self.given = asyncio.Event(), asyncio.Event()

    async def get_token(self, _: str) -> object:
        self.asked.set()
        await self.given.wait()
        return SimpleNamespace(token="token", expires_on=time.time() + 3600)

    async def close(self) -> None:
        pass


def with_entra(addon: AzureOpenAIProxy) -> Identity:
    identity = Identity()
    addon.runtime.settings = settings.Settings(
        backends=(dataclasses.replace(addon.settings.backends[0], entra="cli"),), hosts=addon.settings.hosts
    )
    addon.shared.tokens._make = lambda *_: identity
    return identity


async def test_a_request_waits_for_the_end_of_the_start(addon: AzureOpenAIProxy) -> None:
    """It comes between the opening of the port and the end of the start; then it waits for the first token. Later ones wait for nothing."""
    identity = with_entra(addon)
    addon.started.clear()
    flow = gateways()
    coming = addon.requestheaders(flow)
    assert coming
    waiting = asyncio.ensure_future(coming)
    await asyncio.sleep(0)
    assert not identity.asked.is_set()

    addon.started.set()
    await asyncio.wait_for(identity.asked.wait(), 10)
    assert not waiting.done()
    identity.given.set()
    await asyncio.wait_for(waiting, 10)
    addon.request(flow)
    assert ("r.openai.azure.com", None) == (flow.request.host, flow.response)
    assert addon.requestheaders(gateways()) is None
    addon.shared.tokens.close()


async def test_but_not_for_ever(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a start that does not end, and a token that does not come, the client is told."""
    monkeypatch.setattr(entra_tokens, "PATIENCE", 0)
    identity = with_entra(addon)
    addon.started.clear()
    flow = gateways()
    coming = addon.requestheaders(flow)
    assert coming
    await coming
    addon.request(flow)
    assert 503 == status(flow)
    assert not identity.given.is_set()
    addon.shared.tokens.close()


@pytest.mark.parametrize("path, expected", [("/healthz", 200), ("/readyz", 503)])
def test_probes_do_not_wait(path: str, expected: int, addon: AzureOpenAIProxy) -> None:
    """It is alive from the beginning, and ready when the start is over."""
    addon.started.clear()
    assert expected == status(ask(addon, gateways("GET", path, b"")))


@pytest.mark.parametrize("size", [10, 1 << 20])
async def test_a_compressed_request_is_translated(addon: AzureOpenAIProxy, size: int) -> None:
    """As if it had come as it is, small or large."""
    flow = gateways()
    flow.request.headers["content-encoding"] = "gzip"
    flow.request.raw_content = gzip.compress(b'{"model":"gpt-4o","x":"' + b"x" * size + b'"}')
    addon.requestheaders(flow)
    assert not addon.registry.may_stream_upload(flow)
    working = addon.request(flow)
    assert working
    await working
    assert (None, size + 25) == (flow.response, len(flow.request.raw_content or b""))
    assert flow.request.path.startswith("/openai/deployments/gpt-4o/")


async def test_a_compressed_request_that_cannot_be_read_is_refused(addon: AzureOpenAIProxy) -> None:
    """In OpenAI's shape."""
    flow = gateways()
    flow.request.headers["content-encoding"] = "gzip"
    addon.requestheaders(flow)
    working = addon.request(flow)
    assert working
    await working
    assert 400 == status(flow)


def test_a_response_that_broke_off_is_recorded(addon: AzureOpenAIProxy) -> None:
    """Its cause is on the last attempt."""
    flow = ask(addon, gateways())
    exchange = addon.registry.exchanges[flow]
    Policy(addon.registry, flow, exchange).broke_off(errors.Failure(502, "upstream_error", "cut"))
    assert exchange.attempts
    assert "upstream_error" == exchange.attempts.tried[-1].cause
