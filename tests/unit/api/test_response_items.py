"""The items of earlier responses in a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from azure_openai_proxy.api import response_items
from azure_openai_proxy.api.large_bodies import LargeBody
from azure_openai_proxy.api.response_items import Item
from azure_openai_proxy.formats import json_scan

ENCRYPTED = "gAAAAA" + "x" * 80 + "/="
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": ENCRYPTED}
CASES: list[tuple[Any, list[Item]]] = [
    ([{"type": "item_reference", "id": "rs_1"}], [Item(0, "reference", "rs_1")]),
    ([{"id": "rs_1"}], [Item(0, "reference", "rs_1")]),
    ([{"id": "rs_1", "x": {"y": 1}}], [Item(0, "whole", "rs_1")]),
    ([{"role": "user", "content": "hi"}, REASONING], [Item(1, "reasoning", "rs_1", ENCRYPTED[-64:])]),
    ([REASONING | {"id": None}], [Item(0, "reasoning", "", ENCRYPTED[-64:])]),
    ([REASONING | {"encrypted_content": "k" * 16}], [Item(0, "reasoning", "rs_1", "k" * 16)]),
    ([REASONING | {"encrypted_content": "k" * 15}], [Item(0, "reference", "rs_1")]),
    ([REASONING | {"encrypted_content": None}], [Item(0, "reference", "rs_1")]),
    ([{"type": "compaction", "encrypted_content": ENCRYPTED}], [Item(0, "encrypted", "", ENCRYPTED[-64:])]),
    ([{"type": "function_call", "id": "fc_1"}, "text", {"type": "message"}], [Item(0, "whole", "fc_1")]),
    ([{"type": "function_call", "id": "f" * 300}, {"type": "t" * 100, "id": "fc_2"}], [Item(0, "whole"), Item(1, "whole", "fc_2")]),
    ("hello", []),
    ([], []),
]


def large(body: dict[str, Any]) -> LargeBody:
    content = json.dumps(body).encode()
    places = ("model", *response_items.PLACES)
    return LargeBody(content, json_scan.outline(content, places, every=True), places=places)


@pytest.mark.parametrize(("items", "found"), CASES)
def test_found(items: Any, found: list[Item]) -> None:
    """Items are found in a parsed and in a large body alike."""
    body = {"input": items, "metadata": {"input": [{"id": "rs_9"}]}}
    assert found == list(response_items.found(body))
    assert found == list(response_items.found({}, large(body)))


def test_a_body_without_input() -> None:
    """A body without input, or that is no JSON, has no items."""
    assert () == response_items.found({})
    assert () == response_items.found({}, large({}))
    assert () == response_items.found({}, LargeBody(b"[", None))


def test_a_repeated_input() -> None:
    """The last one counts, as in JSON parsers."""
    content = b'{"input":[{"id":"rs_1"}],"input":[{"id":"rs_2"}]}'
    found = response_items.found({}, LargeBody(content, json_scan.outline(content, response_items.PLACES, every=True)))
    assert (Item(0, "reference", "rs_2"),) == found


def test_names() -> None:
    """A message names an item by its id, or by its position."""
    assert ["rs_1", "input[2]", "input[3]"] == [item.name for item in (Item(1, "whole", "rs_1"), Item(2, "whole"), Item(3, "whole", "a\n"))]


@pytest.mark.parametrize("positions", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
def test_without(positions: set[int]) -> None:
    """Items are cut out of a body. All other members stay where they are found."""
    items = [REASONING, {"role": "user", "content": "hi"}, {"type": "item_reference", "id": "rs_2"}]
    body = {"model": "m", "input": items, "stream": True}
    left = body | {"input": [item for position, item in enumerate(items) if position not in positions]}
    content, none = response_items.without(json.dumps(body).encode(), None, positions)
    assert (left, None) == (json.loads(content), none)
    before = large(body)
    content, scanned = response_items.without(before.content, before, positions)
    assert scanned
    assert left == json.loads(content) == json.loads(scanned.content)
    assert ("m", True) == (scanned.value("model"), scanned.value("stream"))
    assert scanned.outline
    whole, stream = scanned.outline.get("input"), scanned.outline.get("stream")
    assert whole
    assert stream
    assert left["input"] == json.loads(content[whole.value : whole.end])
    assert b'"stream"' == content[stream.start : stream.value - 2]
    assert left == scanned.parse()
