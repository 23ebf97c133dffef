"""The addon class: mitmproxy's hooks, each a few lines that call a stage of the processing.

For each request, `requestheaders` decides whether it is an API request, `request` translates it for Azure or answers it, `responseheaders`
translates the response headers and starts streaming, and `response` translates a buffered body.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from mitmproxy import ctx, http

from . import errors
from .api import local_responses, request_compression
from .config import runtime, settings
from .config.option_conflicts import OptionConflicts
from .egress import connect
from .egress.pool import Limits
from .egress.tls import TlsOptions
from .formats import quoting
from .gateway import foreign_flows, ingress, log_output, log_records, relay_guard
from .gateway.exchange import Exchange
from .gateway.registry import Registry
from .gateway.shutdown import Shutdown
from .inspection import contentviews, flow_metadata, request_replay
from .inspection.commands import Commands
from .inspection.recorder import Recorder
from .inspection.replay_server import ReplayServer
from .mitmproxy_patches import connections, install
from .routing import entra_tokens
from .routing.deployment_discovery import Discovery
from .routing.pool import Pool
from .routing.state import Shared

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mitmproxy import connection, tls
    from mitmproxy.addonmanager import Loader
    from mitmproxy.proxy import layer, server_hooks


__all__ = ["AzureOpenAIProxy"]


class AzureOpenAIProxy:
    """Translates the requests of OpenAI clients for Azure OpenAI, and the responses back."""

    def __init__(self, settings: runtime.Runtime | None = None) -> None:
        self.runtime = settings or runtime.Runtime()
        self.recorder = Recorder()
        self.registry = Registry(self.runtime, self.recorder)
        self.discovery = Discovery()
        self.guard = relay_guard.RelayGuard()
        self.conflicts = OptionConflicts()
        self.shutdown = Shutdown(self.registry.exchanges, lambda: self.settings.shutdown_timeout)
        self.shared = Shared(Pool())
        self.watcher: asyncio.Task[None] | None = None
        self.warming: list[asyncio.Task[None]] = []
        self.replay_server = ReplayServer()
        self.started = asyncio.Event()
        self.addons = [Commands(lambda: self.settings, self.shared)]

    @property
    def settings(self) -> settings.Settings:
        """The current settings. A running request keeps those in effect when it arrived."""
        return self.runtime.settings

    # Start, configuration and end

    def load(self, loader: Loader) -> None:
        log_records.install()
        log_output.install(ctx.master)
        self.runtime.load(loader)
        contentviews.register(ctx.options)
        install.show_comments(ctx.master, quoting.line, shown=True)  # mitmweb's page may be opened before `running`
        ctx.options.connection_strategy = "lazy"  # "eager" would open unused connections to api.openai.com

    def configure(self, updated: set[str]) -> None:
        self.runtime.configure(ctx.options, updated)
        looked_at = hasattr(ctx.master, "view")
        kept = settings.kept_bodies(self.settings, ctx.options, looked_at=looked_at)
        self.recorder.keep(kept, watched=looked_at or kept > 0)
        self.replay_server.configure(ctx.options, self.settings)
        self.discovery.follow(self.settings, ctx.options)
        limits = Limits(self.settings.pool_size, self.settings.pool_idle)
        self.registry.pools.configure(TlsOptions.of(ctx.options), limits, ctx.options.connect_addr)
        self.registry.pools.keep(lambda destination: (destination.host, destination.port) in self.settings.destinations)
        self.conflicts.check({name: option.current() for name, option in ctx.options.items()}, self.settings.hosts)
        install.set_fast_path(ctx.master, on=self.settings.fast_path)

    def running(self) -> None:
        self.runtime.running(ctx.options)
        self.replay_server.running()
        self.shutdown.arm()
        connections.lengthen_backlog()
        install.check()
        relay_guard.warn(self.settings, ctx.options)
        self.shared.use(self.settings.backends)
        self.watcher = asyncio.create_task(self.runtime.watch(ctx.options))
        install.show_comments(ctx.master, quoting.line, shown=True)  # the console's list does not exist earlier
        self.started.set()
        if ctx.options.server and not self.replay_server.replay and not ("rfile" in ctx.options and ctx.options.rfile):
            self.warming = [asyncio.create_task(one) for one in self.registry.connections_ahead(ctx.options.mode)]

    def done(self) -> None:
        install.show_comments(ctx.master, quoting.line, shown=False)
        install.set_fast_path(ctx.master, on=False)
        self.shared.tokens.close()
        for task in self.warming:
            task.cancel()
        self.registry.pools.close()
        if self.watcher:
            self.watcher.cancel()
        log_records.remove()

    # Connections

    def client_connected(self, client: connection.Client) -> None:
        if sock := connections.client_socket(client):
            connect.keep_alive(sock)
        install.enable_direct_reads(client, self.registry)

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        self.guard.note(nextlayer.context)
        install.attach(nextlayer, self.registry)

    def tls_clienthello(self, hello: tls.ClientHelloData) -> None:
        if not ctx.options.allow_hosts and ingress.passes_through(hello, self.settings.hosts):
            hello.ignore_connection = True

    def tls_failed_server(self, data: tls.TlsData) -> None:
        data.conn.error = None  # as in `server_connect_error`

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        if not ingress.names_ours([flow.request.host], self.settings.hosts):
            await self.guard.request(flow, self.settings, ctx.options)

    async def http_connect_upstream(self, flow: http.HTTPFlow) -> None:
        await self.guard.asking_upstream(flow, self.settings)

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        if not self.replay_server.plays_at(data.server.address):
            await self.guard.connecting(data, self.settings)

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        if not self.replay_server.plays_at(data.server.address):
            self.guard.connected(data, self.settings)

    def server_disconnected(self, data: server_hooks.ServerConnectionHookData) -> None:
        connections.close_left(data.client, data.server)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        data.server.error = None  # mitmproxy would repeat the error for all later requests of this client connection

    # Requests

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if not flow.live:  # loaded from a file
            flow_metadata.repack(flow)
            return None
        if not self.registry.is_ours(flow):
            if not flow.request.host.isprintable():  # from SOCKS5; the dumper would print its line breaks
                flow.request.host = quoting.line(flow.request.host)
                flow.response = errors.response(errors.BadRequest("The host name contains control characters."))
                return None
            return self.guard.request(flow, self.settings, ctx.options)
        if self.started.is_set():
            self.shared.use(self.settings.backends)
        if (self.shared.tokens.untried or not self.started.is_set()) and not local_responses.is_probe(flow.request.path):
            return self.start_exchange_later(flow)
        self.start_exchange(flow)
        return None

    async def start_exchange_later(self, flow: http.HTTPFlow) -> None:
        """Start the exchange after the startup and the first Entra token. The ports open before the startup is complete.

        The wait for the startup has a time limit, as the one for the token.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self.started.wait(), entra_tokens.PATIENCE)
        self.shared.use(self.settings.backends)
        await self.shared.tokens.first()
        self.start_exchange(flow)

    def start_exchange(self, flow: http.HTTPFlow) -> None:
        sent_by_mitmproxy = not self.registry.takes_upstream(flow)
        upstream = ingress.upstream(flow, ctx.options) if sent_by_mitmproxy else None
        origin = flow.request.headers.get("origin")
        settings = request_replay.prepare(flow, self.settings) if flow.is_replay else self.settings
        exchange = Exchange(
            settings,
            origin,
            upstream,
            None if sent_by_mitmproxy else ingress.proxy(flow, ctx.options),
            self._not_ready,
            self.discovery.names,
            shared=self.shared,
            replay=self.replay_server.replay,
        )
        self.registry.exchanges[flow] = exchange
        exchange.request_head(flow.request)
        self.registry.show(flow, exchange, flow.request)
        self.recorder.asked(flow)
        if self.registry.refuses_page(flow, exchange):
            return
        if exchange.unchanged:
            flow.response = exchange.forward_unchanged(flow.request)

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        exchange = self.registry.exchanges.get(flow)
        if exchange and not (exchange.unchanged or exchange.streamed or flow.response):
            if request_compression.HEADER in flow.request.headers:
                return self.registry.translate_compressed(flow, exchange)
            if scan := exchange.to_scan(flow.request):
                return self.registry.translate_large(flow, exchange, *scan)
            self.registry.translate(flow, exchange)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if (exchange := self.registry.exchanges.get(flow)) and flow.response:
            self.registry.mask_changes(flow, exchange)
            exchange.mask_head(flow.response)
            self.recorder.answered(flow, flow.response)
            exchange.response_head(flow.response)
            self.recorder.streams(flow, flow.response)
        elif flow.live and flow.response and not exchange and not flow.response.stream:
            flow.response.stream = foreign_flows.streams(ctx.master)

    def response(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if (exchange := self.registry.exchanges.get(flow)) and flow.response:
            whole = not flow.response.stream and flow.response.raw_content is not None
            azures = exchange.content(flow.response) if whole else None
            exchange.mask_trailers(flow.response)
            if scan := exchange.answer_to_scan(flow.response, azures):
                return self.registry.answer_large(flow, exchange, *scan)
            self.registry.answer_whole(flow, exchange, azures)
        return None

    def websocket_message(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if (exchange := self.registry.exchanges.get(flow)) and flow.websocket:
            if scan := exchange.frame_to_scan(flow.websocket.messages[-1]):
                return self.registry.frame_large(flow, exchange, *scan)
            self.registry.frame(flow, exchange)
        return None

    def error(self, flow: http.HTTPFlow) -> None:
        if flow.error:
            flow.error.msg = quoting.line(flow.error.msg)  # contains text from the client, and is printed and saved
        if exchange := self.registry.exchanges.get(flow):
            self.registry.mask_changes(flow, exchange)
            self.registry.finish(flow, exchange)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        if exchange := self.registry.exchanges.get(flow):
            if flow.websocket and flow.websocket.close_reason:  # the dumper prints it unescaped
                flow.websocket.close_reason = quoting.line(flow.websocket.close_reason)
            self.recorder.websocket_ended(flow, exchange.facts())

    def _not_ready(self) -> str | None:
        if not self.started.is_set():
            return "starting"
        return "stopping" if self.shutdown.began else self.shared.unusable()
