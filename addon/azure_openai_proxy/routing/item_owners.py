"""Which backend can read the items of earlier responses that a Responses request has in its `input`.

A reference to an item and its encrypted content are useful to the backend that made it, to no other. The settings say what happens to a
conversation whose backend is gone: it is refused, or continued at another backend without that backend's encrypted reasoning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from azure_openai_proxy.api.response_items import Item

    from .affinity import Owners

__all__ = ["GONE", "NOTHING", "Found", "decide", "message", "preferred"]

GONE = "item_backend_gone"
"""Code of the error for an item whose backend is gone."""


class Found(NamedTuple):
    """The result of `decide`."""

    item: Item | None = None  # that only its owner can read
    owner: str = ""
    dropped: tuple[int, ...] = ()  # positions of the items to leave out
    of: tuple[str, ...] = ()  # their backends


NOTHING = Found()


def decide(items: Sequence[Item], owners: Owners, is_gone: Callable[[str], bool], *, drop: bool) -> Found:
    """Find the owner of a request: of the newest item that cannot be left out, or that need not be.

    `drop`: encrypted reasoning of other backends than the owner is left out.
    """
    made = [(item, name) for item in reversed(items) if item.kind != "whole" and (name := owners.of_item(item))]
    if not made:
        return NOTHING
    if not drop:
        return Found(*made[0])
    fixed = [one for one in made if one[0].kind != "reasoning"] or [one for one in made if not is_gone(one[1])]
    item, owner = fixed[0] if fixed else (None, "")
    others = [one for one in made if one[0].kind == "reasoning" and one[1] != owner]
    return Found(item, owner, tuple(one.position for one, _ in others), tuple(dict.fromkeys(name for _, name in others)))


def preferred(items: Sequence[Item], owners: Owners) -> str | None:
    """The backend that made the newest item which any backend can read."""
    return next((name for item in reversed(items) if item.kind == "whole" and (name := owners.of_item(item))), None)


def message(item: Item, owner: str, reason: str) -> str:
    return f"Item '{item.name}' in `input` was made by the backend '{owner}', which is gone: {reason}. No other backend can read the item."
