"""The addon class: mitmproxy's hooks, each a few lines that call a stage of the processing.

For each request, `requestheaders` decides whether it is an API request, `request` translates it for Azure or answers it, `responseheaders`
translates the response headers and starts streaming, and `response` translates a buffered body.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from mitmproxy import ctx, http

from . import errors
from .accounting.accounts import Accounts
from .accounting.ledger_clients import LedgerClients
from .accounting.meters import NO_REMAINING
from .accounting.shared.state import SharedState
from .accounting.sink import BackendState, BudgetLeft, LiveState
from .accounting.teams import Teams
from .api import local_responses, request_compression
from .config import runtime, settings
from .config.confdir import check_confdir
from .config.option_conflicts import OptionConflicts
from .egress import connect
from .egress.pool import Limits
from .egress.shortage import SHORTAGES
from .egress.tls import TlsOptions
from .formats import quoting
from .gateway import foreign_flows, ingress, log_output, log_records, relay_guard, response_from_azure
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

    from .inspection.site.mitmweb import CommentStyle, Mount

__all__ = ["AzureOpenAIProxy"]

logger = logging.getLogger(__name__)

GC_THRESHOLD = 10_000
"""New objects after which Python collects garbage. Requests in progress, and those whose records are made together, have more objects than
its default of 2,000, and nearly all of them are freed without a collection: a request leaves none in a reference cycle.
"""


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
        self.accounts = Accounts(self.live_state, of_flows=self.registry.meters)
        self.teams = Teams(self.accounts.prices, self.accounts.spent)
        self.ledger_clients = LedgerClients(self.teams.directory, self.teams.budgets)
        self.shared_state = SharedState(self.shared, self.teams, self.ledger_clients)
        self.teams.budgets.on_charge = self.shared_state.charged
        self.accounts.receive_ledger = self.ledger_clients.apply
        self.client_connections = 0
        self.following: asyncio.Task[None] | None = None
        self.sharing: asyncio.Task[None] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.warming: list[asyncio.Task[None]] = []
        self.replay_server = ReplayServer()
        self.started = asyncio.Event()
        self.looked_at = False  # mitmweb or the console runs
        self.saved = False  # mitmproxy saves the flows to a file
        self.addons: list[object] = [Commands(lambda: self.settings, self.shared)]

    @property
    def settings(self) -> settings.Settings:
        """The current settings. A running request keeps those in effect when it arrived."""
        return self.runtime.settings

    # Start, configuration and end

    def load(self, loader: Loader) -> None:
        try:
            check_confdir(ctx.options.confdir)
        except errors.SettingsError as error:
            sys.exit(f"azure-openai-proxy: {error}")
        log_records.install()
        log_output.install(ctx.master)
        self.runtime.load(loader)
        contentviews.register(ctx.options)
        self.show_comments(shown=True)  # mitmweb's page may be opened before `running`
        install.serve_site(ctx.master, self.site)
        if hasattr(ctx.master, "view"):
            from .inspection.thread_commands import ThreadCommands  # noqa: PLC0415 - a mitmdump needs none of it

            self.addons.append(ThreadCommands(lambda: self.settings))
        ctx.options.connection_strategy = "lazy"  # "eager" would open unused connections to api.openai.com

    @staticmethod
    def show_comments(*, shown: bool) -> None:
        """Show the comments of flows in the lists of mitmweb and the console, or hide them."""

        def style() -> type[CommentStyle]:
            from .inspection.site.mitmweb import CommentStyle  # noqa: PLC0415 - a mitmdump needs none of it

            return CommentStyle

        install.show_comments(ctx.master, quoting.line, style, shown=shown)

    def site(self) -> Mount:
        """The inspector's page. Only mitmweb imports it."""
        from .inspection.site import mitmweb, pages  # noqa: PLC0415 - as above

        return mitmweb.mount(pages.site(ctx.master.view, lambda: self.settings, self.registry.takes_upstream))  # type: ignore[attr-defined]

    def configure(self, updated: set[str]) -> None:
        self.runtime.configure(ctx.options, updated)
        self.looked_at = hasattr(ctx.master, "view")
        self.saved = settings.saves_flows(ctx.options)
        kept = settings.kept_bodies(self.settings, ctx.options, looked_at=self.looked_at)
        self.recorder.keep(kept, watched=self.looked_at or kept > 0 or self.saved)
        self.replay_server.configure(ctx.options, self.settings)
        self.discovery.follow(self.settings, ctx.options)
        limits = Limits(self.settings.pool_size, self.settings.pool_idle)
        self.registry.pools.configure(TlsOptions.of(ctx.options), limits, ctx.options.connect_addr)
        self.registry.pools.keep(lambda destination: (destination.host, destination.port) in self.settings.destinations)
        self.conflicts.check({name: option.current() for name, option in ctx.options.items()}, self.settings.hosts)
        install.set_fast_path(ctx.master, on=self.settings.fast_path)
        self.accounts.price_file = self.settings.prices
        self.teams.use(self.settings)  # before the ledger is read, whose sums are for its clients
        self.ledger_clients.expect(ledger=bool(self.settings.ledger), off=self.settings.client_auth == "off")
        if self.started.is_set() and self.accounts.differs(self.settings):
            self.following = asyncio.create_task(self.accounts.follow(lambda: self.settings, self.runtime.located))
            self.reopen_on_hangup()
        if self.started.is_set() and self.shared_state.differs(self.settings):
            self.sharing = asyncio.create_task(self.shared_state.follow(lambda: self.settings))

    def running(self) -> Awaitable[None] | None:
        self.runtime.running(ctx.options)
        self.replay_server.running()
        self.shutdown.arm()
        SHORTAGES.watch(asyncio.get_running_loop())
        connections.lengthen_backlog()
        install.check()
        self.shared.use(self.settings.backends)
        self.watcher = asyncio.create_task(self.runtime.watch(ctx.options))
        self.show_comments(shown=True)  # the console's list does not exist earlier
        if self.accounts.differs(self.settings) or self.shared_state.differs(self.settings):
            return self.start_with_accounts()
        self.serve()
        return None

    async def start_with_accounts(self) -> None:
        """Open the sinks of usage records and join the replicas before the first request. An error ends mitmproxy at its start."""
        self.reopen_on_hangup()
        try:
            await self.accounts.start(self.settings)
        except errors.SettingsError as error:
            logger.error("%s", self.runtime.located(error))  # noqa: TRY400 - no traceback for a user's error
        await self.shared_state.follow(lambda: self.settings)
        self.serve()

    def reopen_on_hangup(self) -> None:
        """Reopen the files of usage records on SIGHUP, where the system has it."""
        if hasattr(signal, "SIGHUP"):
            with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread, where the embedding program decides
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.accounts.reopen)

    def serve(self) -> None:
        relay_guard.warn(self.settings, ctx.options, keys_required=self.teams.auth(self.settings) == "required")
        gc.freeze()  # modules and options stay: each full collection would take 40 ms to find that out
        gc.set_threshold(GC_THRESHOLD)
        self.started.set()
        if ctx.options.server and not self.replay_server.replay and not ("rfile" in ctx.options and ctx.options.rfile):
            self.warming = [asyncio.create_task(one) for one in self.registry.connections_ahead(ctx.options.mode)]

    def done(self) -> Awaitable[None] | None:
        self.show_comments(shown=False)
        install.serve_site(ctx.master, None)
        install.set_fast_path(ctx.master, on=False)
        self.shared.tokens.close()
        self.discovery.close()
        for task in self.warming:
            task.cancel()
        self.registry.pools.close()
        if self.watcher:
            self.watcher.cancel()
        SHORTAGES.unwatch()
        log_records.remove()
        return self.close_accounts() if self.accounts.active or self.shared_state.up is not None else None

    async def close_accounts(self) -> None:
        await self.accounts.close()
        await self.shared_state.close()

    def live_state(self) -> LiveState:
        """The state of the process, for metrics. Records that are still to be made are made first, so that a page is up to date."""
        meters = self.accounts.meters
        meters.complete()
        running = meters.running
        return LiveState(
            active_requests=len(running),
            active_streams=sum(meter.streams for meter in running),
            client_connections=self.client_connections,
            budgets=[BudgetLeft(name, state.budget.usd, state.remaining) for name, state in self.teams.budget_states()],
            limit_refusals=dict(self.teams.refusals),
            shared_state_up=self.shared_state.up,
            backends=[
                self.backend_state(*deployment) for deployment in meters.deployments(backend.name for backend in self.settings.backends)
            ],
        )

    def backend_state(self, backend: str, deployment: str) -> BackendState:
        remaining = self.accounts.meters.remaining.get((backend, deployment), NO_REMAINING)
        return BackendState(backend, deployment, self.shared.pool.is_up(backend, deployment), remaining.tokens, remaining.requests)

    # Connections

    def client_connected(self, client: connection.Client) -> None:
        self.client_connections += 1
        if sock := connections.client_socket(client):
            connect.keep_alive(sock)
        install.enable_direct_reads(client, self.registry)

    def client_disconnected(self, _: connection.Client) -> None:
        self.client_connections -= 1

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
        return self.start_exchange(flow)

    async def start_exchange_later(self, flow: http.HTTPFlow) -> None:
        """Start the exchange after the startup and the first Entra token. The ports open before the startup is complete.

        The wait for the startup has a time limit, as the one for the token.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self.started.wait(), entra_tokens.PATIENCE)
        self.shared.use(self.settings.backends)
        await self.shared.tokens.first()
        if (waiting := self.start_exchange(flow)) is not None:
            await waiting

    def start_exchange(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
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
            lambda: self.shared_state.detail,
            self.discovery.names,
            reads_usage=self.looked_at or self.saved or self.accounts.active,
            shared=self.shared,
            replay=self.replay_server.replay,
        )
        self.teams.use(self.settings)
        own_page = local_responses.is_own_page(flow.request.method, flow.request.path)
        keyed = self.teams.auth(settings) != "off" and not (flow.is_replay or own_page)
        unmeasured = own_page or (keyed and local_responses.is_self_service(flow.request.method, flow.request.path))
        if (self.accounts.active or self.recorder.watched or keyed) and not unmeasured:
            exchange.meter = self.accounts.meters.start(flow.request, flow.client_conn.peername[0], exchange.keys)
        self.registry.exchanges[flow] = exchange
        if keyed:
            exchange.own_keys, exchange.keys_required = True, self.teams.auth(settings) == "required"
        refused = self.registry.refuses_page(flow, exchange)
        waiting = self.registry.authenticate(flow, exchange, self.teams) if keyed and not refused else None
        if exchange.early is None:
            exchange.request_head(flow.request)
        self.registry.show(flow, exchange, flow.request)
        if exchange.keys.in_path:
            self.registry.refuse_key_in_path(exchange)
        self.recorder.record_request(flow)
        if refused:
            return None
        if exchange.unchanged and exchange.early is None:
            flow.response = exchange.forward_unchanged(flow.request)
        return None if waiting is None else self.registry.authenticate_later(exchange, waiting)

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        exchange = self.registry.exchanges.get(flow)
        if exchange and not (exchange.unchanged or exchange.streamed or flow.response):
            if request_compression.HEADER in flow.request.headers:
                return self.registry.translate_compressed(flow, exchange)
            if scan := exchange.to_scan(flow.request):
                return self.registry.translate_large(flow, exchange, *scan)
            return self.registry.translate(flow, exchange)
        return None

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if (exchange := self.registry.exchanges.get(flow)) and flow.response:
            exchange.keys.mask_changes(flow.request)
            exchange.keys.mask_head(flow.response)
            self.recorder.record_response_head(flow, flow.response)
            exchange.response_head(flow.response)
            self.recorder.tap_stream(flow, flow.response, exchange.meter)
        elif flow.live and flow.response and not exchange and not flow.response.stream:
            flow.response.stream = foreign_flows.streams(ctx.master)

    def response(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if (exchange := self.registry.exchanges.get(flow)) and flow.response:
            whole = not flow.response.stream and flow.response.raw_content is not None
            azure_body = response_from_azure.decompressed(flow.response) if whole else None
            exchange.keys.mask_trailers(flow.response)
            if scan := exchange.response_to_scan(flow.response, azure_body):
                return self.registry.finish_large_response(flow, exchange, *scan)
            self.registry.finish_response(flow, exchange, azure_body)
        return None

    def websocket_message(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if (exchange := self.registry.exchanges.get(flow)) and flow.websocket:
            if scan := exchange.messages.to_scan(flow.websocket.messages[-1]):
                return self.registry.frame_large(flow, exchange, *scan)
            return self.registry.frame(flow, exchange)
        return None

    def error(self, flow: http.HTTPFlow) -> None:
        if flow.error:
            flow.error.msg = quoting.line(flow.error.msg)  # contains text from the client, and is printed and saved
        if exchange := self.registry.exchanges.get(flow):
            exchange.keys.mask_changes(flow.request)
            self.registry.finish(flow, exchange)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        if exchange := self.registry.exchanges.get(flow):
            if flow.websocket and flow.websocket.close_reason:  # the dumper prints it unescaped
                flow.websocket.close_reason = quoting.line(flow.websocket.close_reason)
            record = exchange.measure_websocket_end(flow.websocket)
            if exchange.admission is not None:
                exchange.admission.end_all()
            self.recorder.record_websocket_end(flow, exchange.facts(), record)

    def _not_ready(self) -> str | None:
        if not self.started.is_set():
            return "starting"
        return "stopping" if self.shutdown.began else self.shared.unusable()
