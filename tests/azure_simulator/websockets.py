"""Azure's WebSockets: both forms of realtime, translations, responses, live sessions. Strict as the rest is.

A client is answered as a session would: `session.created`, `session.updated`, and a short answer to `response.create`. Three frames of
our own make it do more: `test.echo` comes back byte for byte (as every binary frame does), `test.close` closes with the code and
reason it holds, `test.drop` cuts the connection.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import WSMsgType, web

from . import auth, errors, responses, usage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .answers import Answer
    from .made_items import MadeItems
    from .received import Received

__all__ = ["refusal", "serve", "wanted"]


class _Socket(NamedTuple):
    """One path that takes an upgrade."""

    kind: str  # of session; responses have none
    model_in: str = ""  # the query's name for the deployment
    dated: bool = False


_V1 = {
    "realtime": _Socket("realtime", "model"),
    "realtime/translations": _Socket("translation", "model"),
    "responses": _Socket("responses"),
    "live/sessions": _Socket("live"),
    "live/sessions/{id}/attach": _Socket("live"),
    "live/sessions/{id}/fork": _Socket("live"),
}
_DATED = {"realtime": _Socket("realtime", "deployment", dated=True)}
_PREVIEWS = {"2024-10-01-preview", "2024-12-17-preview", "2025-04-01-preview"}


def wanted(received: Received) -> bool:
    """Did the client ask for a WebSocket?"""
    return (received.header("upgrade") or "").lower() == "websocket"


def _find(received: Received) -> _Socket | None:
    path = re.sub(r"(?<=live/sessions/)[^/]+", "{id}", received.bare_path.removeprefix("/openai/"))
    return _V1.get(path.removeprefix("v1/")) if path.startswith("v1/") else _DATED.get(path)


def refusal(received: Received, key: str, entra_tokens: Collection[str], deployments: Mapping[str, str]) -> Answer | None:
    """Why there is no upgrade; None when there is one."""
    socket, query = _find(received), received.query
    try:
        if query.get("api-key") != [key] or received.header("api-key") is not None:
            auth.check(received, "v1", key, entra_tokens)
        if socket is None:
            raise errors.not_found()
        offered = received.header("sec-websocket-protocol") or ""
        if "openai-insecure-api-key" in offered or received.header("openai-beta") is not None:
            raise errors.no_access()  # Azure knows neither: one is a leaked key, the other another API
        if socket.dated and query.get("api-version", [""])[0] not in _PREVIEWS:
            raise errors.not_found()
        if not socket.dated and "api-version" in query:
            raise errors.no_access()
        named = query.get(socket.model_in, []) if socket.model_in else []
        if socket.model_in and not named and not {"call_id", "intent"} & query.keys():
            raise errors.invalid(f"'{socket.model_in}' is a required parameter")
        if named and named[0] not in deployments:
            raise errors.deployment_not_found()
    except errors.AzureError as error:
        return error.answer
    return None


async def serve(request: web.Request, received: Received, deployments: Mapping[str, str], made: MadeItems) -> web.WebSocketResponse:
    """Talk until one side closes. What the client sends is in `received.frames`, its closing code in `received.close_code`."""
    socket = _find(received)
    assert socket
    websocket = web.WebSocketResponse(protocols=("realtime",), max_msg_size=0)
    await websocket.prepare(request)
    session = _Session(websocket, socket, received.query.get(socket.model_in, [""])[0], deployments)
    session.usages, session.made = received.usages, made
    if socket.model_in:
        await session.send("session.created", session=session.state)
    async for message in websocket:
        received.frames.append(message.data)
        if message.type is WSMsgType.BINARY:
            await websocket.send_bytes(message.data)
        else:
            await session.take(message.data, request)
    received.close_code = websocket.close_code
    return websocket


class _Session:
    usages: list[dict[str, Any]]  # that were sent
    made: MadeItems

    def __init__(self, websocket: web.WebSocketResponse, socket: _Socket, deployment: str, deployments: Mapping[str, str]) -> None:
        self._websocket = websocket
        self._socket = socket
        self._deployments = deployments
        self._sent = 0
        self._responses = 0
        self.state: dict[str, Any] = {"type": socket.kind, "object": f"{socket.kind}.session", "id": "sess_1", "model": deployment}

    async def send(self, type_: str, **members: Any) -> None:
        self._sent += 1
        await self._websocket.send_str(json.dumps({"type": type_, "event_id": f"event_{self._sent}", **members}, ensure_ascii=False))
        if usage := members.get("response", {}).get("usage"):
            self.usages.append(usage)

    async def take(self, text: str, request: web.Request) -> None:
        frame = json.loads(text)
        match frame["type"]:
            case "test.echo":
                await self._websocket.send_str(text)
            case "test.close":
                await self._websocket.close(code=frame["code"], message=frame["reason"].encode())
            case "test.drop":
                assert request.transport
                request.transport.abort()
            case "session.update" | "session.start":
                self.state |= frame["session"]
                await self._answer("session.updated" if frame["type"] == "session.update" else "session.created", self.state)
            case "response.create":
                asked = frame.get("response", frame)
                if self._socket.kind == "responses" or "model" in asked:
                    self.state["model"] = asked.get("model")
                await self._response(asked)
            case other:
                await self._error(f"Invalid value: {other!r}.", "invalid_value")

    async def _answer(self, type_: str, session: dict[str, Any]) -> None:
        if session["model"] and session["model"] not in self._deployments:
            await self._error(f"The model {session['model']!r} does not exist.", "model_not_found")
        else:
            await self.send(type_, session=session)

    async def _response(self, asked: dict[str, Any]) -> None:
        if self.state["model"] not in self._deployments:
            await self._error(f"The model {self.state['model']!r} does not exist.", "model_not_found")
            return
        try:
            self.made.check(asked)
        except errors.AzureError as error:
            await self._error(error.error["message"], error.error["code"])
            return
        self._responses += 1
        items = responses.reasoned(asked, self.made) if self._socket.kind == "responses" else []
        kind = "response" if self._socket.kind == "responses" else "realtime.response"
        response = {
            "id": (id_ := f"resp_{self._responses}"),
            "object": kind,
            "model": self.state["model"],
            "status": "in_progress",
            "output": [],
        }
        await self.send("response.created", response=response)
        for index, item in enumerate(items):
            await self.send("response.output_item.done", item=item, output_index=index)
        for part in ("Hello", " there"):
            await self.send("response.output_text.delta", delta=part, item_id="item_1", response_id=id_, output_index=0, content_index=0)
        if self._socket.kind == "responses":
            await self.send(
                "response.completed", response=response | {"status": "completed", "output": items, "usage": usage.responses(asked, 2)}
            )
        else:
            await self.send("response.done", response=response | {"status": "completed", "usage": usage.realtime(asked, 2)})

    async def _error(self, message: str, code: str) -> None:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": None}
        await self.send("error", status=400, error=error)
