"""What Azure keeps lives on one backend: files, batches, responses, conversations, vector stores, jobs, calls. Who has which is
remembered by its id; a request that names one goes there, and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calls import Call

__all__ = ["Owners", "created", "ids", "keeps", "kept"]

READ_AT_MOST = 4 << 20
"""Bytes of a body that are searched for ids."""

_ID = re.compile(r"[a-z]{2,16}[-_](?=[\w-]*\d)[\w-]{4,120}")
_QUOTED = re.compile(rb'"([a-z]{2,16}[-_][A-Za-z0-9_-]{4,120})"')


class Owners:
    """Id → the name of the backend that has it. Bounded: the one not used for longest is forgotten."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._names: OrderedDict[str, str] = OrderedDict()

    def add(self, id: str, backend: str) -> None:
        self._names[id] = backend
        self._names.move_to_end(id)
        while len(self._names) > self._most:
            self._names.popitem(last=False)

    def of(self, call: Call, content: bytes) -> str | None:
        """The backend that has what the request names; None while nothing of it is known."""
        if not self._names:
            return None
        named = ids(call) + [match[1].decode() for match in _QUOTED.finditer(content, 0, READ_AT_MOST)]
        for id in named:
            if (name := self._names.get(id)) is not None:
                self._names.move_to_end(id)
                return name
        return None

    def __len__(self) -> int:
        return len(self._names)


def ids(call: Call) -> list[str]:
    """The ids in the path: below the collection, and no model's name."""
    if call.model is not None:
        return []
    return [part for part in call.path.split("/")[2:] if _ID.fullmatch(part)]


def keeps(call: Call, content: bytes) -> bool:
    """Whether Azure keeps what this request makes."""
    if call.method != "POST":
        return False
    return call.path.startswith("/responses") or not call.endpoint.repeatable or b'"store"' in content


def kept(call: Call, content: bytes, answer: bytes) -> str | None:
    """The id of what the answer has made."""
    return created(answer) if keeps(call, content) else None


def created(answer: bytes) -> str | None:
    """The id of the object in an answer, or in the first event of a stream."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(inner := value.get("response"), dict):
        value = inner
    id = value.get("id") if isinstance(value, dict) else None
    return id if isinstance(id, str) else None
