"""A moderation that has not looked."""

from __future__ import annotations

import json

import pytest
from openai.types import ModerationCreateResponse

from azure_openai_proxy.api.moderations import unflagged
from azure_openai_proxy.errors import BadRequest


@pytest.mark.parametrize(
    "given, results",
    [("hello", 1), (["a", "b", "c"], 3), ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], 1)],
)
def test_each_text_has_a_result_that_says_nothing(given: object, results: int) -> None:
    """In the SDK's own type; and the id tells that nobody looked."""
    answer = ModerationCreateResponse.model_validate_json(unflagged(json.dumps({"input": given, "model": "m"}).encode()).content or b"")
    assert ([False] * results, "m", True) == ([result.flagged for result in answer.results], answer.model, "unchecked" in answer.id)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"input":""}', b'{"input":[]}', b'{"input":3}'])
def test_without_an_input_there_is_no_result(content: bytes) -> None:
    """As OpenAI has it."""
    with pytest.raises(BadRequest, match="`input` is required"):
        unflagged(content)
