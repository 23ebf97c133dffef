"""Messages and items as blocks of text."""

from __future__ import annotations

from typing import Any

import pytest

from azure_openai_proxy.inspection.threads import blocks
from azure_openai_proxy.inspection.threads.blocks import Block, Media

CASES: list[tuple[Any, list[Block]]] = [
    ("text", [Block("user", "text")]),
    (7, [Block("user", "7")]),
    ({"role": "system", "content": "be"}, [Block("system", "be")]),
    ({"role": "developer", "content": [{"type": "text", "text": "be"}, "so"]}, [Block("system", "be\nso")]),
    ({"role": "user", "name": "bob", "content": "hi"}, [Block("user", "hi", "bob")]),
    ({"role": "critic", "content": "no"}, [Block("other", "no", "critic")]),
    ({"content": {"a": 1}}, [Block("other", '{"a":1}')]),
    (
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        [Block("reasoning", "hm"), Block("tool_call", "{}", "f", "c")],
    ),
    ({"role": "assistant", "content": "", "refusal": "I refuse"}, [Block("assistant", "I refuse")]),
    ({"role": "assistant", "function_call": {"name": "f", "arguments": "1"}}, [Block("tool_call", "1", "f")]),
    (
        {"role": "assistant", "audio": {"transcript": "hello", "data": "QUJD", "format": "mp3"}},
        [Block("assistant", "hello", media=(Media("audio", "data:audio/mp3;base64,QUJD"),))],
    ),
    ({"role": "assistant", "audio": {"id": "a"}}, [Block("assistant", "")]),
    ({"role": "tool", "tool_call_id": "c", "content": "42"}, [Block("tool_result", "42", "", "c")]),
    ({"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}", "id": "fc"}, [Block("tool_call", "{}", "f", "c")]),
    (
        {"type": "local_shell_call", "call_id": "c", "action": {"command": ["ls"]}},
        [Block("tool_call", '{"command":["ls"]}', "local_shell", "c")],
    ),
    ({"type": "function_call_output", "call_id": "c", "output": "42"}, [Block("tool_result", "42", "", "c")]),
    ({"type": "mcp_approval_response", "output": None}, [Block("tool_result", "")]),
    (
        {"type": "reasoning", "summary": [{"text": "a"}, {"text": 1}], "content": [{"text": "b"}], "encrypted_content": "x"},
        [Block("reasoning", "a\n\nb")],
    ),
    ({"type": "item_reference", "id": "x"}, [Block("other", '{"type":"item_reference","id":"x"}', "item_reference")]),
    ({"type": 5}, [Block("other", '{"type":5}')]),
    (
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}, {"image_url": "https://x/y"}],
        },
        [Block("user", "", media=(Media("image", "data:image/png;base64,AA"), Media("image", "https://x/y")))],
    ),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QQ"}}, {"input_audio": {}}]},
        [Block("user", "", media=(Media("audio", "data:audio/wav;base64,QQ"),))],
    ),
    (
        {"role": "user", "content": [{"type": "file", "file": {"filename": "a", "file_data": "x"}}, {"file_id": "f"}, {"file": 1}]},
        [Block("user", "", media=(Media("file", "x", "a"), Media("file", "f")))],
    ),
    ({"role": "user", "content": [{"type": "new", "x": 1}, 5]}, [Block("user", '{"type":"new","x":1}')]),
]


@pytest.mark.parametrize(("item", "expected"), CASES)
def test_each_kind_of_item(item: Any, expected: list[Block]) -> None:
    """An item of any form becomes blocks."""
    assert expected == list(blocks.of_items([item]))


def test_limits() -> None:
    """The number of images in a block is bounded, and a value that nests too deeply has no text."""
    parts = [{"image_url": f"https://x/{n}"} for n in range(blocks.MOST_MEDIA + 9)]
    assert blocks.MOST_MEDIA == len(next(blocks.of_item({"role": "user", "content": parts})).media)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert "" == blocks.dumped(deep)


def test_roles() -> None:
    """A text is the user's; other items have the role that they name."""
    assert ["user", "tool", "", ""] == [blocks.role_of(item) for item in ("x", {"role": "tool"}, {"role": 1}, {})]
