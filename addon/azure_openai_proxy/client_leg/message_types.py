"""mitmproxy's checks of the types of a message's members, which it makes whenever it creates a message (40 µs)."""

from __future__ import annotations

from mitmproxy import http

__all__ = ["check"]

_CHECK = "__post_init__"
_check = vars(http.MessageData).get(_CHECK)  # None under -O


def check(*, on: bool) -> None:
    """Make the checks, or leave them out as `python -O` does. mitmproxy's parsers and its typed interface create messages."""
    if _check:
        setattr(http.MessageData, _CHECK, _check if on else _trust)


def _trust(_: http.MessageData) -> None:
    pass
