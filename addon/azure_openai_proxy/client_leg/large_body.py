"""A buffer for a large request body."""

from __future__ import annotations

from io import BytesIO
from typing import Self

__all__ = ["LargeBody"]


class LargeBody:
    """Replaces mitmproxy's buffer of a large body, which keeps pieces and joins them: that takes twice the size of the body."""

    def __init__(self, start: bytes) -> None:
        self._body = BytesIO()
        self += start

    def __iadd__(self, data: bytes) -> Self:
        self._body.write(data)
        return self

    def __len__(self) -> int:
        return self._body.tell()

    def __bytes__(self) -> bytes:
        return self._body.getvalue()  # not a copy

    def clear(self) -> None:
        self._body = BytesIO()
