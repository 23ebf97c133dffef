"""WebSocket subprotocols and frames."""

from __future__ import annotations

import json

import pytest
from mitmproxy.http import Headers

from azure_openai_proxy.api import endpoints, realtime

KEY = "openai-insecure-api-key.sk-1"


def head(protocols: str | None = None, beta: str | None = None) -> Headers:
    named = {b"sec-websocket-protocol": protocols, b"openai-beta": beta}
    return Headers([(name, value.encode()) for name, value in named.items() if value is not None])


@pytest.mark.parametrize(
    "protocols, key, offered",
    [
        (None, "", []),
        ("", "", []),
        ("realtime", "", ["realtime"]),
        (f"realtime, {KEY}", "sk-1", ["realtime"]),
        (f"{KEY},realtime,openai-beta.realtime-v1,openai-organization.o,openai-project.p", "sk-1", ["realtime"]),
        (KEY, "sk-1", []),
        ("realtime, mine", "", ["realtime", "mine"]),
    ],
)
def test_openais_subprotocols_are_not_forwarded(protocols: str | None, key: str, offered: list[str]) -> None:
    """The key is read from the subprotocols, and OpenAI's own are not forwarded."""
    assert (key, offered) == (realtime.key(head(protocols)), realtime.offered(head(protocols)))


@pytest.mark.parametrize(
    "headers, beta",
    [
        (head("realtime"), False),
        (head("realtime, openai-beta.realtime-v1"), True),
        (head(beta="realtime=v1"), True),
        (head(beta="assistants=v2"), False),
    ],
)
def test_the_preview_protocol_is_recognised(headers: Headers, beta: bool) -> None:
    """The preview protocol is recognised by a header, or by a subprotocol of a browser."""
    assert beta == realtime.speaks_beta(headers)


@pytest.mark.parametrize(
    "client, azure, told",
    [
        (head(f"realtime, {KEY}"), head(), "realtime"),
        (head(f"realtime, {KEY}"), head("realtime"), None),
        (head(KEY), head(), None),
        (head(), head(), None),
    ],
)
def test_a_subprotocol_is_answered_where_azure_names_none(client: Headers, azure: Headers, told: str | None) -> None:
    """A subprotocol is added if Azure names none, and it is never the key."""
    assert told == realtime.accepted_protocol(client, azure)


def frames(*places: str) -> realtime.Frames:
    return realtime.Frames(places or ("session.model", "response.model"), lambda model: {"rt": "gpt-realtime"}.get(model, model))


def test_a_model_goes_out_as_a_deployment_and_comes_back() -> None:
    """The client's name becomes the deployment and is restored in responses; all other bytes of a frame stay."""
    talk = frames()

    assert b'{ "type":"session.update","session":{"model":"gpt-realtime"} }' == talk.out(
        b'{ "type":"session.update","session":{"model":"rt"} }'
    )
    assert b'{"response":{"model": "rt"}}' == talk.back(b'{"response":{"model": "gpt-realtime"}}')
    assert b'{"session":{"model":"gpt-realtime-2025"}}' == talk.back(b'{"session":{"model":"gpt-realtime-2025"}}')


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"session.update","session":{"audio":{"input":{"transcription":{"model":"%s"}}}}}',
        '{"type":"session.update","session":{"input_audio_transcription":{"model":"%s"},"model":"other"}}',
        '{"type":"transcription_session.update","session":{"input_audio_transcription":{"model":"%s"}}}',
        '{"type":"response.create","response":{"model":"%s"}}',
    ],
)
def test_every_place_of_a_model_in_a_frame_is_mapped(frame: str) -> None:
    """Models for transcription are mapped too, in frames of GA and of the previews, in both directions."""
    talk = realtime.Frames(endpoints.find("WS", ("realtime",)).models, lambda model: {"rt": "gpt-realtime"}.get(model, model))
    assert (frame % "gpt-realtime").encode() == talk.out((frame % "rt").encode())
    assert (frame % "rt").encode() == talk.back((frame % "gpt-realtime").encode())


def test_a_name_in_the_query_comes_back_in_frames() -> None:
    """The model in the upgrade's query is restored in frames."""
    talk = frames()

    assert "gpt-realtime" == talk.deployment_for("rt")
    assert b'{"session":{"model":"rt"}}' == talk.back(b'{"session":{"model":"gpt-realtime"}}')


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"input_audio_buffer.append","audio":"AAAA"}',
        b'{"session":{"model":"other"}}',
        b'{"item":{"model":"rt"}}',
        b'{"session":{"model":"rt"',
        b'"model"',
        b"[" * 100_000 + b'"model"',
    ],
    ids=["audio", "not mapped", "elsewhere", "cut", "no object", "deep"],
)
def test_a_frame_without_a_model_of_ours_is_the_same_object(frame: bytes) -> None:
    """A frame without a mapped model, or an invalid one, is returned as the same object."""
    talk = frames()
    talk.deployment_for("rt")

    assert talk.out(frame) is frame
    assert talk.back(frame) is frame


def test_unmapped_names_are_not_searched_in_frames() -> None:
    """Without mapped names Azure's frames are not searched."""
    talk = frames()
    talk.deployment_for("same")
    frame = b'{"session":{"model":"same"}}'

    assert talk.back(frame) is frame


def test_few_names_are_remembered() -> None:
    """A connection keeps a limited number of its latest names, without long ones; a deployment that the client names keeps its name."""
    talk = realtime.Frames(("session.model",), lambda model: f"d-{model[:9]}" if model != "d-1" else model)
    names = [talk.deployment_for(str(number)) for number in range(1000)] + [talk.deployment_for("x" * 1000)]

    def back(name: str) -> str:
        return str(json.loads(talk.back(json.dumps({"session": {"model": name}}).encode()))["session"]["model"])

    assert ["d-0", "d-967", "968", "999", "d-xxxxxxxxx"] == [back(names[at]) for at in (0, 967, 968, 999, 1000)]
    assert "1" == (talk.deployment_for("1"), back("d-1"))[1]
    assert "d-1" == (talk.deployment_for("d-1"), back("d-1"))[1]


@pytest.mark.parametrize(
    "frame, found",
    [
        (b'{"model": 1}', True),
        (rb'{"mod\u0065l": 1}', True),
        (rb'{"\u006d\u006F\u0064\u0065\u006C": 1}', True),
        (rb'{"a": "\u0065"}', False),
        (rb'{"a": "\"mod\u0065l\""}', False),
        (rb'{"mod\\u0065l": 1}', False),
        (b"{}", False),
    ],
)
def test_a_string_that_is_written_with_escapes(frame: bytes, found: bool) -> None:
    """It is found as Azure would read it."""
    assert found is realtime.Literal("model").is_in(frame)
