"""The items in the `input` of a Responses request that earlier responses may have made.

Azure resolves a reference to an item, and decrypts its `encrypted_content`, only at the resource that made the item. Codex sends items back
without their ids, so the end of `encrypted_content`, which is a part of a signature, identifies them too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from azure_openai_proxy.formats import json_scan

from .large_bodies import LargeBody

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from azure_openai_proxy.formats.json_scan import Member, Outline

__all__ = ["PLACES", "SHORTEST", "TAIL", "Item", "found", "without"]

TAIL = 64
"""Characters at the end of an `encrypted_content` that identify it."""
SHORTEST = 16
"""Characters of the shortest `encrypted_content` that identifies an item."""
PLACES = ("input.*", "input.*.id", "input.*.type", "input.*.encrypted_content")
"""Places in a large body that have to be found."""

_LONGEST_ID = 256
_LONGEST_TYPE = 64
_QUOTE = 0x22
# reference: Azure looks the item up. reasoning: it decrypts the item, without which the conversation can go on. encrypted: it decrypts the
# item. whole: it needs nothing but the request.
type Kind = Literal["reference", "reasoning", "encrypted", "whole"]


class Item(NamedTuple):
    """An item that has an id or an `encrypted_content`."""

    position: int  # in `input`
    kind: Kind
    id: str = ""
    tail: str = ""  # of its `encrypted_content`

    @property
    def name(self) -> str:
        """Return the name of the item for messages."""
        return self.id if self.id.isprintable() and self.id else f"input[{self.position}]"


def found(members: Mapping[str, Any], large: LargeBody | None = None) -> tuple[Item, ...]:
    """Return the items of a parsed or a large body, in their order."""
    if large is not None:
        return _in_large(large.content, large.outline) if large.outline else ()
    items = members.get("input")
    if not isinstance(items, list):
        return ()
    return tuple(
        [
            _item(index, item.get("id"), item.get("type"), item.get("encrypted_content"), alone=len(item) == 1)
            for index, item in enumerate(items)
            if isinstance(item, dict) and ("id" in item or "encrypted_content" in item)
        ]
    )


def _item(position: int, id_: object, kind: object, encrypted: object, *, alone: bool) -> Item:
    id_ = id_ if isinstance(id_, str) and len(id_) <= _LONGEST_ID else ""
    tail = encrypted[-TAIL:] if isinstance(encrypted, str) and len(encrypted) >= SHORTEST else ""
    if tail:
        return Item(position, "reasoning" if kind == "reasoning" else "encrypted", id_, tail)
    return Item(position, "reference" if kind in ("item_reference", "reasoning") or alone else "whole", id_)


def _in_large(content: bytes, outline: Outline) -> tuple[Item, ...]:
    parts: dict[int, dict[str, Member]] = {}
    for (start, name), member in outline.members.items():
        if member.path in PLACES[1:]:
            parts.setdefault(start, {})[name] = member
    items = []
    for index, whole in enumerate(_items(outline)):
        if named := parts.get(whole.value):
            id_, kind = _text(content, named.get("id"), _LONGEST_ID), _text(content, named.get("type"), _LONGEST_TYPE)
            encrypted = _text(content, named.get("encrypted_content"), 0)
            if "id" in named or encrypted:
                alone = len(named) == 1 and content.count(b":", whole.value, whole.end) == 1
                items.append(_item(index, id_, kind, encrypted, alone=alone))
    return tuple(items)


def _items(outline: Outline) -> list[Member]:
    """Return the items of the last member `input`, which counts."""
    whole = outline.get("input")
    return [one for one in outline.at(PLACES[0]) if whole and whole.value <= one.value < whole.end]


def _text(content: bytes, member: Member | None, longest: int) -> str | None:
    """Return a string; of a longer one than `longest` bytes the end."""
    if member is None or content[member.value] != _QUOTE:
        return None
    start, end = member.value + 1, member.end - 1
    if end - start > longest:
        if longest:
            return None
        start = max(start, end - TAIL)
    return content[start:end].decode("utf-8", "replace")


def without(content: bytes, large: LargeBody | None, indexes: Collection[int]) -> tuple[bytes, LargeBody | None]:
    """Return a body without the items at `indexes`, of which it has at least one."""
    outline = large.outline if large else json_scan.outline(content, PLACES[:1], every=True)
    assert outline, "the items were found in it"
    whole = outline.get("input")
    assert whole
    kept = [content[one.value : one.end] for index, one in enumerate(_items(outline)) if index not in indexes]
    value = b"[%b]" % b",".join(kept)
    changed = b"".join((content[: whole.value], value, content[whole.end :]))
    return changed, large and _moved(large, changed, outline, whole)


def _moved(large: LargeBody, content: bytes, outline: Outline, whole: Member) -> LargeBody:
    """Return the scan of a body whose member `whole` has become shorter."""
    by = len(large.content) - len(content)

    def moved(at: int) -> int:
        return at - by if at >= whole.end else at

    members = {
        (moved(start), name): replace(
            one, start=moved(one.start), value=moved(one.value), end=moved(one.end), before=moved(one.before), next=moved(one.next)
        )
        for (start, name), one in outline.members.items()
        if not whole.value <= start < whole.end
    }
    return LargeBody(content, outline._replace(members=members), places=large.places)
