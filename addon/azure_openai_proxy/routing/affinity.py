"""Backend affinity of stored objects: files, batches, responses, conversations, vector stores, jobs and calls.

Azure stores such an object on one backend only. The proxy remembers which backend has which id, and sends a request that names the id
to that backend and no other. An id in the text of a conversation does not count.

The items of a response belong to the backend that made it. Another backend answers "Item with id ... not found" to an item's id and
cannot decrypt its `encrypted_content`. Codex with `store: false` sends no ids; its requests are matched by the last characters of
`encrypted_content`.

Ids are read only from the fields that Azure writes itself, because a response may repeat a client's metadata, tools and schemas.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from azure_openai_proxy.api.response_items import SHORTEST, TAIL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from azure_openai_proxy.api.operation import Call
    from azure_openai_proxy.api.response_items import Item

__all__ = ["ITEM", "READ_AT_MOST", "Owners", "ids", "keeps", "kept", "made"]

ITEM = b"response.output_item."
"""Substring of the type of each event or frame that carries a response item."""
READ_AT_MOST = 4 << 20
"""Bytes of a request body that are searched for the token limits."""
_WINDOW = 1 << 20
"""Bytes at each end of a request body that are searched for ids. The newest items come last."""
_MOST_NAMED, _MOST_ENCRYPTED = 20_000, 16
_MOST_TOKENS = 20_000
"""Strings and brackets of a response that are scanned, which takes a few milliseconds."""
_ID = re.compile(r"[a-z]{2,16}[-_](?=[\w-]*\d)[\w-]{4,120}")
_QUOTED = re.compile(rb'"([a-z]{2,16}[-_][A-Za-z0-9_-]{1,200}+)"')
_KEY = re.compile(rb'"(\w{1,64}+)"[ \t\r\n]*+:[ \t\r\n]*+(?:\[[^\[\]{}]*+)?\Z')
_BEFORE = 256
"""Bytes before a string that are searched for the member that it is the value of."""
_TEXTS = frozenset(
    b"arguments content description input instructions name output prompt prompt_cache_key query refusal role safety_identifier stop text "
    b"title type user".split()
)
"""Members whose values are texts and no ids."""
_ENCRYPTED = re.compile(rb'"encrypted_content"[ \t\r\n]*+:[ \t\r\n]*+"')

_NEXT = re.compile(rb'[^"{}\[\]]*+(?:"((?:[^"\\]++|\\.)*+)"([ \t\r\n]*+:)?|([{}\[\]]))', re.DOTALL)
_ITEMS = frozenset({(b"item",), (b"output", b"*"), (b"response", b"output", b"*")})
_OBJECTS = _ITEMS | {(), (b"response",)}
"""Paths of the objects that Azure creates, in a response, an event or a frame; `*` is any index of a list."""


class Owners:
    """LRU map from an id to the name of the backend that stores it."""

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._names: OrderedDict[str, str] = OrderedDict()
        self.publish: Callable[[str, str], None] | None = None  # gets each new id and its backend, for other replicas

    def add(self, id: str, backend: str) -> None:
        if self.publish is not None and self._names.get(id) != backend:
            self.publish(id, backend)
        self.learn(id, backend)

    def learn(self, id: str, backend: str) -> None:
        """Take over what another replica knows."""
        self._names[id] = backend
        self._names.move_to_end(id)
        while len(self._names) > self._most:
            self._names.popitem(last=False)

    def claim(self, id: str, backend: str) -> None:
        """Like `add`, but keeps an existing entry. Azure's ids are unique, so the first backend that returned one owns it."""
        self.add(id, self._names.get(id, backend))

    def of(self, call: Call, content: bytes) -> str | None:
        """The backend that stores an object which the request names; None if no such id is known."""
        if not self._names:
            return None
        items = () if call.items is None else {item.id for item in call.items}
        for id in (*ids(call), *(_encrypted(content) if call.items is None else ())):
            if (name := self.get(id)) is not None:
                return name
        for match in _named(content):
            id = match[1].decode()
            if id in self._names and id not in items and not _is_text(content, match.start()):
                return self.get(id)
        return None

    def get(self, id: str) -> str | None:
        """The backend that has the object of this id."""
        if (name := self._names.get(id)) is not None:
            self._names.move_to_end(id)
        return name

    def of_item(self, item: Item) -> str | None:
        """The backend that made an item of an earlier response."""
        return (self.get(item.tail) if item.tail else None) or (self.get(item.id) if item.id else None)

    def newest(self, most: int) -> list[tuple[str, str]]:
        """The ids that were used last, and their backends, the last one first."""
        return list(islice(reversed(self._names.items()), most))

    def __len__(self) -> int:
        return len(self._names)


def ids(call: Call) -> list[str]:
    """The ids in the path, below the collection. A path that names a model has none."""
    if call.model is not None:
        return []
    return [part for part in call.path.split("/")[2:] if _ID.fullmatch(part)]


def keeps(call: Call, content: bytes) -> bool:
    """Whether Azure stores the object that this request creates."""
    if call.method != "POST":
        return False
    return call.path.startswith("/responses") or not call.endpoint.repeatable or b'"store"' in content


def kept(call: Call, content: bytes, body: bytes) -> list[str]:
    """The ids of the objects that the response created or returned."""
    shown = call.method == "GET" and call.path.startswith("/responses")
    return made(body) if shown or keeps(call, content) else []


def made(body: bytes) -> list[str]:
    """The ids of the object in a response, an event or a frame and of its items, and the last characters of each `encrypted_content`."""
    found: list[str] = []
    path: list[bytes] = []  # the names of the open objects and lists
    lists: list[bool] = []
    key = b""
    position = 0
    for _ in range(_MOST_TOKENS):
        token = _NEXT.match(body, position)
        if token is None:
            break
        position = token.end()
        if bracket := token[3]:
            if bracket in b"{[":
                path.append(b"*" if lists and lists[-1] else key)
                lists.append(bracket == b"[")
            elif not path:
                break
            else:
                path.pop()
                lists.pop()
        elif token[2]:
            key = body[token.start(1) : token.end(1)][:TAIL]
        elif len(path) <= 4 and path and not lists[-1]:
            found += _value(tuple(path[1:]), key, body, *token.span(1))
    return found


def _value(path: tuple[bytes, ...], key: bytes, body: bytes, start: int, end: int) -> list[str]:
    if key == b"id" and path in _OBJECTS and end - start <= 256:
        return [body[start:end].decode("utf-8", "replace")]
    if key == b"encrypted_content" and path in _ITEMS and end - start >= SHORTEST:
        return [body[max(start, end - TAIL) : end].decode("utf-8", "replace")]
    return []


def _is_text(content: bytes, start: int) -> bool:
    """Whether the string at `start` is a text, or one in a list of texts."""
    key = _KEY.search(content, max(0, start - _BEFORE), start)
    return key is not None and key[1] in _TEXTS


def _named(content: bytes) -> Iterator[re.Match[bytes]]:
    """Strings of a request body that have the form of an id, the last one first."""
    start = max(0, len(content) - _WINDOW)
    for window in ((start, len(content)), (0, min(_WINDOW, start))):
        matches = list(islice(_QUOTED.finditer(content, *window), _MOST_NAMED))
        yield from reversed(matches)


def _encrypted(content: bytes) -> Iterator[str]:
    """The last characters of the newest `encrypted_content` values of a request body, the newest first."""
    end = len(content)
    for _ in range(_MOST_ENCRYPTED):
        end = content.rfind(b'"encrypted_content"', 0, end)
        if end < 0:
            return
        value = _ENCRYPTED.match(content, end)
        if value and (close := content.find(b'"', value.end())) > 0:
            yield content[max(value.end(), close - TAIL) : close].decode("utf-8", "replace")
