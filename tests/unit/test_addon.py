"""The addon's hooks. What they do together on a real mitmdump is the end-to-end tests' matter."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import gzip
import os
import signal
import socket
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
from mitmproxy import connection, ctx, http
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.view import View
from mitmproxy.connection import Server
from mitmproxy.flow import Error
from mitmproxy.proxy import mode_specs, server_hooks
from mitmproxy.test import tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy import errors
from azure_openai_proxy.accounting.accounts import Accounts, SinkKind
from azure_openai_proxy.accounting.shared import link
from azure_openai_proxy.accounting.sink import BackendState, LiveState
from azure_openai_proxy.addon import GC_THRESHOLD
from azure_openai_proxy.api.credentials import MASK
from azure_openai_proxy.config import settings
from azure_openai_proxy.gateway.upstream_policy import Policy
from azure_openai_proxy.gateway.websocket_messages import WebSocketMessages
from azure_openai_proxy.inspection.site import mitmweb
from azure_openai_proxy.mitmproxy_patches import connections, install
from azure_openai_proxy.routing import deployment_discovery, entra_tokens
from support.flows import ask, gateways, somebody_elses, status
from support.shared import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mitmproxy import tls
    from mitmproxy.proxy.layer import NextLayer

    from azure_openai_proxy.accounting.record import CallRecord
    from azure_openai_proxy.addon import AzureOpenAIProxy
    from support.redis import RedisServer


def test_a_request_of_ours_goes_to_azure(addon: AzureOpenAIProxy) -> None:
    """It is translated in place and not answered."""
    flow = ask(addon, gateways())
    assert ("r.openai.azure.com", None) == (flow.request.host, flow.response)


def test_a_confdir_that_cannot_be_written_ends_the_start(addon: AzureOpenAIProxy, tmp_path: Path) -> None:
    """With one line; mitmproxy would go on to a traceback."""
    (tmp_path / "file").touch()
    ctx.options.confdir = str(tmp_path / "file" / "x")
    with pytest.raises(SystemExit, match=r"^azure-openai-proxy: .*set confdir"):
        addon.load(cast("Any", None))


def test_commands_on_threads_need_a_list_of_flows(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """mitmweb and the console have one."""
    assert ["azure_openai_commands"] == [getattr(one, "name", "") for one in addon.addons]
    monkeypatch.setattr(ctx.master, "view", View(), raising=False)
    addon.load(Loader(ctx.master))
    assert "azure_openai_threads" == getattr(addon.addons[-1], "name", "")


@pytest.mark.slow
def test_a_mitmdump_does_not_import_the_inspector() -> None:
    """Neither the page, nor what groups calls and removes secrets: their patterns take a tenth of a second to compile."""
    names = "[name for name in sys.modules if name.startswith('azure_openai_proxy.inspection.')]"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys, azure_openai_proxy.addon; print(*{names})"], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[2] for name in found.stdout.split()}
    assert ("recorder" in loaded, set()) == (True, loaded & {"site", "sharing", "threads", "thread_commands"})


def test_mitmweb_gets_a_page(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads mitmweb's list of flows and the current settings."""
    monkeypatch.setattr(ctx.master, "view", View(), raising=False)
    assert "threads" in addon.site().handler.site.gets


def test_comments_have_a_style_in_mitmweb(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made by the patch that adds it, since other tools do without tornado."""
    styles: list[object] = []
    monkeypatch.setattr(install, "show_comments", lambda _master, _one_line, style, **_: styles.append(style()))
    addon.show_comments(shown=True)
    assert [mitmweb.CommentStyle] == styles


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
    """No request is sent: comment, response and metadata stay as saved, also in replay modes."""
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
    """Bytes after its head would be taken for the next response."""
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
    """In its reason, its headers and its trailers, before any view shows them, in either mode."""
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


def test_only_openais_hosts_are_decrypted(addon: AzureOpenAIProxy) -> None:
    """Unless the user's own options select the hosts."""

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
    monkeypatch.setattr(WebSocketMessages, "translate", lambda _, messages, *__: seen.append(messages))
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
    monkeypatch.setattr(deployment_discovery, "fetch", lambda *_: ())
    ctx.options.update(azure_openai_token="key", azure_openai_discover_models=True)
    queries = addon.discovery._task
    assert queries
    addon.done()
    with pytest.raises(asyncio.CancelledError):
        await queries
    assert addon.watcher
    with pytest.raises(asyncio.CancelledError):
        await addon.watcher


async def test_an_owner_is_warned(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If any client that reaches the port may use the configured key."""
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


async def test_a_proxy_that_stops_is_not_ready(addon: AzureOpenAIProxy) -> None:
    """It reports this until it ends."""
    answers = []
    for stopping in (False, True):
        addon.shutdown.began = stopping
        flow = ask(addon, gateways("GET", "/readyz", b""))
        assert flow.response
        answers.append((flow.response.status_code, flow.response.text))
    assert [(200, "ok\n"), (503, "stopping\n")] == answers


async def test_a_shared_state(addon: AzureOpenAIProxy, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is joined before the first request, follows the option, and is left at the end; while its server is down, readiness says so."""
    monkeypatch.setattr(link, "REPLY_TIMEOUT", 20.0)
    monkeypatch.setattr(link, "CONNECT_TIMEOUT", 20.0)
    monkeypatch.setattr(addon.runtime, "running", lambda _: None)
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    ctx.options.update(azure_openai_shared_state=redis_server.url)
    starting = addon.running()
    assert starting
    await starting
    assert addon.live_state().shared_state_up
    assert ask_readiness(addon) == (200, "ok\n")
    redis_server.kill()
    await until(lambda: not addon.live_state().shared_state_up)
    assert ask_readiness(addon) == (200, "ok: the shared state cannot be reached, each process counts on its own\n")
    ctx.options.update(azure_openai_shared_state="")
    assert addon.sharing
    await addon.sharing
    assert addon.live_state().shared_state_up is None
    redis_server.start()
    ctx.options.update(azure_openai_shared_state=redis_server.url)
    await addon.sharing
    ending = addon.done()
    assert ending
    await ending
    assert addon.shared_state.up is None


def ask_readiness(addon: AzureOpenAIProxy) -> tuple[int, str | None]:
    flow = ask(addon, gateways("GET", "/readyz", b""))
    assert flow.response
    return flow.response.status_code, flow.response.text


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


async def test_a_flow_tells_what_it_was(addon: AzureOpenAIProxy) -> None:
    """The comment is set when the response is complete, when it fails, and when its WebSocket closes; other flows get none."""
    addon.recorder.watched = True
    answered, talked, other = ask(addon, gateways()), ask(addon, gateways()), ask(addon, somebody_elses())
    answered.response = http.Response.make(200, b'{"usage":{"prompt_tokens":1}}')
    addon.responseheaders(answered)
    addon.response(answered)
    addon.websocket_end(talked)
    addon.websocket_end(other)
    assert answered.comment.startswith("gpt-4o · 1 tokens · ")
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
    """A credential that returns its token once the test allows it."""

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
    """If the start does not end, or a token does not arrive, the client gets an error."""
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


# Usage records


class Kept:
    """A sink that keeps records."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.reopened = asyncio.Event()

    def record(self, calls: Sequence[CallRecord]) -> None:
        self.calls.extend(calls)

    async def start(self, live: Callable[[], LiveState]) -> None:
        self.live = live

    def reopen(self) -> None:
        self.reopened.set()

    async def close(self) -> None:
        """Nothing."""


@pytest.fixture
def kept(addon: AzureOpenAIProxy, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A sink that is opened while `azure_openai_debug_headers` is on."""
    sink, module = Kept(), ModuleType("azure_openai_proxy.accounting.kept")
    module.__dict__["open_sink"] = lambda _: sink
    monkeypatch.setitem(sys.modules, module.__name__, module)
    addon.accounts = Accounts(addon.live_state, (SinkKind("debug_headers", "kept"),), addon.registry.meters)
    monkeypatch.setattr(addon.shutdown, "arm", lambda: None)
    return sink


async def started(addon: AzureOpenAIProxy) -> None:
    ctx.options.azure_openai_debug_headers = True
    if addon.following:
        await addon.following
    else:
        starting = addon.running()
        assert starting
        await starting


async def test_sinks_are_opened_before_the_first_request(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """The start waits for them, and the end closes them."""
    addon.started.clear()
    await started(addon)
    assert addon.started.is_set()
    flow = gateways("GET", "/v1/models", b"")
    addon.requestheaders(flow)
    addon.request(flow)
    addon.responseheaders(flow)
    addon.response(flow)
    ending = addon.done()
    assert ending
    await ending
    assert [("models", 200)] == [(call.operation, call.status) for call in kept.calls]


async def test_a_sink_that_cannot_be_opened_ends_the_start(
    addon: AzureOpenAIProxy, kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """mitmproxy ends after an error at its start."""

    async def fail(_: object) -> None:
        raise errors.SettingsError("the address is in use")

    monkeypatch.setattr(kept, "start", fail)
    addon.started.clear()
    await started(addon)
    assert [("ERROR", "the address is in use")] == [(one.levelname, one.message) for one in caplog.records if one.levelname == "ERROR"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
async def test_files_are_reopened_on_sighup(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """A program that rotates the files sends it. Sinks that were turned on later get it too."""
    await started(addon)
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.wait_for(kept.reopened.wait(), 30)
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_a_system_without_sighup(addon: AzureOpenAIProxy, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks work without it."""
    monkeypatch.delattr(signal, "SIGHUP", raising=False)
    await started(addon)
    assert [kept] == addon.accounts.sinks


async def test_the_live_state(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """Metrics show the requests that run, the connections, and the backends with their remaining rate limits."""
    await started(addon)
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2))
    addon.client_connected(client)
    flow = ask(addon, gateways())
    addon.shared.use(addon.settings.backends)
    exchange = addon.registry.exchanges[flow]
    assert exchange.meter
    exchange.meter.attempt_failed(http.Response.make(429, b"", {"x-ratelimit-remaining-tokens": "7"}))
    assert LiveState(1, 0, 1, [BackendState("default", "gpt-4o", True, 7, None)], 0, [], {}) == kept.live()
    addon.client_disconnected(client)
    addon.error(flow)
    assert LiveState(0, 0, 0, [BackendState("default", "gpt-4o", True, 7, None)], 0, [], {}) == kept.live()


async def test_a_websocket_has_a_record(addon: AzureOpenAIProxy, kept: Kept) -> None:
    """It is made at the end of the WebSocket."""
    await started(addon)
    flow = gateways("GET", "/v1/realtime?model=m", b"", upgrade="websocket", connection="upgrade")
    ask(addon, flow)
    flow.response = http.Response.make(101)
    addon.responseheaders(flow)
    addon.response(flow)
    assert 1 == kept.live().active_streams
    flow.websocket = WebSocketData(
        messages=[WebSocketMessage(Opcode.TEXT, False, b'{"type":"response.done","response":{"usage":{"input_tokens":1}}}')]
    )
    addon.websocket_message(flow)
    addon.websocket_end(flow)
    await asyncio.sleep(0)
    assert [(200, True), (101, False)] == [(call.status, call.in_websocket) for call in kept.calls]


@pytest.mark.parametrize(("method", "path"), [("GET", "/healthz"), ("GET", "/"), ("OPTIONS", "/v1/models")])
async def test_the_proxy_s_own_pages_have_no_record(method: str, path: str, addon: AzureOpenAIProxy, kept: Kept) -> None:
    """They are no requests of the API."""
    await started(addon)
    flow = gateways(method, path, b"")
    addon.requestheaders(flow)
    assert addon.registry.exchanges[flow].meter is None
    assert [] == kept.calls


async def test_what_is_made_at_the_start_is_not_collected(addon: AzureOpenAIProxy) -> None:
    """Full collections pass over the modules and options: otherwise they take 50 ms, in which no request is served."""
    made: list[object] = []
    made.append(made)
    addon.serve()
    assert not any(made is known for known in gc.get_objects())
    assert gc.get_freeze_count()


async def test_requests_in_progress_cause_no_collections(addon: AzureOpenAIProxy) -> None:
    """The objects of some dozen requests are fewer than those after which Python looks for cycles."""
    before = gc.get_threshold()
    try:
        addon.serve()
        assert GC_THRESHOLD == gc.get_threshold()[0]
    finally:
        gc.set_threshold(*before)
