"""The simulator in a thread of its own, for tests and for `python -m azure_simulator`."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aiohttp import web

from . import websockets
from .account import sent_usage
from .calls import recognise
from .delivery import deliver, drop_unset_content_type
from .faults import Faults
from .made_items import MadeItems
from .models import DEPLOYMENTS
from .operations import OPERATIONS, respond
from .received import Received, Requests
from .tls import make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from .prompt_cache import PromptCache
    from .scripts import Script

__all__ = ["Simulator"]


class Simulator:
    """A stand-in for one Azure OpenAI resource, on loopback.

    `stop()` and `start()` make it go and come back on the same ports, with the same certificate.
    """

    def __init__(
        self,
        *,
        key: str = "azure-key-0123456789abcdef",
        deployments: Mapping[str, str] | None = None,
        entra_tokens: Iterable[str] = (),
        names: Iterable[str] = (),
        port: int = 0,
        https_port: int = 0,
        on_request: Callable[[Received], None] | None = None,
    ) -> None:
        self.key = key
        self.entra_tokens = set(entra_tokens)
        self.deployments = dict(DEPLOYMENTS if deployments is None else deployments)
        self.faults = Faults()
        self.script: Script | None = None  # of the model; None: it repeats the last message
        self.prompt_cache: PromptCache | None = None  # None: every long prompt is cached, so that a test can predict the tokens
        self._on_request = on_request
        self._requests = Requests()
        self._made = MadeItems()
        self._ports = [port, https_port]
        self._folder = tempfile.TemporaryDirectory(prefix="azure-simulator-")
        self.ca, self._tls = make(Path(self._folder.name), ["localhost", "127.0.0.1", *names])
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def https_url(self) -> str:
        return f"https://localhost:{self._ports[1]}"

    @property
    def requests(self) -> list[Received]:
        return self._requests.all()

    def wait_for_request(self, n: int = 1, timeout: float = 5) -> Received:
        """The n-th request since the start or the last `reset()`, from 1."""
        return self._requests.wait(n, timeout)

    def reset(self) -> None:
        """Forget the requests, the faults, the script and the prompt cache."""
        self.faults.clear()
        self.script = self.prompt_cache = None
        self._requests.clear()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._folder.cleanup()

    def start(self) -> None:
        """Return when both ports are open."""
        ready = threading.Event()
        failed: list[BaseException] = []

        async def run() -> None:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", self._serve)
            app.on_response_prepare.append(drop_unset_content_type)
            runner = web.AppRunner(
                app,
                access_log=None,
                auto_decompress=False,
                handle_signals=False,
                handler_cancellation=True,
                max_field_size=65536,
                max_line_size=65536,
                shutdown_timeout=0.01,  # 0 means for ever
            )
            await runner.setup()
            try:
                for index, context in enumerate((None, self._tls)):
                    site = web.TCPSite(runner, "127.0.0.1", self._ports[index], ssl_context=context, reuse_address=True)
                    await site.start()
                    self._ports[index] = runner.addresses[-1][1]
                self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
                ready.set()
                await self._stopping.wait()
            finally:
                for connection in runner.server.connections if runner.server else ():
                    if connection.transport is not None:
                        connection.transport.abort()  # close() would wait for the TLS farewell of clients that keep theirs open
                await runner.cleanup()

        def main() -> None:
            try:
                asyncio.run(run())
            except BaseException as error:  # noqa: BLE001 - raised again in start()
                failed.append(error)
                ready.set()

        self._thread = threading.Thread(target=main, name="azure-simulator", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """Close both ports and every connection; requests in hand are dropped."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._loop = None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport and request.transport.get_extra_info("peername")
        received = Received(
            request.method,
            request.raw_path,
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers],
            await request.content.read(),
            request.secure,
            f"{request.version.major}.{request.version.minor}",
            peer[1] if peer else 0,
        )
        self._requests.add(received)
        try:
            if websockets.wanted(received):
                return await self._upgrade(request, received)
            call = recognise(received, OPERATIONS, self.deployments, self.script, self._made)
            answer = respond(call, self.key, self.entra_tokens)
            if self.prompt_cache is not None:
                answer = self.prompt_cache(answer, call)
            for fault in self.faults.take(call):
                answer = fault(answer, call)
            received.status = answer.status
            try:
                response, ended = await deliver(request, answer)
            except (asyncio.CancelledError, ConnectionError):
                received.note(sent_usage(answer, ended=False))
                raise
            received.note(sent_usage(answer, ended=ended))
        except (asyncio.CancelledError, ConnectionError):
            received.outcome = "client left"
            raise
        else:
            received.outcome = "answered" if ended else "cut"
            return response
        finally:
            received.done.set()
            if self._on_request is not None:
                self._on_request(received)

    async def _upgrade(self, request: web.Request, received: Received) -> web.StreamResponse:
        refused = websockets.refusal(received, self.key, self.entra_tokens, self.deployments)
        if refused is not None:
            received.status, received.outcome = refused.status, "answered"
            return (await deliver(request, refused))[0]
        received.status = 101
        response = await websockets.serve(request, received, self.deployments, self._made)
        received.outcome = "answered"
        return response
