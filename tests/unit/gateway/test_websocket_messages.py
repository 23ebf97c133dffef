"""The messages of a WebSocket."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from mitmproxy.websocket import WebSocketMessage
from wsproto.frame_protocol import Opcode

from azure_openai_proxy.api.backend import Backend, parse_endpoint
from azure_openai_proxy.gateway.websocket_messages import MESSAGE
from support.exchanges import asking, exchange, talking


def test_a_websocket_to_a_call_names_no_model() -> None:
    """Azure knows the call's; models in frames are mapped all the same."""
    asked = exchange(mapping="m=d")
    request = asking("GET", "/v1/realtime?call_id=c1", upgrade="websocket")
    assert asked.request(request) is None
    messages = [WebSocketMessage(Opcode.TEXT, True, b'{"type":"session.update","session":{"model":"m"}}')]
    asked.messages.translate(messages, 1000)
    assert ("c1", "d") == (request.query["call_id"], json.loads(messages[0].content)["session"]["model"])


@pytest.mark.parametrize(
    ("from_client", "content", "passed"),
    [
        (True, b'{"type":"session.update","session":{"model":"m"}}', b'{"type":"session.update","session":{"model":"d"}}'),
        (False, b'{"type":"session.created","session":{"model":"d"}}', b'{"type":"session.created","session":{"model":"m"}}'),
        (True, b'{"type":"input_audio_buffer.append","audio":"m"}', b'{"type":"input_audio_buffer.append","audio":"m"}'),
    ],
)
def test_frames_name_the_deployment_out_and_the_model_back(from_client: bool, content: bytes, passed: bytes) -> None:
    """And nothing else in them changes."""
    messages = [WebSocketMessage(Opcode.TEXT, from_client, content)]
    talking().messages.translate(messages, 100)
    assert passed == messages[0].content


def test_items_in_frames_are_remembered() -> None:
    """Those of the backend's frames, where there is more than one backend."""
    frame = b'{"type":"response.output_item.done","item":{"id":"fc_1"}}'
    for names, from_client, known in (("ab", False, 1), ("ab", True, 0), ("a", False, 0)):
        backends = tuple(Backend(name=name, base=parse_endpoint("http://azure.example")[0], apiversion="v1") for name in names)
        asked = exchange()
        asked.settings = replace(asked.settings, backends=backends)
        asked.request(asking("GET", "/v1/realtime?model=m", upgrade="websocket"))
        asked.messages.translate([WebSocketMessage(Opcode.TEXT, from_client, frame)], 1000)
        assert known == len(asked.shared.owners)


FRAME = '{"response":{%s"text":"%s"},"type":"response.done"}'


def test_a_changed_frame_is_ascii() -> None:
    """mitmproxy cuts it anywhere, and half a character would be lost; the text stays the same."""
    said = 2000 * "é€😀"
    for content in (FRAME % ('"model":"d",', said), FRAME % ('"content_filters":[],"model":"m",', said)):
        messages = [WebSocketMessage(Opcode.TEXT, False, content.encode())]
        talking().messages.translate(messages, 10**6)
        assert messages[0].content.isascii()
        assert {"model": "m", "text": said} == json.loads(messages[0].content)["response"]


def test_an_error_in_a_frame_is_shaped() -> None:
    """The frame keeps what else it has, and the key that Azure repeats is masked."""
    frame = {"type": "error", "event_id": "e", "error": {"code": "429", "message": "k was mykey0123"}}
    messages = [WebSocketMessage(Opcode.TEXT, False, json.dumps(frame).encode())]
    asked = talking()
    asked.keys.secrets = ("mykey0123",)
    asked.messages.translate(messages, 10**6)
    error = {"message": "k was [key]", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
    assert frame | {"error": error} == json.loads(messages[0].content)


def test_of_a_long_talk_the_oldest_frames_are_forgotten() -> None:
    """A session lasts an hour, and sound is large."""
    asked = talking()
    messages: list[WebSocketMessage] = []
    for _ in range(5):
        messages.append(WebSocketMessage(Opcode.BINARY, from_client=True, content=b"x" * 10))
        asked.messages.translate(messages, 2 * (10 + MESSAGE) + 5)
    assert 2 == len(messages)
