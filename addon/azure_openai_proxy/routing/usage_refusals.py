"""Deployments that refuse `stream_options`, so that the proxy cannot request the usage of their streams."""

from __future__ import annotations

import json
import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from azure_openai_proxy.formats import compression
from azure_openai_proxy.formats.json_scan import LARGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy import http

    from .learned_repairs import Key

__all__ = ["FIRST_VERSION", "UsageRefusals", "is_refusal", "may_use_data_sources"]

FIRST_VERSION = "2024-08-01"
"""First version of the dated API that may know `stream_options`. Azure's documents name 2024-09-01-preview, users name a month less."""
EXPIRES = 3600.0
"""Seconds after which a deployment is asked again."""
_SEARCHED = 64 << 10
_NAMED = re.compile(rb"\b(?:stream_options|include_usage)\b")


def is_refusal(response: http.Response) -> bool:
    """Return whether an error names the option. A client that sent no such option may have a value that the error repeats.

    So the request is sent without the option, and nothing else follows from it.
    """
    if response.status_code not in (400, 422):
        return False
    return _NAMED.search(compression.content_or_nothing(response)[:_SEARCHED]) is not None


def may_use_data_sources(content: bytes) -> bool:
    """Return whether a request has `data_sources`, with which Azure refuses the option for the request, not for the deployment.

    A client may write the name with escapes or in capitals. A large request, or one that is no object, may have it.
    """
    if len(content) > LARGE:
        return True
    try:
        members = json.loads(content)
    except (ValueError, RecursionError):
        return True
    return not isinstance(members, dict) or any(name.lower() == "data_sources" for name in members)


class UsageRefusals:
    """An LRU set of deployments. The oldest is dropped when there are too many."""

    def __init__(self, most: int = 512, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._until: OrderedDict[Key, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: Key) -> bool:
        return self._until.get(key, 0.0) > self._clock()

    def add(self, key: Key) -> None:
        self._until[key] = self._clock() + EXPIRES
        self._until.move_to_end(key)
        while len(self._until) > self._most:
            self._until.popitem(last=False)

    def clear(self) -> None:
        self._until.clear()
