"""The replay of recorded responses, at once or with the recorded timing. The end-to-end tests use real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientSession, ServerDisconnectedError, WSMsgType
from mitmproxy import http, io
from mitmproxy import options as mitmproxy_options
from mitmproxy.addons.keepserving import KeepServing
from mitmproxy.addons.serverplayback import ServerPlayback
from mitmproxy.test import taddons, tflow
from mitmproxy.websocket import WebSocketData, WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.api import operation as operations
from azure_openai_proxy.config.settings import Settings
from azure_openai_proxy.inspection import flow_metadata
from azure_openai_proxy.inspection.flow_metadata import ClientRequestHead
from azure_openai_proxy.inspection.recording_index import Recordings
from azure_openai_proxy.inspection.replay_server import Player, Replay, ReplayServer, pieces
from azure_openai_proxy.inspection.response_text import Chunk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BODY = b'{"model":"m","stream":true}'
EVENTS = b"data: 1\n\ndata: 2\n\n"


def recorded(chunks: list[float] | None = None) -> http.HTTPFlow:
    flow = tflow.tflow(
        req=http.Request.make("POST", "https://r/openai/v1/chat/completions", BODY, http.Headers(content_type="application/json"))
    )
    flow.response = http.Response.make(200, EVENTS, http.Headers(content_type="text/event-stream", transfer_encoding="chunked"))
    flow.metadata = {
        "azure_openai_operation": "POST /v1/chat/completions",
        "azure_openai_model": "m",
        "azure_openai_asked": flow_metadata.pack(ClientRequestHead("POST", "/v1/chat/completions", [])),
        **({"azure_openai_chunks": chunks} if chunks else {}),
    }
    return flow


def session(*messages: tuple[bool, Any], closed_by_client: bool = True) -> http.HTTPFlow:
    flow = recorded()
    flow.websocket = WebSocketData(closed_by_client=closed_by_client)
    for client, value in messages:
        text = not isinstance(value, bytes)
        content = json.dumps(value).encode() if text else value
        flow.websocket.messages.append(WebSocketMessage(Opcode.TEXT if text else Opcode.BINARY, client, content))
    return flow


def asked(body: bytes = BODY) -> http.Request:
    headers = http.Headers(
        content_type="application/json", authorization="Bearer k", sec_websocket_protocol="openai-insecure-api-key.k, realtime"
    )
    return http.Request.make("POST", "http://localhost/v1/chat/completions", body, headers)


def found(replay: Replay, request: http.Request) -> http.HTTPFlow:
    call = operations.recognise(request.method, request.path, request.headers, request.raw_content or b"")
    assert call
    return replay.find(call, request)


@pytest.fixture
def player() -> Iterator[Player]:
    made = Player()
    yield made
    if made._socket:
        made._socket.close()


def test_an_answer_at_once(player: Player) -> None:
    """A response without timing is complete, has a content length, and opens no port."""
    replay = Replay(Recordings([recorded([0.1, 9])]), player, paced=False)
    answer = replay.respond(found(replay, asked()), asked())
    assert answer
    assert (EVENTS, str(len(EVENTS)), False) == (answer.content, answer.headers["content-length"], "transfer-encoding" in answer.headers)
    assert None is player._socket


async def test_a_stream_in_its_pace(player: Player) -> None:
    """A timed stream is served by the player, to which the request is redirected without its key."""
    replay = Replay(Recordings([recorded([0.01, 9, 0.02, 9])]), player, paced=True)
    request = asked()
    assert None is replay.respond(found(replay, request), request)
    assert ("realtime", False, player.address) == (
        request.headers["sec-websocket-protocol"],
        "authorization" in request.headers,
        (request.host, request.port),
    )
    async with ClientSession() as client:
        name = {"x-azure-openai-recording": request.headers["x-azure-openai-recording"]}
        answer = await client.post(request.url, data=BODY, headers=name)
        assert (EVENTS, "text/event-stream") == (await answer.read(), answer.headers["content-type"])
        with pytest.raises(ServerDisconnectedError):  # each recording is served once, and only under its name
            await client.post(request.url, data=BODY, headers=name)


def test_pieces() -> None:
    """A body is split by the recorded sizes, and the remainder is sent with the last chunk."""
    assert [(0.1, b"ab"), (0.2, b"c"), (0.2, b"de")] == pieces(b"abcde", (Chunk(0.1, 2), Chunk(0.2, 1)))
    assert [(0.1, b"ab")] == pieces(b"ab", (Chunk(0.1, 2),))


HELLO, UPDATE, DONE = {"type": "session.created"}, {"type": "session.update", "event_id": "a"}, {"type": "response.done"}


@pytest.mark.parametrize("closed_by_client", [True, False])
async def test_a_talk(closed_by_client: bool, player: Player) -> None:
    """A recorded server message follows the client messages recorded before it, and either side can close."""
    request = asked()
    player.aim(request, session((False, HELLO), (True, UPDATE), (False, b"\x00"), (False, DONE), closed_by_client=closed_by_client))
    headers = {"x-azure-openai-recording": request.headers["x-azure-openai-recording"]}
    async with ClientSession() as client, client.ws_connect(request.url, headers=headers, protocols=["realtime"]) as socket:
        assert ("realtime", HELLO) == (socket.protocol, await socket.receive_json())
        await socket.ping()
        await socket.pong()
        await socket.send_json(UPDATE | {"event_id": "b"})
        assert (b"\x00", DONE) == (await socket.receive_bytes(), await socket.receive_json())
        if not closed_by_client:
            assert WSMsgType.CLOSE == (await socket.receive()).type


async def test_a_talk_that_turns_out_otherwise(player: Player) -> None:
    """A WebSocket whose client messages differ from the recording is closed with an error that says so."""
    request = asked()
    player.aim(request, session((True, UPDATE), (False, DONE)))
    headers = {"x-azure-openai-recording": request.headers["x-azure-openai-recording"]}
    async with ClientSession() as client, client.ws_connect(request.url, headers=headers) as socket:
        await socket.send_json({"type": "something else"})
        assert "not_recorded" == (await socket.receive_json())["error"]["code"]
        assert 1008 == (await socket.receive()).data


async def test_a_client_that_leaves(player: Player) -> None:
    """A client that disconnects during a WebSocket causes no error, and the next client is served."""
    for _ in range(2):
        request = asked()
        player.aim(request, session((False, HELLO), (True, UPDATE), (False, DONE)))
        headers = {"x-azure-openai-recording": request.headers["x-azure-openai-recording"]}
        async with ClientSession() as client, client.ws_connect(request.url, headers=headers) as socket:
            assert HELLO == await socket.receive_json()


async def test_a_long_message_and_one_too_many(player: Player) -> None:
    """A fragmented message is joined, and a message after the end of the recording gets no reply."""
    request = asked()
    long = {"type": "input_audio_buffer.append", "audio": "A" * 300_000}
    player.aim(request, session((True, long), (False, DONE)))
    headers = {"x-azure-openai-recording": request.headers["x-azure-openai-recording"]}
    async with ClientSession() as client, client.ws_connect(request.url, headers=headers) as socket:
        await socket.send_json(long)
        assert DONE == await socket.receive_json()
        await socket.send_json({"type": "more"})


async def test_connections_that_end(player: Player) -> None:
    """A connection that closes before its request, within the head or during a WebSocket affects no other connection."""
    request = http.Request.make("GET", "http://localhost/v1/realtime")
    player.aim(request, session((True, UPDATE)))
    upgrade = (
        f"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        f"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nx-azure-openai-recording: {request.headers['x-azure-openai-recording']}\r\n\r\n"
    )
    for sent in (b"", b"GET / HT", b"x" * 100_000, upgrade.encode()):
        reader, writer = await asyncio.open_connection(*player.address)
        writer.write(sent)
        if sent.endswith(b"\r\n\r\n"):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert b"" == await reader.read()
        writer.close()
    reader, writer = await asyncio.open_connection(*player.address)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert b"" == await reader.read()
    writer.close()


def test_openai_flows_are_removed_from_mitmproxys_own_replay(tmp_path: Path) -> None:
    """mitmproxy's own replay gets only the other flows, and mitmdump keeps running even if there are none."""
    file = tmp_path / "flows"
    with file.open("wb") as opened:
        writer = io.FlowWriter(opened)
        for flow in (recorded(), tflow.tflow(resp=True)):
            writer.add(flow)
    playback, theirs = ReplayServer(), ServerPlayback()
    with taddons.context(theirs, KeepServing()) as context:
        context.options.update(server_replay=[str(file)])
        settings = Settings()
        for _ in range(2):
            playback.configure(context.options, settings)
        replay = playback.replay
        assert replay
        assert 1 == len(replay.recorded)
        playback.running()
        assert (1, True) == (theirs.count(), context.options.keepserving)
        context.options.update(server_replay=[])
        playback.configure(context.options, settings)
        assert None is playback.replay
        playback.running()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """An unreadable file is left to mitmproxy to report, and tools without the options replay nothing."""
    playback = ReplayServer()
    with taddons.context(ServerPlayback()) as context:
        context.options.deferred.clear()
        file = tmp_path / "flows"
        file.write_bytes(b"no flows")
        object.__setattr__(context.options._options["server_replay"], "value", [str(file)])
        playback.configure(context.options, Settings())
        assert None is playback.replay
    playback.configure(mitmproxy_options.Options(), Settings())
    playback.replay = Replay(Recordings([]), Player(), paced=False)
    with taddons.context(ServerPlayback()) as context:
        playback.running()
        assert "keepserving" not in context.options
