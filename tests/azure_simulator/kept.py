"""Stored objects of a client at Azure: all kinds are created, listed, read, changed and deleted alike.

Nothing is kept in truth: whatever the id, there is an object of that id, so that a test needs no other request before its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from . import errors
from .answers import Answer, json_answer
from .calls import Api, Call, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .kinds import Kind
    from .models import Model

__all__ = ["deleted", "listing", "one", "page", "rows", "value"]


def value(kind: Kind, call: Call, **members: Any) -> dict[str, Any]:
    """An object of the kind, as the call's path and body have it."""
    found = {name: given for name, given in call.asked.items() if name in kind.value and _fits(given, kind.value[name])}
    parents = {name: given for name, given in call.values.items() if name in kind.value}
    return {**kind.value, "id": f"{kind.prefix}1", **found, **parents, **members}


def _fits(given: Any, value: Any) -> bool:
    """A list may be asked for as the text of its only item, but is a list in the answer."""
    return given is not None and (value is None or isinstance(given, type(value)))


def one(kind: Kind, call: Call, model: Model, **members: Any) -> Answer:
    """The object that was created, asked for, or changed."""
    return json_answer(value(kind, call, **members))


def page(kind: Kind, call: Call) -> dict[str, Any]:
    """Two objects, with `limit` and `after` as lists have them."""
    both = [value(kind, call, id=f"{kind.prefix}{number}") for number in (1, 2)]
    after = call.received.query.get("after", [""])[0]
    left = both[1:] if after == both[0]["id"] else [] if after else both
    limit = call.received.query.get("limit", ["2"])[0]
    if not limit.isdecimal():
        raise errors.invalid(f"Invalid type for 'limit': expected an integer, but got {limit!r} instead.", param="limit")
    shown = left[: int(limit[:4])]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"data": shown, **ends, "has_more": len(shown) < len(left), "object": "list"}


def listing(kind: Kind, call: Call, model: Model) -> Answer:
    return json_answer(page(kind, call))


def deleted(kind: Kind, call: Call, model: Model) -> Answer:
    return json_answer({"deleted": True, "id": call.values["id"], "object": kind.deleted or f"{kind.value['object']}.deleted"})


_VERBS: Mapping[str, tuple[str, str, Any]] = {
    "create": ("POST", "", one),
    "list": ("GET", "", listing),
    "get": ("GET", "/{id}", one),
    "update": ("POST", "/{id}", one),
    "delete": ("DELETE", "/{id}", deleted),
}


def rows(path: str, kind: Kind, verbs: str, api: Api, models: tuple[str, ...] = ()) -> Iterator[Operation]:
    """The verbs (create, list, get, update, delete) that there are for a kind; any other is an action: POST /{id}/verb."""
    for verb in verbs.split():
        method, below, answer = _VERBS.get(verb) or ("POST", f"/{{id}}/{verb}", one)
        row = Operation(method, path + below, partial(answer, kind), api, models=models)
        yield row._replace(body="json") if verb in ("create", "update") else row
