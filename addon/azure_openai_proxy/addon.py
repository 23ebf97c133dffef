"""The one addon class: mitmproxy's hooks, each a few lines that call a stage.

A request's life: `requestheaders` tells whether it is ours, `request` turns it into Azure's or answers it,
`responseheaders` shapes the head of the answer and lets a stream through, `response` shapes a body that was read whole.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http

from . import again, errors, http_layer, options, redact, safety, synthesized, views, ways
from .attempts import ATTEMPTS, Shared
from .backends_command import BackendsCommand
from .commands import Commands
from .discovery import Discovery
from .exchange import Exchange
from .playback import Playback
from .pool import Pool
from .seeing import Seeing
from .stopping import Stopping

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from mitmproxy import connection, tls
    from mitmproxy.addonmanager import Loader
    from mitmproxy.proxy import layer, server_hooks

    from .options import Settings
    from .peek import Peek

__all__ = ["AzureOpenAIProxy"]

logger = logging.getLogger(__name__)


class AzureOpenAIProxy:
    """Any OpenAI client talks to Azure OpenAI."""

    def __init__(self) -> None:
        self.live = options.Live()
        self.exchanges: WeakKeyDictionary[http.HTTPFlow, Exchange] = WeakKeyDictionary()
        self.discovery = Discovery()
        self.guard = safety.Guard()
        self.hindrances = ways.Hindrances()
        self.stopping = Stopping(self.exchanges, lambda: self.settings.stop_timeout)
        self.shared = Shared(Pool())
        self.watcher: asyncio.Task[None] | None = None
        self.seeing = Seeing()
        self.playback = Playback()
        self.addons = [BackendsCommand(self.shared), Commands(lambda: self.settings)]

    @property
    def settings(self) -> Settings:
        """Those in force now; a request keeps the ones it came under."""
        return self.live.settings

    # Its life

    def load(self, loader: Loader) -> None:
        self.live.load(loader)
        views.register(ctx.options)
        ctx.options.connection_strategy = "lazy"  # eager would ask api.openai.com for a connection nobody needs

    def configure(self, updated: set[str]) -> None:
        self.live.configure(ctx.options, updated)
        self.seeing.keep(options.kept_bodies(self.settings, ctx.options, looked_at=hasattr(ctx.master, "view")))
        self.playback.configure(ctx.options, self.settings)
        self.discovery.follow(self.settings, ctx.options)
        self.hindrances.look({name: option.current() for name, option in ctx.options.items()}, self.settings.hosts)
        http_layer.hasten(ctx.master, on=self.settings.shortcuts)

    def running(self) -> None:
        self.live.running(ctx.options)
        self.playback.running()
        self.stopping.arm()
        safety.warn(self.settings, ctx.options)
        self.shared.use(self.settings.backends)
        self.watcher = asyncio.create_task(self.live.watch(ctx.options))

    def done(self) -> None:
        http_layer.hasten(ctx.master, on=False)
        self.shared.tokens.close()
        if self.watcher:
            self.watcher.cancel()

    # Connections

    async def client_connected(self, client: connection.Client) -> None:
        http_layer.lift_limit(client)
        await self.shared.tokens.first()

    def next_layer(self, nextlayer: layer.NextLayer) -> None:
        self.guard.note(nextlayer.context)
        http_layer.attach(nextlayer, self)

    def tls_clienthello(self, hello: tls.ClientHelloData) -> None:
        if not ctx.options.allow_hosts and ways.passes_through(hello, self.settings.hosts):
            hello.ignore_connection = True

    def tls_failed_server(self, data: tls.TlsData) -> None:
        data.conn.error = None  # as below

    async def http_connect(self, flow: http.HTTPFlow) -> None:
        if not ways.names_ours([flow.request.host], self.settings.hosts):
            await self.guard.request(flow, self.settings)

    async def server_connect(self, data: server_hooks.ServerConnectionHookData) -> None:
        if not self.playback.plays_at(data.server.address):
            await self.guard.connecting(data, self.settings)

    def server_connected(self, data: server_hooks.ServerConnectionHookData) -> None:
        if not self.playback.plays_at(data.server.address):
            self.guard.connected(data, self.settings)

    def server_connect_error(self, data: server_hooks.ServerConnectionHookData) -> None:
        data.server.error = None  # mitmproxy would give the same error to every later request of this client

    # Requests

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if not self._is_ours(flow):
            return self.guard.request(flow, self.settings)
        self.shared.use(self.settings.backends)
        upstream = ways.upstream(flow, ctx.options)
        origin = flow.request.headers.get("origin")
        settings = again.prepare(flow, self.settings) if flow.is_replay else self.settings
        exchange = Exchange(
            settings, origin, upstream, self._not_ready, self.discovery.names, shared=self.shared, replay=self.playback.replay
        )
        self.exchanges[flow] = exchange
        self.seeing.asked(flow)
        if exchange.unchanged:
            flow.response = exchange.hand_over(flow.request)
        exchange.hidden = redact.hide(flow.request)
        return None

    def request(self, flow: http.HTTPFlow) -> None:
        exchange = self.exchanges.get(flow)
        if exchange and not (exchange.unchanged or exchange.streamed or flow.response):
            self._translate(flow, exchange)

    def _translate(self, flow: http.HTTPFlow, exchange: Exchange, start: bytes | None = None) -> None:
        try:
            flow.response = exchange.request(redact.show(flow.request, exchange.hidden), start)
        except errors.ProxyError as error:
            flow.response = errors.response(error)
        except Exception:  # whatever it was: a request that is not translated must not leave
            logger.exception("A request could not be translated")
            flow.response = errors.response(errors.ProxyError("The proxy failed to translate this request: its log says why."))
        if flow.response or http_layer.mended(flow):
            exchange.hidden = redact.hide(flow.request)
        self.seeing.sent(flow, exchange)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if (exchange := self.exchanges.get(flow)) and flow.response:
            redact.hide(flow.request)
            self.seeing.answered(flow, flow.response)
            exchange.response_head(flow.response)
            self.seeing.streams(flow, flow.response)

    def response(self, flow: http.HTTPFlow) -> None:
        if (exchange := self.exchanges.get(flow)) and flow.response:
            azures = None if flow.response.stream else flow.response.get_content(strict=False)
            exchange.response_body(flow.response)
            if flow.request.method == "HEAD" and not flow.response.stream:
                flow.response.raw_content = b""  # mitmproxy would send it, and the client take it for the next answer
            self._finish(flow, exchange, azures)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        if (exchange := self.exchanges.get(flow)) and flow.websocket:
            exchange.frame(flow.websocket.messages)

    def error(self, flow: http.HTTPFlow) -> None:
        if exchange := self.exchanges.get(flow):
            redact.hide(flow.request)
            self._finish(flow, exchange)

    def websocket_end(self, flow: http.HTTPFlow) -> None:
        if exchange := self.exchanges.get(flow):
            self.seeing.talked(flow, exchange)

    # What http_layer asks: the keys on the wire, the limits and the shape of what goes wrong below the hooks

    def on_the_wire(self, flow: http.HTTPFlow) -> http.Request:
        exchange = self.exchanges.get(flow)
        return redact.show(flow.request.copy(), exchange.hidden) if exchange else flow.request

    @property
    def shortcuts(self) -> bool:
        return self.settings.shortcuts

    def max_body(self, flow: http.HTTPFlow) -> int | None:
        exchange = self.exchanges.get(flow)
        return None if exchange is None or exchange.unchanged else exchange.settings.max_body

    def goes_on(self, flow: http.HTTPFlow) -> bool:
        exchange = self.exchanges.get(flow)
        return exchange is not None and not exchange.unchanged and exchange.goes_on(flow.request)

    def begin(self, flow: http.HTTPFlow, start: bytes) -> None:
        self._translate(flow, self.exchanges[flow], start)

    def answer(self, failure: http_layer.Failure, flow: http.HTTPFlow | None) -> http.Response | None:
        if flow and flow not in self.exchanges and not self._is_ours(flow):
            return None  # (a head that nobody can read has no flow; it reached the gateway)
        response = errors.response(errors.Failed(*failure))
        if flow and (exchange := self.exchanges.get(flow)) and exchange.attempts:
            exchange.attempts.say_when(response.headers, failure.status)
        synthesized.add_cors(response, flow.request.headers.get("origin") if flow else None)
        return response

    def timeouts(self, flow: http.HTTPFlow) -> http_layer.Timeouts | None:
        return self.exchanges[flow].settings.timeouts if flow in self.exchanges else None

    def holds(self, flow: http.HTTPFlow, response: http.Response) -> Literal["pass", "whole"] | Peek:
        return self.exchanges[flow].holds(response) if flow in self.exchanges else "pass"

    def again(self, flow: http.HTTPFlow, what: http_layer.Failure | http.Response) -> bool | http.Response:
        if (exchange := self.exchanges.get(flow)) is None:
            return False
        found = exchange.again(flow.request, what)
        exchange.hidden = redact.hide(flow.request) if found is True else exchange.hidden
        return found

    def _finish(self, flow: http.HTTPFlow, exchange: Exchange, azures: bytes | None = None) -> None:
        exchange.finish()
        self.seeing.ended(flow, exchange, azures)
        if exchange.attempts:
            flow.metadata[ATTEMPTS] = exchange.attempts.seen()

    def _not_ready(self) -> str | None:
        return "stopping" if self.stopping.began else self.shared.unusable()

    def _is_ours(self, flow: http.HTTPFlow) -> bool:
        if flow.is_replay:
            return again.is_ours(flow)
        return ways.is_ours(flow, self.settings.hosts, absolute=http_layer.absolute_form(flow))
