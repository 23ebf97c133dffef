"""An Azure that takes and gives large bodies without keeping them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MB", "Sink", "Taken", "pattern"]

MB = 1 << 20
KEPT = 64 * 1024
_BLOCK = bytes(range(256)) * 1024


def pattern(size: int) -> Iterator[bytes]:
    """So many bytes, in blocks."""
    for start in range(0, size, len(_BLOCK)):
        yield _BLOCK[: size - start]


@dataclass
class Taken:
    """A received request: all but the middle of its body."""

    method: str
    path: str
    headers: dict[str, str]
    size: int = 0
    start: bytes = b""
    end: bytes = b""
    began: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    sha256: str = ""


class Sink:
    """POST: `{"id": "file-1", ...}` when the body is over; with `refuse`, that status at once. GET: `size` bytes."""

    def __init__(self) -> None:
        self.size = 0
        self.refuse = 0
        self._taken: list[Taken] = []
        self._came = threading.Condition()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def wait(self, n: int = 1, timeout: float = 30) -> Taken:
        """The n-th request, when its head has come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self._taken) >= n, timeout)
            return self._taken[n - 1]

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer), handle_signals=False, shutdown_timeout=0.01)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert runner.addresses
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        taken = Taken(request.method, request.raw_path, {name.lower(): value for name, value in request.headers.items()})
        with self._came:
            self._taken.append(taken)
            self._came.notify_all()
        if self.refuse:
            return web.json_response({"error": {"code": str(self.refuse), "message": "no"}}, status=self.refuse)
        digest = hashlib.sha256()
        async for data in request.content.iter_any():
            digest.update(data)
            taken.size += len(data)
            taken.start += data[: max(0, KEPT - len(taken.start))]
            taken.end = (taken.end + data)[-KEPT:]
            taken.began.set()
        taken.sha256 = digest.hexdigest()
        taken.done.set()
        if request.method == "GET":
            response = web.StreamResponse(headers={"content-type": "application/octet-stream", "content-length": str(self.size)})
            await response.prepare(request)
            for block in pattern(self.size):
                await response.write(block)
            return response
        return web.json_response({"id": "file-1", "object": "file", "bytes": taken.size})
