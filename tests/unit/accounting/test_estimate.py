"""Estimates of tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.accounting import estimate
from azure_openai_proxy.accounting.estimate import Estimate
from azure_openai_proxy.formats.json_scan import LARGE

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [{"role": "user", "content": "x" * 8000}]}, Estimate(2000, 500)),
        ({"messages": [{"role": "user", "content": "é" * 4}], "max_tokens": 7}, Estimate(2, 7)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, IMAGE]}]}, Estimate(1010, 500)),
        ({"input": "x" * 12, "instructions": "y" * 4, "max_output_tokens": 9}, Estimate(4, 9)),
        ({"input": ["x" * 8, "y" * 8]}, Estimate(4, 500)),
        ({"input": [1, 2, 3]}, Estimate(3, 500)),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "x"}]}]}, Estimate(1000, 500)),
        ({"prompt": "x" * 5, "max_completion_tokens": 0}, Estimate(2, 0)),
        ({"prompt": None, "max_tokens": True}, Estimate(0, 500)),
        ({"tools": [{"a": "b"}], "messages": []}, Estimate(3, 500)),
        ({"type": "response.create", "response": {"instructions": "x" * 8, "max_output_tokens": 3, "tools": [1]}}, Estimate(3, 3)),
        ({"messages": [{"content": "x", "image": "y"}]}, Estimate(1001, 500)),
        ({"messages": [], "n": 3, "max_tokens": 7}, Estimate(0, 21)),
        ({"prompt": "x", "n": 2, "best_of": 4}, Estimate(1, 2000)),
        ({"messages": [], "n": -1, "best_of": 1e300}, Estimate(0, 500)),
        ({"messages": [], "n": 129}, Estimate(0, 500)),
        ({"messages": [], "response_format": {"type": "json_schema", "json_schema": "x" * 4000}}, Estimate(1011, 500)),
        ({"input": "", "text": {"format": {"type": "json_schema", "schema": "x" * 4000}}}, Estimate(1010, 500)),
        ({"input": "", "text": {"format": {"type": "text"}}, "response_format": 1}, Estimate(0, 500)),
    ],
)
def test_a_request(body: dict[str, Any], expected: Estimate) -> None:
    """Texts count their bytes, attachments a fixed number, and the output its maximum."""
    found = estimate.of_request(json.dumps(body).encode(), "application/json")
    assert (expected, expected.input + expected.output) == (found, found.total)


@pytest.mark.parametrize(("body", "expected"), [(b"not json", Estimate(2, 500)), (b"[12345]", Estimate(2, 500))])
def test_another_body(body: bytes, expected: Estimate) -> None:
    """A body that is no object counts as a text."""
    assert expected == estimate.of_request(body, "application/json")


def test_a_form() -> None:
    """Each file of a form is an attachment, and its prompt is a text."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n12345678\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    )
    assert Estimate(1002, 500) == estimate.of_request(form, "multipart/form-data; boundary=x")
    assert Estimate(0, 500) == estimate.of_request(b"", "multipart/form-data; boundary=x")


def test_a_large_body() -> None:
    """Its long strings are attachments; it is not parsed, and the number of its strings that are examined is bounded."""
    text = json.dumps({"messages": [{"content": "word " * LARGE}, IMAGE], "max_tokens": 5}).encode()
    found = estimate.of_request(text, "application/json")
    words = 1000 + LARGE * 5 // 4
    assert (True, 5) == (words < found.input < words + 100, found.output)
    many = b'{"a":"' + b'","'.join([b"x"] * 100_000) + b'"}'
    assert Estimate(estimate.in_tokens(len(many)), 500) == estimate.of_request(many, "application/json")


@pytest.mark.parametrize(
    ("data", "chat", "expected"),
    [
        (b'{"choices":[{"delta":{"content":"Hello"}}]}', True, 5),
        (b'{"choices":[{"delta":{"content":"a\\n\\u00e9"}}]}', True, 4),
        (b'{"choices":[{"delta":{"content":"a\\x"}}]}', True, 3),
        (b'{"type":"response.output_text.delta","delta":"Hi"}', False, 2),
        (b'{"type":"response.output_text.done","text":"Hi"}', False, 0),
        (b'{"type":"response.output_audio.delta","delta":"AAAA"}', False, 0),
        (b'{"type":"image_generation.partial_image","b64_json":"AAAA"}', False, 4000),
        (b'{"type":"response.image_generation_call.partial_image","partial_image_b64":"AAAA"}', False, 4000),
    ],
)
def test_delivered_text(data: bytes, chat: bool, expected: int) -> None:
    """The text of an event counts, not its own bytes, and audio does not; an image counts as an attachment."""
    assert expected == estimate.delivered(data, chat=chat)
