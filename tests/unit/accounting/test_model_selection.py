"""The bounded copy of what the model router says about its choice."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from azure_openai_proxy.accounting import model_selection

DETAILS = {
    "model_router_details": {
        "mode": "balanced",
        "routing_trace": [{"latency_ms": 12.5, "attempts": [{"model": "gpt-5-mini", "result": {"status": 200, "error": None}}]}],
        "session_affinity": {"mode": "sticky", "source": "key", "decision": "retain"},
    }
}


def test_ordinary_details() -> None:
    """They are copied as they are."""
    assert DETAILS == model_selection.bounded(DETAILS)


@pytest.mark.parametrize("value", [None, {}, [], "text", 7])
def test_no_details(value: object) -> None:
    """Anything but an object with members counts as none."""
    assert None is model_selection.bounded(value)


@pytest.mark.parametrize(
    "value, kept",
    [
        ({"a": "x" * 1000}, {"a": "x" * 256}),
        ({"a": "two\nlines", "b": math.inf, "c": 10**30, "d": True}, {"a": None, "b": None, "c": None, "d": True}),
        ({"a b": 1, "": 2, "ok": 3}, {"ok": 3}),
        ({"a": list(range(100))}, {"a": list(range(16))}),
        ({"a": (1,)}, {"a": None}),
    ],
)
def test_hostile_details(value: dict[str, Any], kept: dict[str, Any]) -> None:
    """What is too long, or no value of JSON, is cut off or left out."""
    assert kept == model_selection.bounded(value)


def test_deep_and_wide_details() -> None:
    """Their size is bounded in all."""
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"a": deep}
    wide = {f"n{number}": [list(range(16))] * 16 for number in range(16)}
    assert len(json.dumps(model_selection.bounded(deep))) < 100
    assert len(json.dumps(model_selection.bounded(wide))) < 2000


def test_shown_details() -> None:
    """Each text goes through the function, at each level."""
    shown = model_selection.shown({"a": ["key", {"b": "key"}], "c": 1}, lambda text: text.replace("key", "*"))
    assert {"a": ["*", {"b": "*"}], "c": 1} == shown
