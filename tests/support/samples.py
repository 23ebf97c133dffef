"""Requests and answers of every kind, as the content views meet them."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["ANSWERS", "REQUESTS", "body", "events"]

PIXEL = "data:image/png;base64," + "iVBORw0KGgo" * 100
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": {"properties": {"city": {}}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
USAGE = {"prompt_tokens": 23, "completion_tokens": 11, "completion_tokens_details": {"reasoning_tokens": 4}}
FILTER = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"filtered": True, "detected": True}}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def events(*values: Any, done: bool = True, names: bool = False) -> bytes:
    """A stream of these events; with `names` each has its type as its name."""
    written = [(f"event: {value['type']}\n" if names else "") + f"data: {json.dumps(value)}\n\n" for value in values]
    return ("".join(written) + "data: [DONE]\n\n" * done).encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "content_filter_results": FILTER}]
    return {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o-2024-11-20", "choices": choices, **more}


# name → content type, body, what a person looks for in it
REQUESTS: dict[str, tuple[str, bytes, list[str]]] = {
    "chat": (
        "application/json",
        body(
            {
                "model": "gpt-4o",
                "temperature": 0.2,
                "stream": True,
                "n": None,
                "tools": [TOOL, {"type": "web_search"}, "odd"],
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "name": "ann",
                        "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": "https://example.com/cat.png"},
                            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
                            "plain",
                            {"type": "new"},
                        ],
                    },
                    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "thinking"},
                    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
                    {"role": "assistant", "refusal": "I will not", "content": None},
                    {"role": "assistant", "audio": {"id": "audio_1", "transcript": "spoken"}},
                    {"role": "user"},
                    "not an object",
                ],
            }
        ),
        [
            "gpt-4o",
            "temperature 0.2",
            "stream",
            "get_weather(city): The weather",
            "── system",
            "Be brief.",
            "── user ann",
            "image/png, 825 bytes, detail low",
            "https://example.com/cat.png",
            "audio/wav, 3 bytes",
            "a.pdf, application/pdf, 3 bytes",
            "── tool call get_weather call_1",
            '{"city":"Oslo"}',
            "── reasoning\nthinking",
            "── tool result call_1\nrain",
            "── assistant refuses\nI will not",
            "spoken",
            "not an object",
        ],
    ),
    "responses": (
        "application/json",
        body(
            {
                "model": "gpt-4o",
                "instructions": "Be kind.",
                "max_output_tokens": 100,
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "Hello"},
                            {"type": "input_image", "image_url": PIXEL},
                            {"type": "input_file", "file_id": "file-1"},
                        ],
                    },
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "because"}]},
                    {"type": "reasoning", "encrypted_content": "gAAAA"},
                    {"type": "reasoning"},
                    {"type": "function_call", "name": "f", "call_id": "call_2", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "call_2", "output": "42"},
                    {"type": "item_reference", "id": "item_1"},
                    {"id": "unknown"},
                ],
            }
        ),
        [
            "── instructions\nBe kind.",
            "max_output_tokens 100",
            "── user\nHello",
            "[image: image/png, 825 bytes]",
            "[file: file-1]",
            "── reasoning\nbecause",
            "[encrypted, 5 bytes]",
            "[not shown by Azure]",
            "── tool call f call_2",
            "── tool result call_2\n42",
            "── item_reference\nid item_1",
            "── item\nid unknown",
        ],
    ),
    "a response to a text": ("application/json", body({"model": "m", "input": "Hello"}), ["── input\nHello"]),
    "completion": (
        "application/json",
        body({"model": "m", "prompt": ["one", "two"], "suffix": "end", "stop": ["\n"]}),
        ["── prompt 1 of 2\none", "── suffix\nend", 'stop ["\\n"]'],
    ),
    "completion of tokens": ("application/json", body({"prompt": [[1, 2, 3], [4]]}), ["[3 tokens]"]),
    "embeddings": (
        "application/json",
        body({"model": "m", "input": ["a", "b"], "encoding_format": "base64"}),
        ["── input 2 of 2\nb", "encoding_format base64"],
    ),
    "embeddings of tokens": ("application/json", body({"input": [1, 2, 3]}), ["[3 tokens]"]),
    "many embeddings": ("application/json", body({"input": ["x"] * 250}), ["… and 50 more"]),
    "an image": ("application/json", body({"model": "dall-e-3", "prompt": "a cat", "size": "1024x1024"}), ["a cat", "size 1024x1024"]),
    "speech": ("application/json", body({"model": "tts", "input": "say this", "voice": "alloy"}), ["say this", "voice alloy"]),
    "realtime session": (
        "",
        body({"type": "session.update", "session": {"instructions": "Speak.", "voice": "alloy"}}),
        ["session.update", "── instructions\nSpeak.", "voice alloy"],
    ),
    "realtime item": (
        "",
        body(
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            }
        ),
        ["── user\nhi"],
    ),
    "realtime audio": (
        "",
        body({"type": "input_audio_buffer.append", "audio": "A" * 4000}),
        ["input_audio_buffer.append", "audio, 3.0 kB"],
    ),
    "realtime response": ("", body({"type": "response.create", "response": "odd", "session": "odd"}), ["response.create", "odd"]),
    "a form": (
        "multipart/form-data; boundary=XX",
        b"\r\n".join(
            [
                b"--XX",
                b'Content-Disposition: form-data; name="model"',
                b"",
                b"whisper-1",
                b"--XX",
                b'Content-Disposition: form-data; name="file"; filename="a.wav"',
                b"Content-Type: audio/wav",
                b"",
                b"RIFF\x00\x01",
                b"--XX",
                b"broken",
                b"--XX--",
                b"",
            ]
        ),
        ["── model\nwhisper-1", "── file\n[a.wav, audio/wav, 6 bytes]"],
    ),
    "half a form": (
        "multipart/form-data; boundary=XX",
        b'--XX\r\nContent-Disposition: form-data; name="file"\r\nContent-Type: audio/wav\r\n\r\nRI',
        ["audio/wav, 2 bytes", "breaks off"],
    ),
    "a form without a boundary": ("multipart/form-data", b"abc", ["without a boundary, 3 bytes"]),
    "a list": ("application/json", b"[1, 2]", ["1"]),
    "half": ("application/json", b'{"model": "gpt-4o", "messa', ["not JSON", '{"model": "gpt-4o", "messa']),
    "too deep": ("application/json", b"[" * 200_000, ["nests too deeply"]),
    "sessions in sessions": ("application/json", b'{"session":' * 900 + b"1" + b"}" * 900, ["nests too deeply"]),
    "odd everywhere": (
        "application/json",
        body(
            {
                "tools": {"name": "f"},
                "messages": "text",
                "input": {"a": 1},
                "prompt": {"id": "p"},
                "item": 3,
                "audio": {"voice": "v"},
                "response": {"input": [{"type": 3}]},
            }
        ),
        ["f()", "text", '"voice": "v"'],
    ),
    "odd media": (
        "application/json",
        body(
            {
                "messages": [
                    {
                        "content": [
                            {"image_url": {"url": 3}},
                            {"input_audio": "AAAA"},
                            {"input_audio": 3},
                            {"file": 3},
                            {"file": "data:a/b;base64,AAAA"},
                            {"audio": {"odd": 1}},
                        ]
                    }
                ]
            }
        ),
        ["── message", "audio, 3 bytes", "a/b, 3 bytes", '{"odd": 1}'],
    ),
}

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "gpt-4o",
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "The whole text"}]}],
    "usage": {"input_tokens": 5, "output_tokens": 7},
}

ANSWERS: dict[str, tuple[str, bytes, list[str]]] = {
    "chat": (
        "application/json",
        body(
            {
                "model": "gpt-4o",
                "choices": [
                    {"message": {"role": "assistant", "content": "Hi", "tool_calls": [CALL]}, "finish_reason": "stop"},
                    {"text": "odd"},
                    {},
                ],
                "usage": USAGE,
                "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": FILTER}],
            }
        ),
        [
            "── assistant\nHi",
            "── tool call get_weather call_1",
            "stop · 23 + 11 tokens (reasoning 4) · gpt-4o",
            "dropped by the proxy",
            "prompt_filter_results: hate safe, jailbreak yes (filtered)",
        ],
    ),
    "stream": (
        "text/event-stream",
        events(
            {"choices": [], "id": "", "model": "", "prompt_filter_results": [1]},
            chunk({"role": "assistant", "content": "", "refusal": None}),
            chunk({"reasoning_content": "Hm. "}),
            chunk({"content": "Hello"}),
            chunk({"content": " you"}),
            chunk({"refusal": "No"}),
            chunk({}, "stop"),
            chunk(usage=USAGE),
        ),
        [
            "── reasoning\nHm. ",
            "── assistant\nHello you",
            "── assistant refuses\nNo",
            "stop · 23 + 11 tokens (reasoning 4) · gpt-4o-2024-11-20",
            "1 whole event",
            "prompt_filter_results: [1]",
            "choices[].content_filter_results (6 times): hate safe, jailbreak yes (filtered)",
        ],
    ),
    "stream of a tool call": (
        "text/event-stream",
        events(
            chunk({"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}, {"index": 1, "function": 3}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
            chunk({}, "tool_calls"),
        ),
        ['── tool call f call_1\n{"a":1}', "tool_calls"],
    ),
    "stream of a function call": (
        "text/event-stream",
        events(chunk({"function_call": {"name": "old", "arguments": None}})),
        ["── tool call old"],
    ),
    "stream of a completion": (
        "",
        events(
            {"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}, {"index": 0, "text": "c", "finish_reason": "length"}, 3]}
        ),
        ["── text\nac", "── text 1\nb", "length"],
    ),
    "stream with an error": (
        "text/event-stream",
        events(chunk({"content": "Hal"}), {"error": {"message": "gone", "code": "x"}}, done=False),
        ["── assistant\nHal", "── error\ngone\ncode x"],
    ),
    "stream of a response": (
        "text/event-stream",
        events(
            {"type": "response.created", "response": {"output": []}},
            {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "The wh"},
            {"type": "response.completed", "response": {**RESPONSE, "content_filters": [1]}},
            names=True,
            done=False,
        ),
        ["── assistant\nThe whole text", "completed · 5 + 7 tokens · gpt-4o"],
    ),
    "half a stream of a response": (
        "text/event-stream",
        events(
            {"type": "response.output_item.added", "item": {"id": "fc_1", "type": "function_call", "name": "f", "call_id": "call_9"}},
            {"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": '{"a":'},
            {"type": "response.reasoning_summary_text.delta", "item_id": "rs_1", "delta": "Because"},
            {"type": "response.audio.delta", "item_id": "a_1", "delta": "AAAA"},
            {"type": "response.failed", "error": {"message": "broke"}},
            names=True,
            done=False,
        ),
        ['── tool call f call_9\n{"a":', "── reasoning_summary_text", "Because", "[base64, 3 bytes]", "── error\nbroke"],
    ),
    "stream of an image": (
        "text/event-stream",
        events(
            {"type": "image_generation.partial_image", "b64_json": "AAAA"},
            {"type": "image_generation.completed", "b64_json": "AAAA", "usage": {"input_tokens": 1}},
        ),
        ["[image, 3 bytes]", "1 tokens"],
    ),
    "stream of speech": (
        "text/event-stream",
        events({"type": "speech.audio.delta", "audio": "AAAA"}, {"type": "speech.audio.done", "usage": {"input_tokens": 1}}),
        ["── speech.audio\n[audio, 3 bytes]", "1 tokens"],
    ),
    "stream of a thread": (
        "text/event-stream",
        b"\n\n".join(
            [
                b'event: thread.message.delta\ndata: {"delta":{"content":[{"text":{"value":"Hey"}},{"text":3}]}}',
                b'event: thread.run.step.delta\ndata: {"delta": 3}',
                b'event: thread.run.completed\ndata: {"object": "thread.run", "model": "gpt-4o"}',
                b"event: done\ndata: [DONE]",
                b"",
            ]
        ),
        ["── assistant\nHey", "── end\ncompleted · gpt-4o"],
    ),
    "broken stream": (
        "text/event-stream",
        b'data: {"a\n\ndata: [1]\n\ndata: x\n\ndata: \n\n: comment\n\ndata: {"odd": 1}\n\ndata: {"choices"',
        ["3 events are not JSON"],
    ),
    "nearly whole stream": ("text/event-stream", b'data: {"a', ["1 event is not JSON"]),
    "embeddings": (
        "application/json",
        body(
            {
                "data": [{"index": 0, "embedding": [0.5] * 1536}, {"index": 1, "embedding": "AAAA"}, *[{"embedding": []}] * 30],
                "usage": {"prompt_tokens": 2},
            }
        ),
        ["── embedding 0\n1,536 numbers: 0.5", "[base64, 3 bytes]", "… and 12 more", "2 tokens"],
    ),
    "one embedding": ("application/json", body({"data": [{"embedding": [1]}]}), ["1 numbers: 1"]),
    "images": (
        "application/json",
        body({"data": [{"b64_json": "AAAA", "revised_prompt": "a cat"}, {"url": "https://e.x/1"}]}),
        ["[image, 3 bytes]\na cat", "https://e.x/1"],
    ),
    "response": (
        "application/json",
        body({**RESPONSE, "error": {"message": "half"}}),
        ["── assistant\nThe whole text", "half", "completed · 5 + 7 tokens"],
    ),
    "error": (
        "application/json",
        body({"error": {"message": "Denied", "code": "invalid_api_key", "param": None}}),
        ["── error\nDenied\ncode invalid_api_key"],
    ),
    "short error": ("application/json", body({"error": "no"}), ["── error\nno"]),
    "transcription": ("application/json", body({"text": "spoken words"}), ["── transcript\nspoken words"]),
    "text": ("text/plain", b"spoken words", ["spoken words"]),
    "speech": ("audio/mpeg", b"\xff\xf3\x00", ["[audio/mpeg, 3 bytes]"]),
    "half": ("application/json", b'{"choices": [', ["not JSON"]),
    "a list": ("application/json", b"[1]", ["1"]),
    "a file": ("application/json", body({"id": "file-1", "object": "file"}), ['"id": "file-1"']),
    "realtime item": (
        "",
        body(
            {
                "type": "conversation.item.created",
                "item": {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "yes"}]},
                "event_id": "e",
            }
        ),
        ["conversation.item.created", "── assistant\nyes"],
    ),
    "realtime delta": (
        "",
        body({"type": "response.text.delta", "delta": "wor", "item_id": "i"}),
        ["response.text.delta · item_id i", "wor"],
    ),
    "realtime done": ("", body({"type": "response.done", "response": RESPONSE}), ["response.done", "The whole text", "5 + 7 tokens"]),
    "an item": ("", body({"type": "message", "role": "user", "content": [{"text": "yes", "type": "input_text"}]}), ["── user\nyes"]),
    "a run with an error": ("", body({"object": "eval.run", "error": {"message": ""}, "id": "run_1"}), ['"id": "run_1"']),
    "addresses": ("", body({"data": [{"object": "webhook_endpoint", "url": "https://e.x"}]}), ['"url": "https://e.x"']),
    "realtime error": ("", body({"type": "error", "error": {"message": "bad frame"}}), ["── error\nbad frame"]),
    "realtime session": (
        "",
        body({"type": "session.created", "session": {"voice": "alloy"}}),
        ['session.created · session {"voice": "alloy"}'],
    ),
}
