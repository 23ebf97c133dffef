"""One or more requests of each kind from an OpenAI client, which mitmweb shows after `make web`."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import openai

from azure_simulator import Delay, content_filter

if TYPE_CHECKING:
    from collections.abc import Callable

    from azure_simulator import Simulator

__all__ = ["of_each_kind"]

# 8 by 8 pixels of red
IMAGE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGP8z4APMOGVHbbSDAwASjoBD3wkPyMAAAAASUVORK5CYII="
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city, now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}},
    },
}
CALLED: Any = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}


def of_each_kind(client: openai.OpenAI, azure: Simulator) -> None:
    """Send all requests. Some are expected to fail."""
    for ask in KINDS:
        azure.faults.clear()
        with suppress(openai.APIStatusError):
            ask(client, azure)


def picture(client: openai.OpenAI, _: Simulator) -> None:
    content: Any = [
        {"type": "text", "text": "What is in this picture?"},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
    ]
    messages: Any = [{"role": "system", "content": "You answer in one sentence."}, {"role": "user", "content": content}]
    client.chat.completions.create(model="gpt-4o", temperature=0.2, max_tokens=200, messages=messages)


def stream(client: openai.OpenAI, azure: Simulator) -> None:
    azure.faults.next(Delay(0.06, chunk="each"))
    messages: Any = [{"role": "user", "content": "Every word of this comes back to you as soon as Azure has written it."}]
    for _ in client.chat.completions.create(model="gpt-3.5-turbo", messages=messages, stream=True, stream_options={"include_usage": True}):
        pass


def tool(client: openai.OpenAI, _: Simulator) -> None:
    messages: Any = [{"role": "user", "content": "Is it raining in Oslo?"}]
    for _chunk in client.chat.completions.create(model="gpt-4o", messages=messages, tools=[WEATHER], tool_choice="required", stream=True):
        pass
    messages += [{"role": "assistant", "tool_calls": [CALLED]}, {"role": "tool", "tool_call_id": "call_1", "content": "rain, 4 °C"}]
    client.chat.completions.create(model="gpt-4o", messages=messages, tools=[WEATHER])


def response(client: openai.OpenAI, _: Simulator) -> None:
    for _event in client.responses.create(model="gpt-4o", instructions="Be kind.", input="What does a proxy do?", stream=True):
        pass


def embeddings(client: openai.OpenAI, _: Simulator) -> None:
    client.embeddings.create(model="text-embedding-3-small", input=["a proxy", "a gateway"])


def drawing(client: openai.OpenAI, _: Simulator) -> None:
    client.images.generate(model="gpt-image-1", prompt="A lighthouse in fog", size="1024x1024")


def speech(client: openai.OpenAI, _: Simulator) -> None:
    client.audio.speech.create(model="tts-1", voice="alloy", input="Every word of this is spoken.")


def transcript(client: openai.OpenAI, _: Simulator) -> None:
    client.audio.transcriptions.create(model="whisper-1", file=("speech.wav", io.BytesIO(b"RIFF\x24\x00\x00\x00WAVEfmt "), "audio/wav"))


def filtered(client: openai.OpenAI, azure: Simulator) -> None:
    azure.faults.next(content_filter)
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Something that the filter refuses."}])


def unknown(client: openai.OpenAI, _: Simulator) -> None:
    client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Is anybody there?"}])


def realtime(client: openai.OpenAI, _: Simulator) -> None:
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.recv()
        connection.session.update(session={"type": "realtime", "instructions": "Speak slowly."})
        connection.recv()
        connection.response.create()
        for _event in range(4):
            connection.recv()


def models(client: openai.OpenAI, _: Simulator) -> None:
    client.models.list()


KINDS: tuple[Callable[[openai.OpenAI, Simulator], None], ...] = (
    models,
    picture,
    stream,
    tool,
    response,
    embeddings,
    drawing,
    speech,
    transcript,
    realtime,
    filtered,
    unknown,
)
