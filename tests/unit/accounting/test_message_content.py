"""Messages in the form of the GenAI conventions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.accounting import message_content
from azure_openai_proxy.accounting.message_content import Content, KeptEvents, attributes

INPUT, OUTPUT, SYSTEM = "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"


def data(value: object) -> bytes:
    return json.dumps(value).encode()


def found(operation: str, request: object, response: object = None, events: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    content = Content(operation, data(request), data(response) if response else b"", [data(event) for event in events or []], **more)
    return {name: json.loads(text) for name, text in attributes(content).items()}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def test_a_chat() -> None:
    """Roles, texts, tool calls, their results, and the choices with their reasons."""
    call = {"id": "c1", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call, {"function": 7}, 8]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rainy"}, {"type": "text", "text": "57"}]},
        {"content": ""},
    ]
    choices = [
        {"message": {"role": "assistant", "content": "Rain.", "reasoning_content": "Hm."}, "finish_reason": "stop"},
        {"message": {"refusal": "No."}},
    ]
    messages_of = found("chat.completions", {"messages": messages}, {"choices": choices})
    tool_call = {"type": "tool_call", "id": "c1", "name": "weather", "arguments": '{"city":"Paris"}'}
    assert [
        {"role": "system", "parts": [text("Be brief.")]},
        {"role": "user", "parts": [text("Look"), {"type": "uri", "modality": "image", "uri": "https://a.example/b.png"}]},
        {"role": "assistant", "parts": [tool_call, {"type": "tool_call", "id": "", "name": "", "arguments": ""}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "rainy\n57"}]},
        {"role": "user", "parts": []},
    ] == messages_of[INPUT]
    assert [
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm."}, text("Rain.")], "finish_reason": "stop"},
        {"role": "assistant", "parts": [text("No.")], "finish_reason": ""},
    ] == messages_of[OUTPUT]
    assert SYSTEM not in messages_of


def test_a_streamed_chat() -> None:
    """The deltas of each choice are joined, and the arguments of each tool call."""
    events = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Ra"}}, {"index": 1, "delta": {"content": "Sun"}}]},
        {"choices": [{"index": 0, "delta": {"content": "in"}}, {"index": "x"}, {"index": 1, "delta": None}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"arguments": "lost"}}]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{"}}]}}]},
        {
            "choices": [
                {"index": 0, "delta": {"tool_calls": [{"function": {"arguments": "}"}}, {"function": None}]}, "finish_reason": "stop"}
            ]
        },
        {"choices": []},
    ]
    messages = found("chat.completions", {}, events=events)[OUTPUT]
    tool_call = {"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}
    assert [
        {"role": "assistant", "parts": [text("Rain"), tool_call], "finish_reason": "stop"},
        {"role": "assistant", "parts": [text("Sun")], "finish_reason": ""},
    ] == messages


@pytest.mark.parametrize("prompt", ["Once", ["Once", 7]])
def test_completions(prompt: object) -> None:
    """A prompt is the user's message; the texts of a stream are joined."""
    events = [{"choices": [{"index": 0, "text": " upon"}]}, {"choices": [{"index": 0, "text": " a", "finish_reason": "length"}]}]
    messages = found("completions", {"prompt": prompt}, events=events)
    assert [{"role": "user", "parts": [text("Once")]}] == messages[INPUT]
    assert [{"role": "assistant", "parts": [text(" upon a")], "finish_reason": "length"}] == messages[OUTPUT]
    whole = found("completions", {"prompt": 7}, {"choices": [{"text": "t", "finish_reason": "stop"}]})
    assert {OUTPUT: [{"role": "assistant", "parts": [text("t")], "finish_reason": "stop"}]} == whole


def test_responses() -> None:
    """Instructions, items of all kinds, and the output of the whole response."""
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Hi"}, {"type": "input_image", "image_url": "data:image/png;base64,AA"}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "web_search_call", "status": "completed"},
        {"role": "user", "content": [{"type": "input_file", "file_data": "AA"}, {"type": "new_kind"}, {}]},
    ]
    output = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}]
    response = {"status": "completed", "output": output}
    messages = found("responses", {"instructions": "Be brief.", "input": items}, response)
    assert [text("Be brief.")] == messages[SYSTEM]
    assert [
        {"role": "user", "parts": [text("Hi"), {"type": "blob", "modality": "image"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "42"}]},
        {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm."}]},
        {"role": "assistant", "parts": [{"type": "web_search_call"}]},
        {"role": "user", "parts": [{"type": "blob", "modality": "document"}, {"type": "new_kind"}, {"type": "unknown"}]},
    ] == messages[INPUT]
    answered = [{"role": "assistant", "parts": [text("Hello")], "finish_reason": "completed"}]
    assert answered == messages[OUTPUT]
    last = {"type": "response.completed", "response": response}
    streamed = found("responses", {"input": "Hi"}, events=[{"type": "response.created", "response": {}}, last])
    assert {INPUT: [{"role": "user", "parts": [text("Hi")]}], OUTPUT: answered} == streamed
    broken = found("responses", {}, events=[{"type": "response.output_text.delta", "delta": part} for part in ("He", "llo", 7)])
    assert {OUTPUT: [{"role": "assistant", "parts": [text("Hello")], "finish_reason": ""}]} == broken


def test_kept_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The events of a stream are kept up to a size; the event with the whole response replaces them."""
    monkeypatch.setattr(message_content, "MOST_EVENTS", 100)
    kept = KeptEvents()
    delta = b'{"type":"response.output_text.delta","delta":"response.completed"}'
    kept.add(delta)
    kept.add(delta)
    kept.add(b"{}")
    assert [delta, b"{}"] == kept.events
    last = b'{"type":"response.completed","response":{}}'
    kept.add(last)
    kept.add(b"{}")
    assert [last] == kept.events


@pytest.mark.parametrize("request_body", [b"", b"{", b"[]", b"7", b"[" * 100_000, b"\xff", b'{"messages":7}', b'{"messages":[7,null]}'])
@pytest.mark.parametrize("operation", sorted(message_content.OPERATIONS))
def test_other_bodies_have_no_messages(operation: str, request_body: bytes) -> None:
    """A body that is not the API's gives nothing."""
    assert {} == attributes(Content(operation, request_body, request_body, [request_body]))


def test_large_bodies_are_left_out() -> None:
    """A body is parsed up to a size, because parsing stops the process for a moment."""
    big = {"messages": [{"role": "user", "content": "x" * message_content.LARGEST}]}
    assert {} == found("chat.completions", big)


def test_texts_and_messages_are_bounded() -> None:
    """A long text is cut off, and of many messages the latest are exported."""
    (message,) = found("chat.completions", {"messages": [{"role": "user", "content": "x" * 9000}]})[INPUT]
    assert [text("x" * 8192)] == message["parts"]
    many = [{"role": "user", "content": f"{number:04} " + "x" * 1000} for number in range(100)]
    kept = found("chat.completions", {"messages": many})[INPUT]
    assert "0099" == kept[-1]["parts"][0]["content"][:4]
    assert message_content.WHOLE > len(json.dumps(kept)) > message_content.WHOLE // 2
    parts = [{"type": "text", "text": "y" * 8000}] * 20
    (one,) = found("chat.completions", {"messages": [{"role": "user", "content": parts}]})[INPUT]
    assert 4 == len(one["parts"])
    choices = [{"index": number, "delta": {"tool_calls": [{"id": "c"}] * 200}} for number in range(200)]
    joined = message_content._joined([{"choices": choices}])
    assert {128} == {len(joined), *(len(choice["message"]["tool_calls"]) for choice in joined)}


def test_keys_are_masked_and_half_characters_replaced() -> None:
    """A key in a text is not exported; a lone surrogate can be encoded."""
    raw = b'{"messages":[{"role":"user","content":"my key is sk-secret-1234 \\ud800"}]}'
    (value,) = attributes(Content("chat.completions", raw, secrets=("sk-secret-1234",))).values()
    assert "sk-secret-1234" not in value
    assert "[key] ?" in value


CUT = "x" * (message_content.TEXT - 6)
KEY = "sk-secret-1234"


@pytest.mark.parametrize(
    "operation, request_, response, events",
    [
        ("chat.completions", {"messages": [{"role": "user", "content": CUT + KEY}]}, None, []),
        ("chat.completions", {}, {"choices": [{"message": {"content": CUT + KEY}}]}, []),
        ("chat.completions", {}, None, [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in (CUT, KEY)]),
        ("responses", {"input": CUT + KEY}, None, []),
        ("responses", {}, None, [{"type": "response.output_text.delta", "delta": text} for text in (CUT, KEY)]),
        ("responses", {}, None, [{"response": {"output": [{"content": [{"text": CUT + KEY}]}]}}]),
    ],
    ids=["message", "choice", "stream", "input", "deltas", "output"],
)
def test_a_key_at_the_end_of_a_text(operation: str, request_: Any, response: Any, events: list[Any]) -> None:
    """No part of a key is exported where a text is cut off within it."""
    (messages,) = found(operation, request_, response, events, secrets=(KEY,)).values()
    assert [[text(f"{CUT}[key]")]] == [message["parts"] for message in messages]


def test_deep_bodies() -> None:
    """The levels of a body that no message has are left out."""
    deep: list[Any] = []
    for _ in range(900):
        deep = [{"a": deep}]
    assert {INPUT} == found("chat.completions", {"messages": [{"content": "a", "more": deep}]}).keys()


def test_size() -> None:
    """The size of a content is that of its bodies."""
    assert 6 == Content("responses", b"1", b"22", [b"3", b"44"]).size
