"""Replay of recorded responses, either at once or with the recorded timing, by a small loopback server in the place of Azure.

mitmproxy sends an addon's response in one piece. A timed stream or a WebSocket therefore needs an upstream server: `Player`. It serves
only the recordings that were registered with it, each once and under a random name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from typing import TYPE_CHECKING, NamedTuple

from mitmproxy import ctx, exceptions, http, io
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Request, TextMessage

from azure_openai_proxy.api import realtime
from azure_openai_proxy.api.endpoints import IN_SESSION
from azure_openai_proxy.config.parsers import REPLAY_IGNORED

from . import flow_metadata, recording_index
from .recording_index import Recordings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mitmproxy import websocket
    from mitmproxy.optmanager import OptManager

    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.config.settings import Settings

    from .response_text import Chunk

__all__ = ["Player", "Replay", "ReplayServer"]

logger = logging.getLogger(__name__)

_NAME = "x-azure-openai-recording"
_MODELS = ("model", *IN_SESSION, "response.model")  # the client sends its own names, the recording has the deployments


class Replay:
    """The source of responses that `Exchange` uses in place of Azure."""

    def __init__(self, recorded: Recordings, player: Player, *, paced: bool) -> None:
        self.recorded = recorded
        self._player = player
        self._paced = paced

    def find(self, call: Call, request: http.Request) -> http.HTTPFlow:
        """The recording that answers.

        Raises:
            NotFound: there is no recording for it.
        """
        content_type = request.headers.get("content-type", "")
        wanted = recording_index.key(
            call.operation, call.model, request.path, content_type, request.raw_content or b"", self.recorded.ignored
        )
        return self.recorded.next(wanted)

    def respond(self, found: http.HTTPFlow, request: http.Request) -> http.Response | None:
        """The recorded response; None if the player serves it, in which case `request` is redirected to the player."""
        assert found.response, "only complete flows are indexed"
        chunks = flow_metadata.parse(found).chunks
        if found.websocket or (self._paced and chunks):
            self._player.aim(request, found)
            return None
        response = found.response.copy()
        response.stream = False
        _whole(response.headers, len(response.raw_content or b""))
        return response


def _whole(headers: http.Headers, length: int) -> None:
    headers.pop("transfer-encoding", None)
    headers["content-length"] = str(length)


class Piece(NamedTuple):
    at: float
    data: bytes


def pieces(body: bytes, chunks: tuple[Chunk, ...]) -> list[Piece]:
    """The body split into its recorded chunks. `at` is in seconds since the start of the request."""
    found, start = [], 0
    for chunk in chunks:
        found.append(Piece(chunk.at, body[start : start + chunk.size]))
        start += chunk.size
    return [*found, *([Piece(chunks[-1].at, body[start:])] if body[start:] and chunks else [])]


class Player:
    """The loopback server. Its port is opened on first use."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._server: asyncio.Task[asyncio.Server] | None = None
        self._waiting: dict[str, http.HTTPFlow] = {}

    @property
    def opened(self) -> bool:
        return self._socket is not None

    @property
    def address(self) -> tuple[str, int]:
        if self._socket is None:
            self._socket = socket.create_server(("127.0.0.1", 0))  # connections queue until the server accepts them
            self._server = asyncio.create_task(asyncio.start_server(self._serve, sock=self._socket))
        host, port = self._socket.getsockname()
        return host, port

    def aim(self, request: http.Request, recorded: http.HTTPFlow) -> None:
        name = secrets.token_hex(16)
        self._waiting[name] = recorded
        host, port = self.address
        request.scheme, request.port, request.host = "http", port, host
        for key in ("authorization", "api-key"):
            request.headers.pop(key, None)
        if "sec-websocket-protocol" in request.headers:
            request.headers["sec-websocket-protocol"] = ", ".join(realtime.offered(request.headers))
        request.headers[_NAME] = name

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = dict(_header(line) for line in head.decode("latin-1").split("\r\n")[1:] if line)
                recorded = self._waiting.pop(headers.get(_NAME, ""), None)
                if recorded is None:
                    return
                if recorded.websocket:
                    await _replay_websocket(recorded.websocket, head, reader, writer)
                    return
                await reader.readexactly(int(headers.get("content-length", 0)))
                await _stream(recorded, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            return  # the client disconnected
        finally:
            writer.close()


class ReplayServer:
    """`--server-replay` for OpenAI flows. All others stay with mitmproxy's own replay, which compares bytes."""

    def __init__(self) -> None:
        self.replay: Replay | None = None
        self._player = Player()
        self._loaded: object = None

    def configure(self, options: OptManager, settings: Settings) -> None:
        files = list(options.server_replay) if "server_replay" in options else []
        wanted = (files, settings.replay_ignore, settings.replay_paced)
        if wanted == self._loaded or not (files or self.replay):
            return
        self._loaded = wanted
        try:
            recorded = Recordings(io.read_flows_from_paths(files), settings.replay_ignore)
        except exceptions.FlowReadException:
            return  # mitmproxy reads the file too and reports the error
        self.replay = Replay(recorded, self._player, paced=settings.replay_paced) if files else None

    def plays_at(self, address: object) -> bool:
        """Whether this is the player's own address."""
        return self._player.opened and address == self._player.address

    def running(self) -> None:
        if self.replay:
            ctx.master.commands.call("replay.server", self.replay.recorded.others)
            if "keepserving" in ctx.options:
                ctx.options.keepserving = True  # mitmdump would exit, since mitmproxy's own replay has no flows
            logger.info("Replaying %d recorded responses: no request is sent to Azure.", len(self.replay.recorded))


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


async def _stream(recorded: http.HTTPFlow, writer: asyncio.StreamWriter) -> None:
    response = recorded.response
    assert response
    clock = asyncio.get_running_loop().time
    began = clock()
    left_out = ("content-length", "transfer-encoding", "connection")
    fields = [(name, value) for name, value in response.headers.fields if name.decode().lower() not in left_out]
    lines = [b"HTTP/1.1 %d %b" % (response.status_code, response.reason.encode()), *(name + b": " + value for name, value in fields)]
    writer.write(b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", b""]))
    for piece in pieces(response.raw_content or b"", tuple(flow_metadata.parse(recorded).chunks)):
        await writer.drain()
        await asyncio.sleep(max(0.0, piece.at - (clock() - began)))
        writer.write(b"%x\r\n%b\r\n" % (len(piece.data), piece.data))
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _replay_websocket(
    recorded: websocket.WebSocketData, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Replay a WebSocket: send each recorded server message once the client has sent the messages recorded before it."""
    connection = WSConnection(ConnectionType.SERVER)
    connection.receive_data(head)
    request = next(connection.events())
    assert isinstance(request, Request)
    writer.write(connection.send(AcceptConnection(subprotocol=next(iter(request.subprotocols), None))))
    incoming = _messages(connection, reader, writer)
    for message in recorded.messages:
        if not message.from_client:
            writer.write(connection.send(TextMessage(message.content.decode()) if message.is_text else BytesMessage(message.content)))
            continue
        said = await anext(incoming, None)
        if said is None:
            return
        if not _same(said, message.content):
            error = {"type": "invalid_request_error", "code": "not_recorded", "message": "This message is not the one that was recorded."}
            writer.write(connection.send(TextMessage(json.dumps({"type": "error", "error": error}))))
            writer.write(connection.send(CloseConnection(code=1008, reason="not recorded")))
            return
    if not recorded.closed_by_client:
        writer.write(connection.send(CloseConnection(code=recorded.close_code or 1000)))
    async for _ in incoming:
        pass


def _same(said: bytes, recorded: bytes) -> bool:
    ignored = (*REPLAY_IGNORED, *_MODELS)
    return recording_index.meaning(said, ignored=ignored) == recording_index.meaning(recorded, ignored=ignored)


async def _messages(connection: WSConnection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    """The client's complete messages, until it closes the connection."""
    pending = b""
    while data := await reader.read(65536):
        connection.receive_data(data)
        for event in connection.events():
            if isinstance(event, Message):
                pending += event.data.encode() if isinstance(event.data, str) else event.data
                if event.message_finished:
                    yield pending
                    pending = b""
            elif isinstance(event, CloseConnection):
                if connection.state.name == "REMOTE_CLOSING":
                    writer.write(connection.send(event.response()))
                return
            elif hasattr(event, "response"):
                writer.write(connection.send(event.response()))  # a ping
