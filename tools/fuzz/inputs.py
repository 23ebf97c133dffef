"""Makes hostile requests. Each depends only on the seed and its number, so that a single request can be repeated."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from fuzz import http1_inputs, http2_inputs, operation_inputs, websocket_inputs
from fuzz.hostile_input import CONFIGS, Config, Input

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KINDS", "make"]

KINDS = {
    # transport, way: weight
    ("http1", "plain"): 28,
    ("http1", "tls"): 6,
    ("http1", "connect"): 8,
    ("raw1", "plain"): 16,
    ("raw1", "connect"): 1,
    ("http2", "tls"): 22,
    ("http2", "connect"): 9,
    ("websocket", "plain"): 5,
    ("websocket", "tls"): 1,
    ("benign", "plain"): 4,
}
_MAKERS = {
    "http1": operation_inputs.over_http1,
    "http2": http2_inputs.either,
    "raw1": http1_inputs.raw,
    "websocket": websocket_inputs.upgrade,
    "benign": operation_inputs.benign,
}


def make(seed: int, number: int, configs: Sequence[Config] = CONFIGS) -> Input:
    chosen = random.Random(f"{seed}:{number}")  # noqa: S311 - no secret
    config = chosen.choices(configs, [config.share for config in configs])[0]
    transport, way = chosen.choices(list(KINDS), list(KINDS.values()))[0]
    made = Input(number, config, transport, way, "", frozenset())
    _MAKERS[transport](made, chosen)
    return made
